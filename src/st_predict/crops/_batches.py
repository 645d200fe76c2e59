"""Turn a plan into batches of tensors."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._validated import Byte, Count, check
from st_predict.crops._batch import Batch
from st_predict.crops._chunks import LIVE
from st_predict.crops._cutters import DeviceCutter, HostCutter, Job
from st_predict.crops._plan import LevelPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from st_predict.io import PyramidReader

__all__ = ["iter_batches", "reading_order"]

_JOB = 32  # spots that are cut at a time by one thread,
_DEVICE_JOB = 256  # or by a device
_AHEAD = (
    2  # batches whose chunks are decoded while one is used; crops are cut one batch ahead, as they need more memory
)


def iter_batches(
    reader: PyramidReader,
    plan: Sequence[LevelPlan],
    *,
    batch_size: int | None = 64,
    pad_value: int = 255,
    n_threads: int | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """Read the planned crops, and prefetch the next batches while one is used.

    Every chunk of the image that a crop touches is decoded once, and kept only as long as crops need it. Spots therefore come in
    bands of the image, from left to right; ``batch.index`` has their table rows. If the chunks of one band across the image need
    more than 256 MiB per level, the image is read in upright stripes, and chunks at their edges are decoded again.

    Parameters
    ----------
    reader
        Pyramid that the plan was made for.
    plan
        Result of :func:`plan_crops`.
    batch_size
        Number of spots per batch; ``None`` gives all spots in one batch, in the order of the table.
    pad_value
        Grey value outside the image.
    n_threads
        Number of reading threads; by default one per core, up to 8.
    device
        Device on which crops are cut: each chunk is copied to it once, instead of crops, which overlap. By default crops are cut
        where the image is read.

    Yields
    ------
    Batch
        Batches with crops ``(n, 3, size, size)`` uint8 and their index. Crops of a reader that is ``interleaved``, such
        as a reader of TIFF tiles, are channels-last in memory. Levels that the plan marks as missing have crops of
        ``pad_value``, and are False in ``level_mask``. Memory: three batches, and the chunks of about one band across
        the image.

    Raises
    ------
    ValueError
        If an argument is of another type or range.
    TypeError
        If ``reader`` or ``plan`` is of another type.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> spots, reader = stp.io.read_spots(sdata), stp.io.open_pyramid(sdata)
    >>> spec = stp.specs.CropSpec(levels=(stp.specs.LevelSpec(size=64), stp.specs.LevelSpec(size=64, downsample=2)))
    >>> plan = stp.crops.plan_crops(spots.xy, spec, downsamples=reader.downsamples)
    >>> for batch in stp.crops.iter_batches(reader, plan, batch_size=16):
    ...     print([tuple(crop.shape) for crop in batch.crops])
    [(16, 3, 64, 64), (16, 3, 64, 64)]
    [(3, 3, 64, 64), (3, 3, 64, 64)]
    """
    _check_source(reader, plan)
    batch_size, n_threads = check("batch_size", batch_size, Count | None), check("n_threads", n_threads, Count | None)
    pad_value, device = check("pad_value", pad_value, Byte), _device(device)
    plan = list(plan)
    present = [level for level in plan if not level.missing]
    order = reading_order(reader, present[0], n_stripes=_n_stripes(reader, present))
    batches = list(_split(order, batch_size, _JOB if device is None else _DEVICE_JOB))
    jobs = [job for batch in batches for job in batch.jobs]
    with ThreadPoolExecutor(min(8, _n_cores()) if n_threads is None else n_threads) as pool:
        cutter = (
            HostCutter(reader, present, jobs, pool=pool, pad_value=pad_value)
            if device is None
            else DeviceCutter(reader, present, jobs, pool=pool, pad_value=pad_value, device=device)
        )
        try:
            for used in range(-1, len(batches)):
                for batch in batches[used + 1 : used + 2]:
                    cutter.begin(batch.jobs)
                for batch in batches[used + _AHEAD : used + _AHEAD + 1]:
                    cutter.fetch(batch.jobs)
                if used >= 0:
                    index = torch.from_numpy(batches[used].index)
                    crops = cutter.finish(batches[used].jobs)
                    yield _with_missing(Batch(crops=crops, index=index), plan, pad_value)
        finally:
            pool.shutdown(cancel_futures=True)


def _with_missing(batch: Batch, plan: Sequence[LevelPlan], pad_value: int) -> Batch:
    """Add grey crops of levels that the image lacks, and the mask of levels."""
    if len(batch.crops) == len(plan):
        return batch
    found, (first, *_) = iter(batch.crops), batch.crops
    crops = tuple(
        first.new_full((len(batch), 3, level.size, level.size), pad_value) if level.missing else next(found)
        for level in plan
    )
    mask = torch.tensor([not level.missing for level in plan], device=first.device).repeat(len(batch), 1)
    return replace(batch, crops=crops, level_mask=mask)


def _check_source(reader: Any, plan: Any) -> None:
    if not all(hasattr(reader, name) for name in ("edges", "read")):
        raise InvalidTypeError(
            f"reader must be a PyramidReader, got {type(reader).__name__}.",
            "open one with st_predict.io.open_pyramid",
        )
    if not isinstance(plan, list | tuple) or not plan or not all(isinstance(level, LevelPlan) for level in plan):
        raise InvalidTypeError(f"plan must be one LevelPlan per level, got {plan!r}.", "make it with plan_crops")
    if all(level.missing for level in plan):
        raise InvalidValueError("All levels of plan are missing.", "make it with plan_crops")


def _device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    if not isinstance(device, str | torch.device):
        raise InvalidTypeError(f"device must be a device of torch, such as 'cpu' or 'cuda', got {device!r}.")
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise InvalidValueError(f"The device {str(device)!r} cannot be used: {error}") from error


def _n_cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class _Rows:
    """The spots of a batch, and the jobs that it is cut in."""

    index: NDArray[np.int64]
    jobs: list[Job]


def _split(order: NDArray[np.int64], batch_size: int | None, job_size: int) -> Iterator[_Rows]:
    """Split spots into batches and these into jobs; without a ``batch_size`` all are one batch, in the order of the table."""
    numbers = count()
    step = batch_size or max(len(order), 1)
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        places = np.arange(len(rows)) if batch_size else rows
        cuts = range(0, len(rows), job_size)
        jobs = [Job(next(numbers), rows[i : i + job_size], places[i : i + job_size]) for i in cuts]
        yield _Rows(rows if batch_size else np.arange(len(order)), jobs)


def reading_order(reader: PyramidReader, plan: LevelPlan, *, n_stripes: int = 1) -> NDArray[np.int64]:
    """Rows of the plan sorted by the band of chunks that their crops begin in, then from left to right.

    Parameters
    ----------
    reader
        Pyramid that the plan was made for.
    plan
        Level whose chunks count.
    n_stripes
        Number of upright stripes of the image that are read one after the other.
    """
    x, y = plan.origins.T
    y_edges, x_edges = reader.edges(plan.level)
    stripe = x * n_stripes // max(int(x_edges[-1]), 1)
    return np.lexsort((x, np.searchsorted(y_edges, y, side="right"), stripe))


def _n_stripes(reader: PyramidReader, plan: Sequence[LevelPlan]) -> int:
    """Number of stripes into which an image is divided so that the chunks under one row of crops fit into memory."""
    return max(math.ceil(_bytes_across(reader, level) / LIVE) for level in plan)


def _bytes_across(reader: PyramidReader, plan: LevelPlan) -> int:
    y, x = reader.edges(plan.level)
    n_rows = min(int(y[-1]), plan.read_size + 2 * int(np.diff(y).max(initial=0)))
    return 3 * n_rows * int(x[-1])
