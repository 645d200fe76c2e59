"""The chunks that crops are cut from: each decoded once, kept while a crop still needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["Chunks"]

T = TypeVar("T")

_SPOTS = 4096  # whose squares are cut along chunks at a time


class Chunks(Generic[T]):
    """The chunks of one level that some crops touch.

    Spots come in jobs, in the order of ``jobs``: a chunk is decoded for the first job that needs it, and dropped when
    the last one that does is done.

    Parameters
    ----------
    reader
        The image.
    plan
        Which squares are cut from which level.
    jobs
        Rows of the plan, an array a job.
    pool
        Where chunks are decoded.
    prepare
        Applied to each chunk, ``(3, height, width)``, once it is decoded.
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
        self._reader, self._pool, self._prepare = reader, pool, prepare
        self._live: dict[int, Future[T]] = {}
        self._pieces = self._cut(np.concatenate(jobs) if jobs else np.empty(0, np.int64))
        spots = self._pieces[:, 0]
        ends = np.cumsum([0, *map(len, jobs)])
        self._of_job = np.searchsorted(spots, ends)
        self._pieces[:, 0] -= np.repeat(ends[:-1], np.diff(self._of_job))
        self._needs = [np.unique(self._of(job)[:, 1]).tolist() for job in range(len(jobs))]
        self._leaving = self._last_uses()

    def fetch(self, job: int) -> None:
        """Begin to decode what this job needs and no earlier one did."""
        for chunk in self._needs[job]:
            if chunk not in self._live:
                self._live[chunk] = self._pool.submit(self._decode, chunk)

    def needed(self, job: int) -> dict[int, T]:
        """Wait for the chunks that this job is cut from."""
        return {chunk: self._live[chunk].result() for chunk in self._needs[job]}

    def drop(self, job: int) -> list[int]:
        """Let go of what no job after this one needs; return the chunks."""
        leaving = self._leaving.pop(job, [])
        for chunk in leaving:
            del self._live[chunk]
        return leaving

    def pieces(self, job: int) -> list[list[int]]:
        """Return the pieces that the squares of a job are put together from.

        Of each: which of the spots, which chunk, and top, bottom, left and right, in the square and in the chunk.
        """
        return self._of(job).tolist()

    def leave_image(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of these squares are not wholly in the image."""
        start, (height, width) = self.plan.origins[rows], self._shape
        return np.any((start < 0) | (start + self.plan.read_size > (width, height)), axis=1)

    @property
    def _shape(self) -> tuple[int, int]:
        return self._reader.level_shapes[self.plan.level]

    def _of(self, job: int) -> NDArray[np.int32]:
        return self._pieces[self._of_job[job] : self._of_job[job + 1]]

    def _decode(self, chunk: int) -> T:
        row, col = divmod(chunk, len(self.edges[1]) - 1)
        (top, bottom), (left, right) = (
            edges[i : i + 2].tolist() for edges, i in zip(self.edges, (row, col), strict=True)
        )
        pixels = self._reader.read(left, top, right - left, bottom - top, level=self.plan.level)
        return self._prepare(pixels.transpose(2, 0, 1))

    def _cut(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Cut squares along the edges of chunks; ``(n_pieces, 10)`` as in :meth:`pieces`, in the order of the rows."""
        parts = [self._cut_some(rows[i : i + _SPOTS], first=i) for i in range(0, len(rows), _SPOTS)]
        return np.concatenate([np.empty((0, 10), np.int32), *parts])

    def _cut_some(self, rows: NDArray[np.int64], *, first: int) -> NDArray[np.int32]:
        start = self.plan.origins[rows][:, ::-1]  # y and x, as are all pairs here
        low, high = (np.clip(edge, 0, self._shape) for edge in (start, start + self.plan.read_size))
        chunk, stop = np.empty_like(low), np.empty_like(high)
        for axis, edges in enumerate(self.edges):
            chunk[:, axis] = np.searchsorted(edges, low[:, axis], side="right") - 1
            stop[:, axis] = np.searchsorted(edges, high[:, axis], side="left")
        n = np.where((low < high).all(axis=1, keepdims=True), stop - chunk, 0)
        steps = np.stack(np.meshgrid(*map(np.arange, n.max(axis=0)), indexing="ij"), axis=-1).reshape(-1, 2)
        spot, step = np.nonzero((n[:, None] > steps).all(axis=2))
        at = chunk[spot] + steps[step]
        corner, end = (np.stack([e[at[:, axis] + i] for axis, e in enumerate(self.edges)], axis=1) for i in (0, 1))
        low, high = np.maximum(low[spot], corner), np.minimum(high[spot], end)
        into, out_of = (np.stack([low - zero, high - zero], axis=2).reshape(-1, 4) for zero in (start[spot], corner))
        number = at[:, 0] * (len(self.edges[1]) - 1) + at[:, 1]
        return np.column_stack([spot + first, number, into, out_of]).astype(np.int32)

    def _last_uses(self) -> dict[int, list[int]]:
        """Which chunks each job is the last to need."""
        last = {chunk: job for job, chunks in enumerate(self._needs) for chunk in chunks}
        leaving: dict[int, list[int]] = {}
        for chunk, job in last.items():
            leaving.setdefault(job, []).append(chunk)
        return leaving
