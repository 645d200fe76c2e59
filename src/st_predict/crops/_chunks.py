"""The chunks that crops are cut from: each decoded once, kept while a crop still needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["Chunks"]

T = TypeVar("T")


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
        self._reader, self._pool, self._prepare = reader, pool, prepare
        self.edges = reader.edges(plan.level)
        self._shape = reader.level_shapes[plan.level]
        # (n_spots, 2) each, of y and x: the part of the square that lies in the image, and the chunks that it touches
        start = plan.origins[:, ::-1]
        self._low, self._high = (np.clip(edge, 0, self._shape) for edge in (start, start + plan.read_size))
        inside = (self._low < self._high).all(axis=1, keepdims=True)
        first = [np.searchsorted(edges, self._low[:, i], side="right") - 1 for i, edges in enumerate(self.edges)]
        stop = [np.searchsorted(edges, self._high[:, i], side="left") for i, edges in enumerate(self.edges)]
        self._first, self._n = np.stack(first, axis=1), (np.stack(stop, axis=1) - np.stack(first, axis=1)) * inside
        self._live: dict[int, Future[T]] = {}
        self._needs = [np.unique(self._number(self._chunks_of(rows)[1])).tolist() for rows in jobs]
        self._leaving = self._last_uses()

    def __getitem__(self, chunk: int) -> T:
        """Wait for a chunk."""
        return self._live[chunk].result()

    def fetch(self, job: int) -> None:
        """Begin to decode what this job needs and no earlier one did."""
        for chunk in self._needs[job]:
            if chunk not in self._live:
                self._live[chunk] = self._pool.submit(self._decode, chunk)

    def needed(self, job: int) -> list[int]:
        """Return the chunks that this job is cut from."""
        return self._needs[job]

    def drop(self, job: int) -> list[int]:
        """Let go of what no job after this one needs; return the chunks."""
        leaving = self._leaving.pop(job, [])
        for chunk in leaving:
            del self._live[chunk]
        return leaving

    def leave_image(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of these squares are not wholly in the image."""
        return np.any(self._high[rows] - self._low[rows] < self.plan.read_size, axis=1)

    def pieces(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, list[int], list[int]]]:
        """Cut these squares along the edges of chunks.

        Returns
        -------
        Of each piece: which of the spots, which chunk, and top, bottom, left and right in the square, and in the chunk.
        """
        spot, at = self._chunks_of(rows)
        row = rows[spot]
        corner, end = (np.stack([edges[at[:, i] + j] for i, edges in enumerate(self.edges)], axis=1) for j in (0, 1))
        low, high = np.maximum(self._low[row], corner), np.minimum(self._high[row], end)
        start = self.plan.origins[row][:, ::-1]
        into, out_of = (np.stack([low - zero, high - zero], axis=2).reshape(-1, 4) for zero in (start, corner))
        return zip(*(array.tolist() for array in (spot, self._number(at), into, out_of)), strict=True)

    def _decode(self, chunk: int) -> T:
        row, col = divmod(chunk, len(self.edges[1]) - 1)
        (top, bottom), (left, right) = (
            edges[i : i + 2].tolist() for edges, i in zip(self.edges, (row, col), strict=True)
        )
        pixels = self._reader.read(left, top, right - left, bottom - top, level=self.plan.level)
        return self._prepare(pixels.transpose(2, 0, 1))

    def _chunks_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Chunks that these spots touch: which of the spots, and row and column of the chunk."""
        n_steps = self._n[rows].max(axis=0, initial=0)
        steps = np.stack(np.meshgrid(*map(np.arange, n_steps), indexing="ij"), axis=-1).reshape(-1, 2)
        spot, step = np.nonzero((self._n[rows][:, None] > steps).all(axis=2))
        return spot, self._first[rows[spot]] + steps[step]

    def _number(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return at[:, 0] * (len(self.edges[1]) - 1) + at[:, 1]

    def _last_uses(self) -> dict[int, list[int]]:
        """Which chunks each job is the last to need."""
        last = {chunk: job for job, chunks in enumerate(self._needs) for chunk in chunks}
        leaving: dict[int, list[int]] = {}
        for chunk, job in last.items():
            leaving.setdefault(job, []).append(chunk)
        return leaving
