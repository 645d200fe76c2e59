"""Chunks that crops are cut from: each is decoded once and kept while a crop needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from st_predict.crops._boxes import Boxes
from st_predict.crops._pieces import ChunkLayout, Pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["Chunks"]

T = TypeVar("T")

_SPOTS = 4096  # squares that are cut along chunks at a time, so that temporary arrays stay small


class Chunks(Generic[T]):
    """Chunks of one level that the crops of some spots touch.

    Spots come in jobs, in the order of ``jobs``. A chunk is decoded for the first job that needs it, and dropped after
    the last one.

    Parameters
    ----------
    reader
        Pyramid to read chunks from.
    plan
        Level and squares to cut.
    jobs
        Rows of the plan, one array per job.
    pool
        Executor that decodes chunks.
    prepare
        Function applied to each decoded chunk, ``(3, height, width)``.
    """

    def __init__(
        self,
        reader: PyramidReader,
        plan: LevelPlan,
        jobs: Sequence[NDArray[np.int64]],
        *,
        pool: Executor,
        prepare: Callable[[NDArray[np.uint8]], T],
    ) -> None:
        self.plan = plan
        self.edges = reader.edges(plan.level)
        self._layout = ChunkLayout(*self.edges)
        self._reader, self._pool, self._prepare = reader, pool, prepare
        self._live: dict[int, Future[T]] = {}
        self._inside = Boxes.squares(plan.origins, plan.read_size).within(self._layout.image)
        self._pieces, self._first_piece = self._cut(jobs)
        self._needs = [np.unique(self.pieces(job).chunk).tolist() for job in range(len(jobs))]
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

    def pieces(self, job: int, part: slice = slice(None)) -> Pieces:
        """Return the pieces of the squares of a job, or of some; ``spot`` is the position of the square among these."""
        pieces = self._pieces[self._first_piece[job] : self._first_piece[job + 1]]
        if part == slice(None):
            return pieces
        some = pieces[slice(*np.searchsorted(pieces.spot, [part.start, part.stop]))]
        return replace(some, spot=some.spot - np.int32(part.start))

    def leave_image(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a boolean mask of squares that are not wholly inside the image."""
        return ~self._inside[rows]

    def _decode(self, chunk: int) -> T:
        box = self._layout.boxes(np.array(chunk))
        left, top, width, height = map(int, (box.left, box.top, box.right - box.left, box.bottom - box.top))
        pixels = self._reader.read(left, top, width, height, level=self.plan.level)
        return self._prepare(pixels.transpose(2, 0, 1))

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

    def _last_uses(self) -> dict[int, list[int]]:
        """Return the chunks that each job is the last to need."""
        last = {chunk: job for job, chunks in enumerate(self._needs) for chunk in chunks}
        leaving: dict[int, list[int]] = {}
        for chunk, job in last.items():
            leaving.setdefault(job, []).append(chunk)
        return leaving
