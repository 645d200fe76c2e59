"""Cut crops out of chunks: in threads where the image is read, or on a device."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict, deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from st_predict.crops._atlas import Atlas, staged
from st_predict.crops._chunks import Chunks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray
    from torch import Tensor

    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["DeviceCutter", "HostCutter", "Job"]


class Job(NamedTuple):
    """Spots that are cut together: rows of the plan, and their places in the batch."""

    number: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


class HostCutter:
    """Cuts crops in the threads that decode the chunks.

    Jobs are begun in order and run in the background until :meth:`finish`.
    """

    def __init__(
        self, reader: PyramidReader, plan: Sequence[LevelPlan], jobs: Sequence[Job], *, pool: Executor, pad_value: int
    ) -> None:
        rows = [job.rows for job in jobs]
        self._levels = [Chunks(reader, level, rows, pool=pool, prepare=np.asarray) for level in plan]
        self._pool, self._pad_value = pool, pad_value
        self._buffers = Buffers(interleaved=getattr(reader, "interleaved", False))
        self._begun: deque[tuple[list[NDArray[np.uint8]], list[Future[None]]]] = deque()

    def begin(self, jobs: Sequence[Job]) -> None:
        """Begin to cut a batch."""
        n = sum(len(job.rows) for job in jobs)
        crops = [self._buffers.take((n, 3, c.plan.size, c.plan.size)) for c in self._levels]
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
        for chunks in self._levels:
            chunks.fetch(job.number)
        # Chunks are in the queue before the job that waits for them, so that some thread always gets on.
        return self._pool.submit(self._cut, job, crops)

    def _cut(self, job: Job, crops: Sequence[NDArray[np.uint8]]) -> None:
        for chunks, crop in zip(self._levels, crops, strict=True):
            size = chunks.plan.read_size
            if size == chunks.plan.size:
                self._read(chunks, job, crop, job.places)
            else:
                read = np.empty((len(job.rows), 3, size, size), dtype=np.uint8)
                self._read(chunks, job, read, np.arange(len(job.rows)))
                crop[job.places] = resize(torch.from_numpy(read), chunks.plan.size).numpy()

    def _read(
        self, chunks: Chunks[NDArray[np.uint8]], job: Job, out: NDArray[np.uint8], places: NDArray[np.int64]
    ) -> None:
        out[places[chunks.leave_image(job.rows)]] = self._pad_value
        pixels, crops = chunks.needed(job.number), [out[place] for place in places.tolist()]
        for spot, chunk, in_square, in_chunk in chunks.pieces(job.number):
            crops[spot][in_square] = pixels[chunk][in_chunk]


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
        self._levels = [Chunks(reader, level, rows, pool=pool, prepare=staged) for level in plan]
        self._device = device
        self._atlases = [Atlas(chunks.edges, pad_value=pad_value, device=device) for chunks in self._levels]

    def begin(self, jobs: Sequence[Job]) -> None:
        """Begin to decode the chunks of a batch."""
        for job in jobs:
            for chunks in self._levels:
                chunks.fetch(job.number)

    def finish(self, jobs: Sequence[Job]) -> tuple[Tensor, ...]:
        """Cut a batch; return its crops, ``(n, 3, size, size)`` per level, on the device."""
        levels = zip(self._levels, self._atlases, strict=True)
        cut = [[self._cut(*level, job) for job in jobs] for level in levels]
        if len(jobs) == 1 and np.all(jobs[0].places[:-1] < jobs[0].places[1:]):
            return tuple(crops for (crops,) in cut)
        back = torch.from_numpy(np.argsort(np.concatenate([job.places for job in jobs]))).to(self._device)
        return tuple(torch.cat(crops)[back] for crops in cut)

    @staticmethod
    def _cut(chunks: Chunks[Tensor], atlas: Atlas, job: Job) -> Tensor:
        for chunk, pixels in chunks.needed(job.number).items():
            if chunk not in atlas:
                atlas.add(chunk, pixels)
        crops = atlas.cut(chunks.plan.origins[job.rows], chunks.plan.read_size)
        for chunk in chunks.drop(job.number):
            atlas.drop(chunk)
        return resize(crops, chunks.plan.size)


def resize(x_BCSS: Tensor, size: int) -> Tensor:
    """Resample uint8 squares to ``size`` by bilinear interpolation that averages over what it shrinks."""
    if x_BCSS.shape[-1] == size:
        return x_BCSS

    def resized(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)

    if x_BCSS.device.type == "cpu":  # the only device that resamples 8 bits
        return resized(x_BCSS)
    return resized(x_BCSS.float()).round().clamp(0, 255).to(torch.uint8)
