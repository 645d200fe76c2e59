"""Chunks that crops are cut from: each is decoded once and kept while a crop needs it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from st_predict.crops._boxes import Boxes
from st_predict.crops._pieces import ChunkLayout, Pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["ALL", "LIVE", "Chunks", "Squares", "chunks_of"]

T = TypeVar("T")

_SPOTS = 4096  # squares that are cut along chunks at a time, so that temporary arrays stay small

LIVE = 256 << 20
"""Bytes of decoded chunks per level, beyond which chunks that are needed again are dropped."""

NEVER = sys.maxsize

ALL = slice(None)
"""The part of a job that is all of it."""


class Decoded(NamedTuple):
    """One decoding of a chunk, ``time`` says which."""

    chunk: int
    time: int


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
    the last one; where chunks need more than ``LIVE`` bytes, those needed last are dropped and decoded again.

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
        self._live: dict[Decoded, Future[T]] = {}
        self.squares = {i: Squares(plan, self._layout, jobs) for i, plan in plans.items()}
        needs = [self._touched(job) for job in range(len(jobs))]
        self._needs, self._leaving = schedule(needs, self._n_bytes(needs))

    def fetch(self, job: int) -> None:
        """Begin to decode the chunks that no earlier job needed."""
        for decoded in self._needs[job]:
            if decoded not in self._live:
                self._live[decoded] = self._pool.submit(self._decode, decoded.chunk)

    def needed(self, job: int) -> dict[int, T]:
        """Wait for the chunks that this job is cut from."""
        return {decoded.chunk: self._live[decoded].result() for decoded in self._needs[job]}

    def drop(self, job: int) -> list[int]:
        """Drop chunks, above all those that no later job needs; return their numbers."""
        leaving = self._leaving.pop(job, [])
        for decoded in leaving:
            del self._live[decoded]
        return [decoded.chunk for decoded in leaving]

    def _decode(self, chunk: int) -> T:
        pixels = self._reader.read(*self._layout.corner_and_size(chunk), level=self._level)
        return self._prepare(pixels.transpose(2, 0, 1))

    def _touched(self, job: int) -> list[int]:
        return np.unique(np.concatenate([squares.pieces(job).chunk for squares in self.squares.values()])).tolist()

    def _n_bytes(self, needs: Sequence[Sequence[int]]) -> dict[int, int]:
        """Bytes of the chunks that are needed."""
        chunks = np.unique(np.concatenate([np.empty(0, np.int64), *map(np.asarray, needs)])).astype(np.int64)
        boxes = self._layout.boxes(chunks)
        n_bytes = 3 * (boxes.bottom - boxes.top) * (boxes.right - boxes.left)
        return dict(zip(chunks.tolist(), n_bytes.tolist(), strict=True))


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


def schedule(
    needs: Sequence[Sequence[int]], n_bytes: Mapping[int, int]
) -> tuple[list[list[Decoded]], dict[int, list[Decoded]]]:
    """Decide when chunks are decoded and dropped: as seldom as ``LIVE`` bytes allow, by dropping first the chunks that are needed last.

    Parameters
    ----------
    needs
        Chunks that each job needs.
    n_bytes
        Bytes of each chunk.

    Returns
    -------
    tuple of list and dict
        Chunks that each job needs, and chunks that are dropped after it.
    """
    following = _following(needs)
    uses: list[list[Decoded]] = []
    leaving: dict[int, list[Decoded]] = {}
    live: dict[int, tuple[Decoded, int]] = {}  # with the next job that needs it
    times: Counter[int] = Counter()
    latest: list[tuple[int, int]] = []  # heap; entries that are out of date are passed over
    for job, chunks in enumerate(needs):
        for chunk in chunks:
            if chunk not in live:
                times[chunk] += 1
            live[chunk] = Decoded(chunk, times[chunk]), following[job][chunk]
            heappush(latest, (-following[job][chunk], chunk))
        uses.append([live[chunk][0] for chunk in chunks])
        last = [chunk for chunk in chunks if following[job][chunk] == NEVER]
        leaving[job] = [live.pop(chunk)[0] for chunk in last]
        total = sum(n_bytes[chunk] for chunk in live)
        while total > LIVE and latest:
            when, chunk = heappop(latest)
            if chunk in live and live[chunk][1] == -when > job + 1:
                leaving[job].append(live.pop(chunk)[0])
                total -= n_bytes[chunk]
    return uses, leaving


def _following(needs: Sequence[Sequence[int]]) -> list[dict[int, int]]:
    """For each job and chunk that it needs, the next job that needs it."""
    following: list[dict[int, int]] = []
    found: dict[int, int] = {}
    for job in reversed(range(len(needs))):
        following.append({chunk: found.get(chunk, NEVER) for chunk in needs[job]})
        found |= dict.fromkeys(needs[job], job)
    return following[::-1]
