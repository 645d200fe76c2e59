"""Crops at several image levels: missing levels and central regions.

Tokens of missing levels are zero. :func:`blank` restores this after each step of a network, so missing levels have no
effect on the next step.

Shapes: B spots, M levels, C colours, S pixels per side, N tokens per level, D channels per level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from st_predict.crops import Batch

__all__ = ["Levels", "blank", "centre", "present_levels"]

Levels: TypeAlias = "list[Tensor]"  # one (B, N, D) per level, finest first


def present_levels(batch: Batch, n_levels: int) -> Tensor | None:
    """Boolean mask of the levels that each spot has, ``(B, M)``; ``None`` if no level is missing.

    Raises
    ------
    ValueError
        If type or shape of ``batch.level_mask`` do not fit, or a spot lacks all levels.
    """
    if batch.level_mask is None:
        return None
    mask_BM, shape = batch.level_mask, (len(batch), n_levels)
    if mask_BM.dtype != torch.bool or tuple(mask_BM.shape) != shape:
        raise InvalidValueError(
            f"level_mask must be torch.bool of shape {shape}, got {mask_BM.dtype} {tuple(mask_BM.shape)}."
        )
    n_empty = int((~mask_BM.any(1)).sum())
    if n_empty:
        raise InvalidValueError(f"{n_empty} of {len(batch)} spots lack all levels.", "leave them out of the batch")
    return mask_BM


def blank(x: Levels, present_BM: Tensor | None) -> Levels:
    """Set the tokens of missing levels to zero."""
    if present_BM is None:
        return x
    return [torch.where(present_B[:, None, None], x_BND, 0) for x_BND, present_B in zip(x, present_BM.T, strict=True)]


def centre(x_BCSS: Tensor, size: int) -> Tensor:
    """Central square with sides of ``size`` pixels."""
    start = (x_BCSS.shape[-1] - size) // 2
    return x_BCSS[..., start : start + size, start : start + size]
