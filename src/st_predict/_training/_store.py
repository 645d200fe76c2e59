"""Training set as arrays: crops, memory-mapped or on a device, or features."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from st_predict.crops import Batch
from st_predict.specs import PixelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["CropStore", "Store", "draw_rows", "held_by", "measure_colours"]

logger = logging.getLogger(__name__)

_MEASURED = 1024  # crops to measure colours of
_SHARE = 0.3  # of a GPU's free memory; copying takes twice as much, and networks need the rest
_COPIED = 1024  # spots copied to a device at a time


class Store(Protocol):
    """Spots to train on."""

    @property
    def target(self) -> NDArray[np.float32]:
        """``(n_spots, n_genes)``."""

    @property
    def measured(self) -> Store:
        """Spots with measured targets."""

    def __len__(self) -> int: ...

    @property
    def n_bytes(self) -> int:
        """Memory of all crops and features."""

    def to(self, device: torch.device) -> Store:
        """Return a store whose batches are made on a device, which holds all spots."""

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of these rows."""


def held_by(device: torch.device, store: Store) -> Store:
    """Move all spots of a store to a GPU if they fit, so that batches need no copy.

    Parameters
    ----------
    device
        Device of training.
    store
        Spots to train on.

    Returns
    -------
    Store
        The store on the device; the unchanged store for a CPU, or if its crops need more than 30 % of a GPU's free
        memory.
    """
    if device.type != "cuda":
        return store
    free, _ = torch.cuda.mem_get_info(device)
    if store.n_bytes > _SHARE * free:
        logger.info("%d MiB of crops are read batch by batch: %d MiB are free.", store.n_bytes >> 20, free >> 20)
        return store
    return store.to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class CropStore:
    """Crops of spots with their targets; crops are memory-mapped files.

    Parameters
    ----------
    crops
        One uint8 array ``(n_spots, 3, size, size)`` per level, finest first.
    target
        Targets, ``(n_spots, n_genes)`` float32.
    section
        Section of each spot, ``(n_spots,)`` int.
    grid
        Rows and columns on the lattice, ``(n_spots, 2)`` int64, if all sections have one.
    xy_um
        Positions in micrometres, ``(n_spots, 2)`` float32, if the mpp of all sections is known.
    features
        Features, ``(n_spots, n_features)`` float32, for models that read these instead of crops or besides them; or ``(n_spots,
        n_cells, n_features)``, NaN where a spot covers fewer cells than others, or a tile leaves the image.
    counts
        Raw counts of the panel, ``(n_spots, n_genes)`` float32, for models whose loss reads them.
    level_mask
        Whether the image of a spot has a level, ``(n_spots, n_levels)`` bool; ``None`` if all have all levels.
    held
        Copy of all arrays on a device (:meth:`to`), from which batches are taken.
    """

    crops: tuple[NDArray[np.uint8], ...]
    target: NDArray[np.float32]
    section: NDArray[np.int64]
    grid: NDArray[np.int64] | None
    xy_um: NDArray[np.float32] | None
    features: NDArray[np.float32] | None = None
    counts: NDArray[np.float32] | None = None
    level_mask: NDArray[np.bool_] | None = None
    held: Batch | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def measured(self) -> CropStore:
        """All spots."""
        return self

    @property
    def n_bytes(self) -> int:
        """Memory of all crops and features."""
        return sum(array.nbytes for array in (*self.crops, self.features) if array is not None)

    def to(self, device: torch.device) -> CropStore:
        """Return a store whose batches are made on a device, which holds all spots."""
        starts = range(0, len(self), _COPIED)
        parts = [self.batch(np.arange(start, min(start + _COPIED, len(self)))).to(device) for start in starts]
        return replace(self, held=Batch.cat(parts))

    def take(self, rows: NDArray[np.int64]) -> CropStore:
        """Return a store of some of the spots, in memory."""
        return CropStore(
            crops=tuple(crop[rows] for crop in self.crops),
            target=self.target[rows],
            section=self.section[rows],
            grid=None if self.grid is None else self.grid[rows],
            xy_um=None if self.xy_um is None else self.xy_um[rows],
            features=None if self.features is None else self.features[rows],
            counts=None if self.counts is None else self.counts[rows],
            level_mask=None if self.level_mask is None else self.level_mask[rows],
        )

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of these rows."""
        if self.held is not None:
            return self.held.take(torch.from_numpy(rows).to(self.held.index.device, non_blocking=True))
        others = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in {"crops", "held"}}
        return Batch(
            crops=tuple(torch.from_numpy(crop[rows]) for crop in self.crops),
            index=torch.from_numpy(rows),
            **{name: torch.from_numpy(values[rows]) for name, values in others.items() if values is not None},
        )

    def measure_pixels(self) -> PixelSpec:
        """Return mean and standard deviation of each colour over up to 1024 random crops of each level."""
        return measure_colours(self.crops, draw_rows(self.crops, self.level_mask, n_most=_MEASURED))


def draw_rows(
    crops: Sequence[NDArray[np.uint8]], level_mask: NDArray[np.bool_] | None, *, n_most: int
) -> list[NDArray[np.int64]]:
    """Return the rows of up to ``n_most`` random crops of each level, of images that have it."""
    masks = [np.ones(len(level), dtype=bool) for level in crops] if level_mask is None else level_mask.T
    present = [np.flatnonzero(mask) for mask in masks]
    return [rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:n_most])] for rows in present]


def measure_colours(crops: Sequence[NDArray[np.uint8]], rows: Sequence[NDArray[np.int64]]) -> PixelSpec:
    """Return mean and standard deviation of each colour, from 0 to 1, over selected crops.

    Parameters
    ----------
    crops
        One array ``(n_spots, 3, size, size)`` per level.
    rows
        Rows of the crops to measure, one array per level.
    """
    sums, squares, n = np.zeros(3), np.zeros(3), 0
    for level, drawn in zip(crops, rows, strict=True):
        for row in drawn:
            pixels = level[row].reshape(3, -1) / 255
            sums, squares, n = sums + pixels.sum(1), squares + (pixels**2).sum(1), n + pixels.shape[1]
    mean = sums / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 1 / 255**2))
    return PixelSpec(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
