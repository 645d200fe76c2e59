"""The eight symmetries of a square, the same for all levels of a spot."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from st_predict.crops._batch import Batch

__all__ = ["N_SYMMETRIES", "apply_symmetry", "augment", "drop_levels"]

N_SYMMETRIES = 8
"""Quarter turns of a square, plain and mirrored."""


def augment(batch: Batch, generator: Generator) -> Batch:
    """Turn and mirror each spot by one of the 8 symmetries, drawn anew at each call.

    All levels of a spot get the same symmetry, so that they go on showing the same tissue. No pixel is resampled.
    """
    symmetry = torch.randint(N_SYMMETRIES, (len(batch),), generator=generator)
    crops = tuple(crop.clone(memory_format=torch.contiguous_format) for crop in batch.crops)
    for which in range(N_SYMMETRIES):
        rows = torch.nonzero(symmetry == which).squeeze(1).to(crops[0].device)
        for crop in crops:
            crop[rows] = apply_symmetry(crop[rows], which)
    return replace(batch, crops=crops)


def apply_symmetry(crop: Tensor, symmetry: int) -> Tensor:
    """Apply symmetry 0 (identity) to 7 to ``(..., size, size)``: quarter turns, mirrored from 4 on."""
    turned = torch.rot90(crop, symmetry % 4, dims=(-2, -1))
    return turned.flip(-1) if symmetry >= 4 else turned


def drop_levels(batch: Batch, rate: float, generator: Generator) -> Batch:
    """Hide each level of each spot with probability ``rate``; at least one level of a spot stays.

    The mask of the batch says what is hidden; a level that was missing before stays missing.
    """
    shape = (len(batch), len(batch.crops))
    present = torch.ones(shape, dtype=torch.bool) if batch.level_mask is None else batch.level_mask.cpu()
    order = torch.rand(shape, generator=generator)
    kept = present & (order >= rate)
    rows, last = torch.arange(len(batch)), torch.where(present, order, -1.0).argmax(dim=1)
    kept[rows, last] = present[rows, last]
    return replace(batch, level_mask=kept.to(batch.crops[0].device))
