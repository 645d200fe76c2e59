"""Input of a network for some spots."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

import torch

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Input of a network for ``n`` spots.

    Parameters
    ----------
    crops
        One uint8 tensor ``(n, 3, size, size)`` per level, finest first; empty for a model that reads only ``features``.
    index
        Table rows of the spots, ``(n,)`` int64. Batches come in reading order, not in table order.
    grid
        Row and column on the lattice of the assay, ``(n, 2)`` int64, if it has one.
    xy_um
        Centres in micrometres, ``(n, 2)`` float32, if mpp is known.
    target
        Transformed expression, ``(n, n_genes)`` float32, in training.
    level_mask
        Present levels, ``(n, n_levels)`` bool: False where a level is missing; ``None`` if all levels are present.
    features
        Embeddings of the crops, ``(n, n_features)`` float32, for a model that reads them. For a model that reads the cells of a dense
        map under each spot: ``(n, n_cells, n_features)``, NaN where a spot covers fewer cells than others. For a
        model that reads tiles around each spot: ``(n, n_tiles, n_features)``, by row, NaN for tiles that leave the image.
    section
        Section of each spot, ``(n,)`` int64; ``None`` if all spots are from one section.
    counts
        Raw counts of the panel, ``(n, n_genes)`` float32. In training, for a model whose loss reads them; in prediction, for context
        spots, NaN for all others.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> crops = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    >>> batch = stp.crops.Batch(crops=(crops,), index=torch.arange(4))
    >>> len(batch), batch.take(slice(2)).crops[0].shape
    (4, torch.Size([2, 3, 32, 32]))
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

    @property
    def present(self) -> Tensor:
        """Levels that each spot has, ``(n, n_levels)`` bool."""
        if self.level_mask is not None:
            return self.level_mask
        return torch.ones(len(self), len(self.crops), dtype=torch.bool, device=self.index.device)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Apply ``fn`` to every tensor of the batch; parts that are ``None`` stay ``None``."""
        parts = {name: fn(part) for name in _PARTS if (part := getattr(self, name)) is not None}
        return Batch(crops=tuple(map(fn, self.crops)), **parts)

    def take(self, which: slice | Tensor) -> Batch:
        """Return some of the spots, selected by a slice, row numbers or a boolean mask."""
        return self.map(itemgetter(which))

    def to(self, device: torch.device | str) -> Batch:
        """Copy every tensor to ``device``."""
        return self.map(partial(torch.Tensor.to, device=device, non_blocking=torch.device(device).type != "cpu"))

    def require(self, name: str) -> Tensor:
        """Return a part of the batch that a network cannot do without.

        Raises
        ------
        ValueError
            If the batch does not have it.
        """
        part: Tensor | None = getattr(self, name)
        if part is None:
            raise InvalidValueError(f"The network reads {name!r} of each spot; the batch has none.")
        return part

    @classmethod
    def cat(cls, batches: Sequence[Batch]) -> Batch:
        """Concatenate batches; a part that is ``None`` in one of them is ``None`` in the result.

        Spots of batches without a ``level_mask`` have all levels.

        Raises
        ------
        ValueError
            If there are none, or they differ in their number of levels.
        """
        if len({len(batch.crops) for batch in batches}) != 1:
            found = [len(batch.crops) for batch in batches]
            raise InvalidValueError(f"Batches should have the same number of levels, got {found}.")
        columns = {name: [getattr(batch, name) for batch in batches] for name in _PARTS}
        if any(mask is not None for mask in columns["level_mask"]):
            columns["level_mask"] = [batch.present for batch in batches]
        known = {name: torch.cat(parts) for name, parts in columns.items() if all(part is not None for part in parts)}
        levels = zip(*(batch.crops for batch in batches), strict=True)
        return cls(crops=tuple(map(torch.cat, levels)), **known)


_PARTS = tuple(field.name for field in fields(Batch) if field.name != "crops")
