"""Cut crops out of chunks: in threads where the image is read, or on a device."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict, deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from st_predict._memory import in_parts
from st_predict.crops._atlas import Atlas, staged
from st_predict.crops._chunks import ALL, chunks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray
    from torch import Tensor

    from st_predict.crops._chunks import Squares
    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["DeviceCutter", "HostCutter", "Job"]

_TOGETHER = 1 << 20  # pixels of the squares that are read before they are resized, so that memory depends on no ratio
_ON_DEVICE = 1 << 25  # the same on a GPU, where a few large steps are faster
_WHOLE = 512  # side of the largest squares that torch resizes at once; it copies them,
_BAND = 1 << 18  # and pixels of a band of larger ones. After large blocks are freed, malloc keeps small ones


class Job(NamedTuple):
    """Spots that are cut together: rows of the plan, and their places in the batch."""

    number: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


class HostCutter:
    """Cuts crops in the threads that decode the chunks.

    Batches are fetched, begun and finished in order. The first two return at once: the work is done in the background.
    """

    def __init__(
        self, reader: PyramidReader, plan: Sequence[LevelPlan], jobs: Sequence[Job], *, pool: Executor, pad_value: int
    ) -> None:
        rows = [job.rows for job in jobs]
        self._levels = chunks_of(reader, plan, rows, pool=pool, prepare=np.asarray)
        self._sizes = [level.size for level in plan]
        self._pool, self._pad_value = pool, pad_value
        self._buffers = Buffers(interleaved=getattr(reader, "interleaved", False))
        self._begun: deque[tuple[list[NDArray[np.uint8]], list[Future[None]]]] = deque()

    def fetch(self, jobs: Sequence[Job]) -> None:
        """Begin to decode the chunks of a batch."""
        for job in jobs:
            for chunks in self._levels:
                chunks.fetch(job.number)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Begin to cut a batch, and to decode its chunks unless it was fetched."""
        n = sum(len(job.rows) for job in jobs)
        crops = [self._buffers.take((n, 3, size, size)) for size in self._sizes]
        self._begun.append((crops, [self._submit(job, crops) for job in jobs]))

    def finish(self, jobs: Sequence[Job]) -> tuple[Tensor, ...]:
        """Wait for the batch that was begun first; return its crops, ``(n, 3, size, size)`` per level."""
        crops, futures = self._begun.popleft()
        for job, future in zip(jobs, futures, strict=True):
            future.result()
            for chunks in self._levels:
                chunks.drop(job.number)
        return tuple(torch.from_numpy(crop) for crop in crops)

    def _submit(self, job: Job, crops: Sequence[NDArray[np.uint8]]) -> Future[None]:
        # Chunks are in the queue before the job that waits for them, so that some thread always gets on.
        self.fetch([job])
        return self._pool.submit(self._cut, job, crops)

    def _cut(self, job: Job, crops: Sequence[NDArray[np.uint8]]) -> None:
        for chunks in self._levels:
            pixels = chunks.needed(job.number)
            for level, squares in chunks.squares.items():
                self._cut_level(squares, pixels, job, crops[level])

    def _cut_level(
        self, squares: Squares, pixels: dict[int, NDArray[np.uint8]], job: Job, crops: NDArray[np.uint8]
    ) -> None:
        n, size = len(job.rows), squares.plan.read_size
        if size == squares.plan.size:
            self._read(squares, pixels, job, out=crops, part=ALL, places=job.places)
            return
        if size > _WHOLE:
            for spot, place in enumerate(job.places.tolist()):
                crops[place] = self._shrunk(squares, pixels, job, spot)
            return
        # a square may be much larger than the crop that is made of it, so only a few exist at a time
        read = self._buffers.take((min(_n_together(size), n), 3, size, size))
        for part in _parts(n, size):
            places = np.arange(part.stop - part.start)
            self._read(squares, pixels, job, out=read, part=part, places=places)
            crops[job.places[part]] = resize(torch.from_numpy(read[: len(places)]), squares.plan.size).numpy()

    def _shrunk(self, squares: Squares, pixels: dict[int, NDArray[np.uint8]], job: Job, spot: int) -> NDArray[np.uint8]:
        """Read a large square band by band, and resize it: ``(3, size, size)``."""
        pieces = list(squares.pieces(job.number, slice(spot, spot + 1)))
        leaves_image = squares.leave_image(job.rows[spot : spot + 1]).any()

        def read(band: slice) -> Tensor:
            out = np.empty((3, band.stop - band.start, squares.plan.read_size), np.uint8)
            if leaves_image:
                out[:] = self._pad_value
            for _, chunk, (_, rows, cols), (_, chunk_rows, chunk_cols) in pieces:
                top, bottom = max(rows.start, band.start), min(rows.stop, band.stop)
                if top < bottom:
                    first = chunk_rows.start + top - rows.start
                    source = pixels[chunk][:, first : first + bottom - top, chunk_cols]
                    out[:, top - band.start : bottom - band.start, cols] = source
            return torch.from_numpy(out)[None]

        return resize_bands(read, squares.plan.read_size, squares.plan.size)[0].numpy()

    def _read(
        self,
        squares: Squares,
        pixels: dict[int, NDArray[np.uint8]],
        job: Job,
        *,
        out: NDArray[np.uint8],
        part: slice,
        places: NDArray[np.int64],
    ) -> None:
        """Copy the squares of a part of a job to some places of ``out``."""
        out[places[squares.leave_image(job.rows[part])]] = self._pad_value
        crops = [out[place] for place in places.tolist()]
        for spot, chunk, in_square, in_chunk in squares.pieces(job.number, part):
            crops[spot][in_square] = pixels[chunk][in_chunk]


