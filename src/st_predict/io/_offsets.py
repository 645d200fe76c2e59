"""Where the levels of an image that was cut out of another one begin."""

from __future__ import annotations

import math
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from spatialdata.transformations import Sequence, Translation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Offset = tuple[float, float]
    Patch = tuple[int, int, NDArray[np.float64]]  # left, top and pixels
    Read = Callable[[int, int, int, int, int], NDArray[np.uint8]]

__all__ = ["cut_at", "find_offsets"]

_PATCH = 48  # side of the patches that are compared, in pixels of the coarser level
_FAR_BETTER = 0.5  # factor of the mean squared difference
_GRID, _MOST = 5, 3  # places along each axis that are looked at, and patches that are compared


def cut_at(transformations: Mapping[str, Any]) -> Offset | None:
    """Where an image was cut out of another one by :func:`spatialdata.bounding_box_query`, which puts a translation first.

    Parameters
    ----------
    transformations
        Coordinate systems of the image, and how to get there.

    Returns
    -------
    Offset or None
        x and y in level-0 pixels of the other image; ``None`` for an image that was not cut out.
    """
    found = {_translation(transformation) for transformation in transformations.values()}
    if len(found) != 1:
        return None
    x, y = found.pop()
    whole = x == round(x) and y == round(y) and min(x, y) >= 0
    return (x, y) if whole and max(x, y) > 0 else None


def _translation(transformation: Any) -> Offset:
    """Sum of the translations that a sequence begins with: cutting twice puts two in front."""
    x = y = 0.0
    steps = _flat(transformation) if isinstance(transformation, Sequence) else []
    for step in takewhile(lambda step: isinstance(step, Translation), steps):
        dx, dy = step.to_translation_vector(("x", "y"))
        x, y = x + float(dx), y + float(dy)
    return x, y


def _flat(transformation: Any) -> list[Any]:
    """Transformations of a sequence, which may hold sequences, in the order in which they are applied."""
    if not isinstance(transformation, Sequence):
        return [transformation]
    return [step for part in transformation.transformations for step in _flat(part)]


def find_offsets(
    shapes: tuple[tuple[int, int], ...], downsamples: tuple[float, ...], cut: Offset, read: Read
) -> tuple[Offset, ...]:
    """Left and top edge of each level, in level-0 pixels.

    A cut that does not run along pixels of a level takes whole ones all the same, and nothing says which. Those that may
    have been taken are compared with the pixels of the next finer level. Level 0 begins at 0, or at -1: SpatialData rounds
    up where it says that the cut is, and to the nearest pixel where it cuts.

    Parameters
    ----------
    shapes
        ``(height, width)`` of each level, finest first.
    downsamples
        Width of a pixel of each level in level-0 pixels.
    cut
        From :func:`cut_at`.
    read
        ``read(x, y, width, height, level)`` gives ``(height, width, 3)``.
    """
    levels = [_Level(*level) for level in zip(range(len(shapes)), shapes, downsamples, strict=True)]
    patches = [_patches(level, read) for level in levels[1:]]
    best, least = [(0.0, 0.0)] * len(shapes), math.inf
    for start in ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (-1.0, -1.0)):
        offsets, error = [start], 0.0
        for fine, coarse, shown in zip(levels, levels[1:], patches, strict=False):
            own = [(0.0, 0.0)] if start == (0.0, 0.0) else []  # of an image that was moved, and not cut
            near = [(x, y) for x in _edges(cut[0], coarse.downsample) for y in _edges(cut[1], coarse.downsample)]
            found, more = _best([own, near], offsets[-1], shown, fine=fine, coarse=coarse, read=read)
            offsets, error = [*offsets, found], error + more
        if error < _FAR_BETTER * least:
            best, least = offsets, error
    return tuple(best)


def _edges(cut: float, downsample: float) -> list[float]:
    """Where a level may begin along one axis, in level-0 pixels: at a pixel near the cut."""
    pixels = range(math.floor(cut / downsample) - 1, math.ceil(cut / downsample) + 2)
    return [edge for pixel in pixels if abs(edge := pixel * downsample - cut) <= downsample]


class _Level(NamedTuple):
    """One level: number, ``(height, width)`` and width of a pixel in level-0 pixels."""

    number: int
    shape: tuple[int, int]
    downsample: float


def _best(
    groups: list[list[Offset]],
    before: Offset,
    patches: list[Patch],
    *,
    fine: _Level,
    coarse: _Level,
    read: Read,
) -> tuple[Offset, float]:
    """The edges of a level under which it shows what the finer one does, and by how much they differ.

    Candidates of a later group must do far better than earlier ones.
    """
    best, least = (0.0, 0.0), math.inf
    for choices in filter(None, groups):
        errors = np.zeros(len(choices))
        for patch in patches:
            errors += _errors(choices, before, patch, fine=fine, coarse=coarse, read=read)
        if errors.min() < _FAR_BETTER * least:
            best, least = choices[int(np.argmin(errors))], float(errors.min())
    return best, least


def _patches(coarse: _Level, read: Read) -> list[Patch]:
    """Places and pixels of the patches with the most contrast, away from the border."""
    height, width = (min(_PATCH, side - 4) for side in coarse.shape)
    if min(height, width) < 2:
        return []
    ys, xs = (
        np.unique(np.linspace(2, side - 2 - patch, _GRID).astype(int)).tolist()
        for side, patch in zip(coarse.shape, (height, width), strict=True)
    )
    found = [(x, y, read(x, y, width, height, coarse.number).astype(np.float64)) for y in ys for x in xs]
    return sorted(found, key=lambda one: -float(one[2].std(axis=(0, 1)).sum()))[:_MOST]


def _errors(
    choices: list[Offset], before: Offset, patch: Patch, *, fine: _Level, coarse: _Level, read: Read
) -> NDArray[np.float64]:
    """Mean squared difference of a patch from the means over the finer pixels that each choice puts it on."""
    x, y, shown = patch
    bounds = [
        [
            ((start + np.arange(n + 1)) * coarse.downsample + edge[axis] - before[axis]) / fine.downsample
            for edge in choices
        ]
        for axis, (start, n) in enumerate(zip((x, y), shown.shape[1::-1], strict=True))
    ]
    left, top = (max(0, math.floor(min(bound[0] for bound in along))) for along in bounds)
    right, bottom = (
        min(side, math.ceil(max(bound[-1] for bound in along)))
        for side, along in zip(fine.shape[::-1], bounds, strict=True)
    )
    pixels = read(left, top, right - left, bottom - top, fine.number).astype(np.float64)
    sums = np.pad(pixels.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    means = (_means(sums, of_x - left, of_y - top) for of_x, of_y in zip(*bounds, strict=True))
    return np.array([np.square(mean - shown).mean() for mean in means])


def _means(sums: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the boxes between edges, which may lie between pixels, from sums over all that is left and above."""
    boxes = np.diff(np.diff(_between(_between(sums, y, axis=0), x, axis=1), axis=0), axis=1)
    return np.asarray(boxes / np.outer(np.diff(y), np.diff(x))[..., None])


def _between(sums: NDArray[np.float64], at: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Interpolate linearly along an axis."""
    at = at.clip(0, sums.shape[axis] - 1)
    below = np.minimum(np.floor(at).astype(int), sums.shape[axis] - 2)
    share = (at - below)[(slice(None), None, None) if axis == 0 else (None, slice(None), None)]
    return np.asarray(sums.take(below, axis) * (1 - share) + sums.take(below + 1, axis) * share)
