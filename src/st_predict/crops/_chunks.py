"""Chunks that crops are cut from: each is decoded once and kept while a crop needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from st_predict.crops._boxes import Boxes
from st_predict.crops._pieces import ChunkLayout, Pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["ALL", "Chunks", "Squares", "chunks_of"]

T = TypeVar("T")

_SPOTS = 4096  # squares that are cut along chunks at a time, so that temporary arrays stay small

ALL = slice(None)
"""The part of a job that is all of it."""


class Squares:
    """Squares of one level of a plan, cut along the edges of chunks.

    Parameters
    ----------
    plan
        Level and squares to cut.
    layout
        Chunks of the level of the image.
    jobs
        Rows of the plan, one array per job.
    """

    def __init__(self, plan: LevelPlan, layout: ChunkLayout, jobs: Sequence[NDArray[np.int64]]) -> None:
        self.plan, self._layout = plan, layout
        self._inside = Boxes.squares(plan.origins, plan.read_size).within(layout.image)
        self._pieces, self._first_piece = self._cut(jobs)

    def pieces(self, job: int, part: slice = ALL) -> Pieces:
        """Return the pieces of the squares of a job, or of a part of it; ``spot`` is the position of the square there."""
        pieces = self._pieces[self._first_piece[job] : self._first_piece[job + 1]]
        if part is ALL:
            return pieces
        first, end = np.searchsorted(pieces.spot, (part.start, part.stop))
        pieces = pieces[first:end]
        return replace(pieces, spot=pieces.spot - np.int32(part.start))

    def leave_image(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a boolean mask of squares that are not wholly inside the image."""
        return ~self._inside[rows]

    def _cut(self, jobs: Sequence[NDArray[np.int64]]) -> tuple[Pieces, NDArray[np.int64]]:
        """Return the pieces of all jobs, and the number of each job's first piece followed by the number of pieces."""
        starts = np.cumsum([0, *map(len, jobs)])
        pieces = self._cut_rows(np.concatenate([np.empty(0, np.int64), *jobs]))
        first_piece = np.searchsorted(pieces.spot, starts)
        spot = pieces.spot - np.repeat(starts[:-1], np.diff(first_piece))
        return replace(pieces, spot=spot.astype(np.int32)), first_piece

    def _cut_rows(self, rows: NDArray[np.int64]) -> Pieces:
        """Return the pieces of the squares of these rows of the plan; ``spot`` is the position in ``rows``."""
        parts = []
        for first in range(0, max(len(rows), 1), _SPOTS):
            origins = self.plan.origins[rows[first : first + _SPOTS]]
            part = self._layout.cut(Boxes.squares(origins, self.plan.read_size))
            parts.append(replace(part, spot=part.spot + np.int32(first)))
        return Pieces.cat(parts)


class Chunks(Generic[T]):
    """Chunks of one level of an image that the crops of some spots touch.

    Spots come in jobs, in the order of ``jobs``. A chunk is decoded for the first job that needs it, and dropped after
    the last one.

    Parameters
    ----------
    reader
        Pyramid to read chunks from.
    level
        Level to read.
    plans
        Plans of the crops that are cut from this level, by their number.
    jobs
        Rows of the plans, one array per job.
    pool
        Executor that decodes chunks.
    prepare
        Function applied to each decoded chunk, ``(3, height, width)``.
    """

    def __init__(  # an image, what to cut from it, and how
        self,
        reader: PyramidReader,
        level: int,
        plans: Mapping[int, LevelPlan],
        jobs: Sequence[NDArray[np.int64]],
        *,
        pool: Executor,
        prepare: Callable[[NDArray[np.uint8]], T],
    ) -> None:
        self.edges = reader.edges(level)
        self._layout = ChunkLayout(*self.edges)
        self._reader, self._level, self._pool, self._prepare = reader, level, pool, prepare
        self._live: dict[int, Future[T]] = {}
        self.squares = {i: Squares(plan, self._layout, jobs) for i, plan in plans.items()}
        self._needs = [self._touched(job) for job in range(len(jobs))]
        self._leaving = self._last_uses()

    def fetch(self, job: int) -> None:
        """Begin to decode the chunks that no earlier job needed."""
        for chunk in self._needs[job]:
            if chunk not in self._live:
                self._live[chunk] = self._pool.submit(self._decode, chunk)

    def needed(self, job: int) -> dict[int, T]:
        """Wait for the chunks that this job is cut from."""
        return {chunk: self._live[chunk].result() for chunk in self._needs[job]}

    def drop(self, job: int) -> list[int]:
        """Drop the chunks that no later job needs; return their numbers."""
        leaving = self._leaving.pop(job, [])
        for chunk in leaving:
            del self._live[chunk]
        return leaving

    def _decode(self, chunk: int) -> T:
        box = self._layout.boxes(np.array(chunk))
        left, top, width, height = map(int, (box.left, box.top, box.right - box.left, box.bottom - box.top))
        pixels = self._reader.read(left, top, width, height, level=self._level)
        return self._prepare(pixels.transpose(2, 0, 1))

    def _touched(self, job: int) -> list[int]:
        return np.unique(np.concatenate([squares.pieces(job).chunk for squares in self.squares.values()])).tolist()

    def _last_uses(self) -> dict[int, list[int]]:
        """Return the chunks that each job is the last to need."""
        last = {chunk: job for job, chunks in enumerate(self._needs) for chunk in chunks}
        leaving: dict[int, list[int]] = {}
        for chunk, job in last.items():
            leaving.setdefault(job, []).append(chunk)
        return leaving


def chunks_of(
    reader: PyramidReader,
    plan: Sequence[LevelPlan],
    jobs: Sequence[NDArray[np.int64]],
    *,
    pool: Executor,
    prepare: Callable[[NDArray[np.uint8]], T],
) -> list[Chunks[T]]:
    """Chunks of each level of the image that a plan reads: several levels of crops may be cut from the same one."""
    by_level: dict[int, dict[int, LevelPlan]] = {}
    for i, level in enumerate(plan):
        by_level.setdefault(level.level, {})[i] = level
    return [Chunks(reader, level, plans, jobs, pool=pool, prepare=prepare) for level, plans in by_level.items()]