def _n_together(size: int) -> int:
    """Number of squares of this side that are read before they are resized."""
    return max(1, _TOGETHER // size**2)


def _parts(n: int, size: int) -> list[slice]:
    """Parts of ``n`` squares of this side that are read together; one that is empty if there are none."""
    step = _n_together(size)
    return [slice(start, min(start + step, n)) for start in range(0, max(n, 1), step)]


class Buffers:
    """Pool of memory for crops, reused once its crops are freed: allocating memory takes as long as cutting crops.

    Parameters
    ----------
    interleaved
        Whether the three colours of a pixel lie side by side, as in the chunks that crops are copied from: copying from
        one layout to the other takes two to three times as long.
    """

    def __init__(self, *, interleaved: bool = False) -> None:
        self._free: defaultdict[tuple[int, ...], list[NDArray[np.uint8]]] = defaultdict(list)
        self._interleaved = interleaved

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an uninitialised uint8 array of this shape."""
        free = self._free[shape]
        memory = free.pop() if free else _allocate(shape)
        n, colours, height, width = shape
        view = memory.reshape(n, height, width, colours).transpose(0, 3, 1, 2) if self._interleaved else memory[:]
        weakref.finalize(view, free.append, memory)  # slices and tensors of the view keep it alive
        return view


def _allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        size = math.prod(shape) / 1e9
        raise MemoryError(
            f"{shape[0]} crops of {shape[-1]} x {shape[-1]} px need {size:.3g} GB, which do not fit into memory."
        ) from error


class DeviceCutter:
    """Copies chunks to a device, and cuts crops there."""

    def __init__(
        self,
        reader: PyramidReader,
        plan: Sequence[LevelPlan],
        jobs: Sequence[Job],
        *,
        pool: Executor,
        pad_value: int,
        device: torch.device,
    ) -> None:
        rows = [job.rows for job in jobs]
        self._levels = chunks_of(reader, plan, rows, pool=pool, prepare=staged)
        self._device = device
        self._atlases = [Atlas(chunks.edges, pad_value=pad_value, device=device) for chunks in self._levels]

    def fetch(self, jobs: Sequence[Job]) -> None:
        """Begin to decode the chunks of a batch."""
        for job in jobs:
            for chunks in self._levels:
                chunks.fetch(job.number)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Begin to decode the chunks of a batch unless it was fetched: a device cuts a batch when it is finished."""
        self.fetch(jobs)

    def finish(self, jobs: Sequence[Job]) -> tuple[Tensor, ...]:
        """Cut a batch; return its crops, ``(n, 3, size, size)`` per level, on the device."""
        cut = [self._cut(job) for job in jobs]
        if len(jobs) == 1 and np.all(jobs[0].places[:-1] < jobs[0].places[1:]):
            return cut[0]
        back = torch.from_numpy(np.argsort(np.concatenate([job.places for job in jobs]))).to(self._device)
        return tuple(torch.cat(crops)[back] for crops in zip(*cut, strict=True))

    def _cut(self, job: Job) -> tuple[Tensor, ...]:
        crops: dict[int, Tensor] = {}
        for chunks, atlas in zip(self._levels, self._atlases, strict=True):
            for chunk, pixels in chunks.needed(job.number).items():
                if chunk not in atlas:
                    atlas.add(chunk, pixels)
            for level, squares in chunks.squares.items():
                crops[level] = _cut_squares(atlas, squares.plan, job.rows)
            for chunk in chunks.drop(job.number):
                atlas.drop(chunk)
        return tuple(crops[level] for level in sorted(crops))


def _cut_squares(atlas: Atlas, plan: LevelPlan, rows: NDArray[np.int64]) -> Tensor:
    size = plan.read_size

    def resized(part: slice) -> Tensor:
        return resize(atlas.cut(plan.origins[rows[part]], size), plan.size)

    crops = in_parts(len(rows), resized, size=size, together=_ON_DEVICE // size**2)
    return crops[0] if len(crops) == 1 else torch.cat(crops)


def resize(x_BCSS: Tensor, size: int) -> Tensor:
    """Resample uint8 squares to ``size`` by bilinear interpolation that averages over what it shrinks."""
    if x_BCSS.shape[-1] == size:
        return x_BCSS

    if x_BCSS.device.type != "cpu":  # the only device that resamples 8 bits
        return _resampled(x_BCSS.float(), (size, size)).round().clamp(0, 255).to(torch.uint8)
    side = x_BCSS.shape[-1]
    return _resampled(x_BCSS, (size, size)) if side <= _WHOLE else resize_bands(lambda b: x_BCSS[:, :, b], side, size)


def resize_bands(read: Callable[[slice], Tensor], side: int, size: int) -> Tensor:
    """Resample uint8 squares that are read band by band: the pixels of :func:`resize`, as torch resamples rows first.

    Parameters
    ----------
    read
        Function that returns some rows of the squares, ``(n, 3, n_rows, side)`` uint8.
    side, size
        Side of the squares, and of the result, in pixels.

    Returns
    -------
    Tensor
        ``(n, 3, size, size)`` uint8.
    """
    n_rows = max(1, _BAND // side)
    bands = [slice(top, min(top + n_rows, side)) for top in range(0, side, n_rows)]
    narrow = torch.cat([_resampled(read(band), (band.stop - band.start, size)) for band in bands], dim=2)
    return _resampled(narrow, (size, size))


def _resampled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)
