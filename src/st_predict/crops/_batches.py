"""Turn a plan into batches of tensors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from st_predict.crops._batch import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from st_predict.crops._plan import LevelPlan
    from st_predict.io import PyramidReader

__all__ = ["iter_batches", "reading_order"]

_BAND = 1024  # level-0 pixels; spots of one band share the chunks of an image


def iter_batches(
    reader: PyramidReader,
    plan: Sequence[LevelPlan],
    *,
    batch_size: int | None = 64,
    pad_value: int = 255,
    n_threads: int = 2,
) -> Iterator[Batch]:
    """Read the planned crops; the next batch is read while the last one is used.

    Spots come in an order that keeps reading local: ``batch.index`` says which they are.

    Parameters
    ----------
    reader
        Pyramid that the plan was made for.
    plan
        From :func:`plan_crops`.
    batch_size
        Spots a batch; ``None`` gives all at once, in the order of the table.
    pad_value
        Grey value of what lies outside the image.
    n_threads
        Threads that read.

    Yields
    ------
    Batches with crops ``(n, 3, size, size)`` uint8 and their index. Memory: ``n_threads + 1`` batches.

    Raises
    ------
    ValueError
        If ``batch_size`` or ``n_threads`` is not positive.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, or None for all spots at once; got {batch_size}.")
    n_spots = len(plan[0].origins)
    order = np.arange(n_spots) if batch_size is None else reading_order(plan[0], reader.downsamples)
    step = batch_size or max(n_spots, 1)
    chunks = [order[start : start + step] for start in range(0, n_spots, step)]
    with ThreadPoolExecutor(n_threads) as pool:
        pending = [pool.submit(_read_batch, reader, plan, rows, pad_value) for rows in chunks[:n_threads]]
        for following in [*chunks[n_threads:], *[None] * len(pending)]:
            batch = pending.pop(0).result()
            if following is not None:
                pending.append(pool.submit(_read_batch, reader, plan, following, pad_value))
            yield batch


def reading_order(plan: LevelPlan, downsamples: Sequence[float]) -> NDArray[np.int64]:
    """Rows of the plan sorted by horizontal bands of the image, then from left to right."""
    x, y = (plan.origins * downsamples[plan.level]).T
    return np.lexsort((x, y // _BAND))


def _read_batch(reader: PyramidReader, plan: Sequence[LevelPlan], rows: NDArray[np.int64], pad_value: int) -> Batch:
    crops = tuple(_read_level(reader, level, rows, pad_value) for level in plan)
    return Batch(crops=crops, index=torch.from_numpy(rows))


def _read_level(reader: PyramidReader, plan: LevelPlan, rows: NDArray[np.int64], pad_value: int) -> Tensor:
    crops = np.full((len(rows), plan.read_size, plan.read_size, 3), pad_value, dtype=np.uint8)
    for crop, (x, y) in zip(crops, plan.origins[rows].tolist(), strict=True):
        _read_into(crop, reader, (x, y), level=plan.level)
    x_BCHW = torch.from_numpy(crops).permute(0, 3, 1, 2)
    if plan.read_size == plan.size:
        return x_BCHW.contiguous()
    return F.interpolate(x_BCHW, size=(plan.size, plan.size), mode="bilinear", antialias=True).contiguous()


def _read_into(crop: NDArray[np.uint8], reader: PyramidReader, origin: tuple[int, int], *, level: int) -> None:
    """Fill the part of ``crop`` that lies inside the image."""
    (x, y), size = origin, len(crop)
    height, width = reader.level_shapes[level]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + size, width), min(y + size, height)
    if right > left and bottom > top:
        inside = reader.read(left, top, right - left, bottom - top, level=level)
        crop[top - y : bottom - y, left - x : right - x] = inside
