"""What a network sees of some spots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a network sees of ``n`` spots.

    Parameters
    ----------
    crops
        One uint8 tensor ``(n, 3, size, size)`` a level, finest first; none for a model that reads ``features``.
    index
        ``(n,)`` int64: rows of the table. The order of reading is free, that of writing is not.
    grid
        ``(n, 2)`` int64: row and column on the lattice of the assay, where it has one.
    xy_um
        ``(n, 2)`` float32: centres in micrometres, where mpp is known.
    target
        ``(n, n_genes)`` float32, in training.
    level_mask
        ``(n, n_levels)`` bool, False where a level is missing; ``None`` when none is.
    features
        ``(n, n_features)`` float32: embeddings of the crops, for a model that reads these; ``(n, n_cells, n_features)`` for
        one that reads the cells of a dense map which a spot covers, NaN where a spot covers fewer than others.
    section
        ``(n,)`` int64: which section each spot is of; ``None`` if all are of one.
    counts
        ``(n, n_genes)`` float32: raw counts of the panel, in training of a model whose loss reads them; and in prediction
        those of spots that a model may read as context, NaN for all others.
    """

    crops: tuple[Tensor, ...]
    index: Tensor
    grid: Tensor | None = None
    xy_um: Tensor | None = None
    target: Tensor | None = None
    level_mask: Tensor | None = None
    features: Tensor | None = None
    section: Tensor | None = None
    counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def require(self, name: str) -> Tensor:
        """Return a part that a network cannot do without.

        Raises
        ------
        ValueError
            If the batch has none.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"The network reads {name!r} of each spot; the batch has none.")
        return value

    def take(self, which: slice | Tensor) -> Batch:
        """Return some of the spots: a slice, or rows, or true and false for each."""
        others = {name: value[which] for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        return Batch(crops=tuple(crop[which] for crop in self.crops), index=self.index[which], **others)

    def to(self, device: torch.device | str) -> Batch:
        """Copy every tensor to ``device``."""
        others = {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        on = partial(torch.Tensor.to, device=device, non_blocking=torch.device(device).type != "cpu")
        return Batch(
            crops=tuple(map(on, self.crops)),
            index=on(self.index),
            **{name: on(value) for name, value in others.items()},
        )


_OPTIONAL = ("grid", "xy_um", "target", "level_mask", "features", "section", "counts")
