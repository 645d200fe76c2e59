"""What a network sees of a training set: crops, cut once and kept on disk, or features of them."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from st_predict.crops import Batch, iter_batches
from st_predict.specs import PixelSpec
from st_predict.tl._disk import check_space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from st_predict.specs import CropSpec
    from st_predict.tl._observed import Observed

__all__ = ["CropLoader", "CropStore", "Store", "read_ahead"]

T = TypeVar("T")

_MEASURED = 1024  # crops whose colours are measured


class Store(Protocol):
    """Spots to train on."""

    @property
    def target(self) -> NDArray[np.float32]:
        """``(n_spots, n_genes)``."""

    @property
    def measured(self) -> Store:
        """Those of the spots whose targets were measured."""

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of these rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CropStore:
    """All crops of some spots with their targets; the crops are memory-mapped files.

    Parameters
    ----------
    crops
        One uint8 array ``(n_spots, 3, size, size)`` a level, finest first.
    target
        ``(n_spots, n_genes)`` float32.
    section
        ``(n_spots,)`` int: which section each spot is of.
    grid
        ``(n_spots, 2)`` int64, where all sections have a lattice.
    xy_um
        ``(n_spots, 2)`` float32, where the mpp of all sections is known.
    features
        ``(n_spots, n_features)`` float32, for a model that reads these instead of crops; or ``(n_spots, n_cells, n_features)``,
        NaN where a spot covers fewer cells than others.
    counts
        ``(n_spots, n_genes)`` float32: raw counts of the panel, for a model whose loss reads them.
    """

    crops: tuple[NDArray[np.uint8], ...]
    target: NDArray[np.float32]
    section: NDArray[np.int64]
    grid: NDArray[np.int64] | None
    xy_um: NDArray[np.float32] | None
    features: NDArray[np.float32] | None = None
    counts: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def measured(self) -> CropStore:
        """All spots."""
        return self

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of these rows."""
        others = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "crops"}
        return Batch(
            crops=tuple(torch.from_numpy(crop[rows]) for crop in self.crops),
            index=torch.from_numpy(rows),
            **{name: torch.from_numpy(values[rows]) for name, values in others.items() if values is not None},
        )

    def measure_pixels(self) -> PixelSpec:
        """Return mean and standard deviation of each colour over all levels of up to 1024 crops, drawn at random."""
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:_MEASURED])
        sums, squares, n = np.zeros(3), np.zeros(3), 0
        for level in self.crops:
            for row in rows:
                pixels = level[row].reshape(3, -1) / 255
                sums, squares, n = sums + pixels.sum(1), squares + (pixels**2).sum(1), n + pixels.shape[1]
        mean = sums / n
        std = np.sqrt(np.maximum(squares / n - mean**2, 1 / 255**2))
        return PixelSpec(mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    @classmethod
    def of_features(cls, sections: Sequence[Observed], features: Sequence[NDArray[np.float32]]) -> CropStore:
        """Keep the features of every spot of each section that has a target."""
        taken = [values[s.rows] for s, values in zip(sections, features, strict=True)]
        return cls(crops=(), features=np.concatenate(taken), **_known(sections))

    @classmethod
    def cut(cls, sections: Sequence[Observed], crop: CropSpec, *, folder: Path) -> CropStore:
        """Cut the crops of every spot that has a target, into files in ``folder``, which is made."""
        folder.mkdir()
        lengths = [len(s.rows) for s in sections]
        check_space("crops", folder.parent, sum(lengths) * sum(3 * level.size**2 for level in crop.levels))
        shapes = [(sum(lengths), 3, level.size, level.size) for level in crop.levels]
        crops = tuple(
            np.lib.format.open_memmap(folder / f"level{i}.npy", mode="w+", dtype=np.uint8, shape=shape)
            for i, shape in enumerate(shapes)
        )
        for start, section in zip(np.cumsum([0, *lengths[:-1]]), sections, strict=True):
            _cut_section(section, crop, out=tuple(array[start : start + len(section.rows)] for array in crops))
        return cls(crops=crops, **_known(sections))


def _known(sections: Sequence[Observed]) -> dict[str, Any]:
    """What is known of the spots apart from the image."""
    return {
        "target": np.concatenate([s.target for s in sections]),
        "section": np.repeat(np.arange(len(sections)), [len(s.rows) for s in sections]),
        "grid": _join(sections, [s.section.spots.grid for s in sections]),
        "xy_um": _join(sections, [s.section.xy_um for s in sections]),
        "counts": _counts(sections),
    }


def _counts(sections: Sequence[Observed]) -> NDArray[np.float32] | None:
    counts = [s.counts for s in sections if s.counts is not None]
    return np.concatenate(counts) if counts else None


def _join(sections: Sequence[Observed], places: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """Places of the spots that have a target; ``None`` where those of a section are not known."""
    known = [place[section.rows] for section, place in zip(sections, places, strict=True) if place is not None]
    return np.concatenate(known) if len(known) == len(sections) else None


def _cut_section(observed: Observed, crop: CropSpec, *, out: tuple[NDArray[np.uint8], ...]) -> None:
    section = observed.section
    place = np.full(len(section.rows), -1)
    place[observed.rows] = np.arange(len(observed.rows))
    for batch in iter_batches(section.reader, section.plan(crop), pad_value=crop.pad_value):
        where = place[batch.index.numpy()]
        for array, crops in zip(out, batch.crops, strict=True):
            array[where[where >= 0]] = crops.numpy()[where >= 0]


@dataclass(slots=True)
class CropLoader:
    """Batches of a :class:`Store`, in a new order each epoch that depends on the seed and the epoch alone."""

    store: Store
    batch_size: int
    seed: int | None = None
    epoch: int = field(default=0, init=False)

    def __len__(self) -> int:
        return math.ceil(len(self.store) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = np.arange(len(self.store))
        if self.seed is not None:
            np.random.default_rng((self.seed, self.epoch)).shuffle(rows)
        starts = range(0, len(rows), self.batch_size)
        yield from read_ahead(self.store.batch, (rows[start : start + self.batch_size] for start in starts))


def read_ahead(read: Callable[[T], Batch], what: Iterable[T]) -> Iterator[Batch]:
    """Read batches; the next one is read while one is used."""
    with ThreadPoolExecutor(1) as pool:
        reading: deque[Future[Batch]] = deque()
        for each in what:
            reading.append(pool.submit(read, each))
            if len(reading) > 1:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
