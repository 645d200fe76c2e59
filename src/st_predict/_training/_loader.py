"""Training batches: spots in any order, whole sections, or parts of sections."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from scipy.spatial import cKDTree

from st_predict._errors import Advice, InvalidValueError
from st_predict._training._store import CropStore
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig
    from st_predict._training._ranks import Ranks
    from st_predict._training._store import Store
    from st_predict.crops import Batch
    from st_predict.specs import ModelCard

__all__ = ["CropLoader", "Loader", "SectionLoader", "for_training", "in_order"]

T = TypeVar("T")


@dataclass(slots=True)
class CropLoader:
    """Batches of a :class:`Store`, in a new order per epoch that depends only on seed and epoch.

    Parameters
    ----------
    store
        Spots.
    batch_size
        Number of spots per batch and process.
    seed
        Random seed of the order; ``None`` keeps it.
    rank, world
        Number of this process and number of processes: all of them draw the same order, and share each step's spots.
    """

    store: Store
    batch_size: int
    seed: int | None = None
    rank: int = 0
    world: int = 1
    epoch: int = field(default=0, init=False)

    def __len__(self) -> int:
        return n_steps(len(self.store), self.batch_size, self.world)

    def weight(self, step: int) -> float:
        """Return the weight of this process's mean in a step, relative to an even share of the spots."""
        return weight_of(step, len(self.store), self.batch_size, self.rank, self.world)

    def __iter__(self) -> Iterator[Batch]:
        rows = np.arange(len(self.store))
        if self.seed is not None:
            np.random.default_rng((self.seed, self.epoch)).shuffle(rows)
        step = self.batch_size * self.world
        shares = (share(rows[i * step : (i + 1) * step], self.rank, self.world) for i in range(len(self)))
        yield from read_ahead(self.store.batch, shares)


def n_steps(n: int, batch_size: int, world: int) -> int:
    """Return the number of steps of an epoch; a rest too small for all processes is left out, unless it is everything."""
    full, rest = divmod(n, batch_size * world)
    return full + (rest >= world)


def share(rows: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
    """Return a process's part of the rows of a step; parts differ by at most one in size."""
    return np.array_split(rows, world)[rank]


def weight_of(step: int, n: int, batch_size: int, rank: int, world: int) -> float:  # noqa: PLR0917
    """Return the share of a process in the rows of a step, times the number of processes, whose gradients are averaged."""
    if world == 1:
        return 1.0
    first = step * batch_size * world
    rows = np.arange(first, min(n, first + batch_size * world))
    return len(share(rows, rank, world)) * world / len(rows)


@dataclass(slots=True)
class SectionLoader:
    """Batches of whole sections or regions, in a new order per epoch that depends only on seed and epoch.

    Parameters
    ----------
    store
        Spots of all sections.
    regions
        Number of regions per section and epoch, each a random spot with its nearest neighbours; 0 gives each section once and
        whole.
    per_batch
        Number of sections or regions per batch; ``batch.section`` distinguishes them.
    seed
        Random seed of regions and order; ``None`` keeps the order of the sections.
    rank, world
        Number of this process and number of processes: all of them draw the same parts, and share the parts of each step.
    """

    store: CropStore
    regions: int = 0
    per_batch: int = 1
    seed: int | None = None
    rank: int = 0
    world: int = 1
    epoch: int = field(default=0, init=False)

    def __len__(self) -> int:
        return n_steps(self._n_parts, self.per_batch, self.world)

    @property
    def _n_parts(self) -> int:
        return len(np.unique(self.store.section)) * max(1, self.regions)

    def weight(self, step: int) -> float:
        """Return the weight of this process's mean in a step, relative to an even share of the sections or regions."""
        return weight_of(step, self._n_parts, self.per_batch, self.rank, self.world)

    def __iter__(self) -> Iterator[Batch]:
        rng = None if self.seed is None else np.random.default_rng((self.seed, self.epoch))
        parts = [np.flatnonzero(self.store.section == section) for section in np.unique(self.store.section)]
        if self.regions:
            parts = [part for rows in parts for part in self._draw(rows, rng or np.random.default_rng(0))]
        if rng is not None:
            parts = [parts[i] for i in rng.permutation(len(parts))]
        step = self.per_batch * self.world
        order = np.arange(len(parts))
        shares = (share(order[i * step : (i + 1) * step], self.rank, self.world) for i in range(len(self)))
        batches = ([parts[i] for i in mine] for mine in shares)
        yield from read_ahead(self._read, batches)

    def _draw(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        places = self.store.grid if self.store.xy_um is None else self.store.xy_um
        if places is None:
            raise InvalidValueError(
                "Regions need the positions of spots, but neither the mpp nor the lattice of all sections is known.",
                Advice("give the resolution with {}", "mpp"),
                Advice("set regions to 0 in {}, for whole sections", "config"),
            )
        tree = cKDTree(places[rows])
        for _ in range(self.regions):
            size = min(len(rows), max(2, int(rng.random() * len(rows))))
            _, nearest = tree.query(places[rows[rng.integers(len(rows))]], k=size)
            yield rows[np.atleast_1d(nearest)]

    def _read(self, parts: list[NDArray[np.int64]]) -> Batch:
        section = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return replace(self.store.batch(np.concatenate(parts)), section=torch.from_numpy(section))


def read_ahead(read: Callable[[T], Batch], what: Iterable[T]) -> Iterator[Batch]:
    """Prefetch: read the next batch while one is used."""
    with ThreadPoolExecutor(1) as pool:
        reading: deque[Future[Batch]] = deque()
        for each in what:
            reading.append(pool.submit(read, each))
            if len(reading) > 1:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


Loader = CropLoader | SectionLoader


def for_training(store: Store, card: ModelCard, config: TrainConfig, ranks: Ranks | None = None) -> Loader:
    """Return this process's training batches, in a new order per epoch.

    Raises
    ------
    ValueError
        If there are fewer spots, or sections or regions, than processes.
    """
    rank, world = (0, 1) if ranks is None else (ranks.rank, ranks.world)
    loader: Loader
    if get_spec(card.model).scope == "section":
        assert isinstance(store, CropStore)  # such networks learn only from measured spots
        loader = SectionLoader(store, config.regions, config.regions_per_step, config.seed, rank, world)
    else:
        loader = CropLoader(store, config.batch_size, config.seed, rank, world)
    if len(loader) == 0:
        raise InvalidValueError(
            f"An epoch has fewer batches than there are devices, {world}.",
            Advice("train on fewer {}", "devices"),
            Advice("set regions to a larger number in {}", "config"),
        )
    return loader


def in_order(store: Store, card: ModelCard, config: TrainConfig, *, mixed: bool = False) -> Loader:
    """Return batches with all spots once, in a fixed order; ``mixed`` mixes sections in batches of single spots."""
    if get_spec(card.model).scope == "section":
        assert isinstance(store, CropStore)  # such networks learn only from measured spots
        return SectionLoader(store)
    return CropLoader(store, config.batch_size, seed=0 if mixed else None)
