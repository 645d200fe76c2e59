"""Index images: the spot at the centre of each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["rasterise"]

BLOCK = 4_000_000
"""Number of pixels to test at a time."""


def rasterise(
    xy: NDArray[np.float64], outlines: NDArray[np.float64] | list[NDArray[np.float64]], *, shape: tuple[int, int]
) -> NDArray[np.int32]:
    """Return the spot at the centre of each pixel; where spots overlap, the last one.

    Parameters
    ----------
    xy
        ``(n_spots, 2)``: centres in pixels.
    outlines
        ``(n_spots,)`` radii, or one polygon ``(n_corners, 2)`` per spot, in pixels.
    shape
        Height and width in pixels.

    Returns
    -------
    Spots, ``shape``; -1 where there is none.
    """
    index = np.full(shape, -1, dtype=np.int32)
    corners = None if isinstance(outlines, np.ndarray) else _pad(outlines)
    if corners is None:
        radii = np.asarray(outlines)[:, None]
        low, high = xy - radii, xy + radii
    else:
        low, high = corners.min(axis=1), corners.max(axis=1)
    first, last = np.ceil(low - 0.5).astype(np.int64), np.floor(high - 0.5).astype(np.int64)
    side = int((last - first + 1).max(initial=0))
    for rows in _blocks(len(xy), side):
        columns = first[rows, 0, None, None] + np.arange(side)[None, None, :]
        lines = first[rows, 1, None, None] + np.arange(side)[None, :, None]
        if corners is None:
            inside = _in_circle(columns + 0.5, lines + 0.5, xy[rows], radii[rows])
        else:
            inside = _in_polygon(columns + 0.5, lines + 0.5, corners[rows])
        inside &= (columns >= 0) & (columns < shape[1]) & (lines >= 0) & (lines < shape[0])
        spot, line, column = np.nonzero(inside)
        index[lines[spot, line, 0], columns[spot, 0, column]] = spot + rows.start
    return index


def _blocks(n: int, side: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, side * side))
    return (slice(start, min(start + step, n)) for start in range(0, n if side else 0, step))


def _pad(polygons: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return polygons as one array; the last corner of shorter ones is repeated."""
    n_corners = max((len(polygon) for polygon in polygons), default=0)
    return np.stack([np.pad(polygon, ((0, n_corners - len(polygon)), (0, 0)), mode="edge") for polygon in polygons])


def _in_circle(
    x: NDArray[np.floating], y: NDArray[np.floating], xy: NDArray[np.float64], radii: NDArray[np.float64]
) -> NDArray[np.bool_]:
    centres = xy[:, :, None, None]
    return np.asarray((x - centres[:, 0]) ** 2 + (y - centres[:, 1]) ** 2 <= radii[:, :, None] ** 2)


def _in_polygon(x: NDArray[np.floating], y: NDArray[np.floating], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Count how many edges lie to the right of each point: an odd number means inside."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    for start, end in zip(range(corners.shape[1]), [*range(1, corners.shape[1]), 0], strict=True):
        (x0, y0), (x1, y1) = (corners[:, place, :, None, None].swapaxes(0, 1) for place in (start, end))
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):  # level edges cross nothing
            at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
        inside ^= crosses & (x < at)
    return inside
