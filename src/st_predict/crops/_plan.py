"""Decide which pixels to read, before any pixel is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._keys import Keys
from st_predict._validated import Count, Positive, check
from st_predict.specs import CropSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict.specs import LevelSpec

__all__ = ["LevelPlan", "plan_crops"]

# Two pixel sizes that differ by less than this are the same: nothing is gained by resampling 224 px from 223.
_RTOL = 0.01


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """Plan for reading one level of all crops.

    Parameters
    ----------
    level
        Level of the pyramid to read.
    read_size
        Side of the square to read, in pixels of ``level``.
    size
        Side of the square that the network receives; the pixels are resampled to it.
    origins
        Left and top edge ``(x, y)`` of the squares, in pixels of ``level``, ``(n_spots, 2)``. They may lie outside the image.
    missing
        Whether the image lacks this level. It is then not read, and masked in the batches.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> spots, reader = stp.io.read_spots(sdata), stp.io.open_pyramid(sdata)
    >>> spec = stp.specs.CropSpec(levels=(stp.specs.LevelSpec(size=64), stp.specs.LevelSpec(size=64, downsample=2)))
    >>> plan = stp.crops.plan_crops(spots.xy, spec, downsamples=reader.downsamples)
    >>> [(level.level, level.read_size, level.size) for level in plan]
    [(0, 64, 64), (1, 64, 64)]
    """

    level: int
    read_size: int
    size: int
    origins: NDArray[np.int64]
    missing: bool = False


def plan_crops(
    xy: NDArray[np.float64],
    spec: CropSpec,
    *,
    downsamples: Sequence[float],
    mpp: float | None = None,
    offsets: Sequence[tuple[float, float]] | None = None,
    missing_levels: Literal["error", "mask"] = "error",
    shape: tuple[int, int] | None = None,
) -> tuple[LevelPlan, ...]:
    """Plan the crops around spot centres.

    Each level is cut from the coarsest stored level that is at least as fine, so that nothing is ever upsampled. Squares are
    aligned to whole pixels of that level: a crop is off by at most half such a pixel.

    Parameters
    ----------
    xy
        Centres in continuous pixels of level 0 (pixel ``j`` covers ``[j, j + 1)``), ``(n_spots, 2)``.
    spec
        Crops that the network reads.
    downsamples
        Width of a pixel of each stored level in pixels of level 0, finest first.
    mpp
        Micrometres per pixel of level 0; required if ``spec.mpp`` is set.
    offsets
        Left and top edge ``(x, y)`` of each stored level in pixels of level 0; by default (0, 0). See :func:`st_predict.io.level_offsets`.
    missing_levels
        Handling of levels that cannot be had: ``"error"`` refuses levels with finer pixels than the image has, ``"mask"``
        marks them as missing; so are levels with a field of view wider than the image, if ``shape`` is given, except the
        finest that can be read.
    shape
        Height and width of level 0 in pixels. Without it, or with ``"error"``, what lies outside the image is padded.

    Returns
    -------
    tuple of LevelPlan
        One :class:`LevelPlan` per level of ``spec``.

    Raises
    ------
    ValueError
        If an argument is of another type, shape or range, if ``mpp`` is required and unknown, or if the image is coarser than
        the network needs; with ``missing_levels="mask"``, coarser than all of its levels.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> spots, reader = stp.io.read_spots(sdata), stp.io.open_pyramid(sdata)
    >>> spec = stp.specs.CropSpec(levels=(stp.specs.LevelSpec(size=64), stp.specs.LevelSpec(size=64, downsample=2)))
    >>> plan = stp.crops.plan_crops(spots.xy, spec, downsamples=reader.downsamples)
    >>> plan[1].origins[0].tolist()  # of the first spot, in pixels of level 1
    [21, 23]
    """
    if not isinstance(spec, CropSpec):
        raise InvalidTypeError(f"spec must be a CropSpec, got {spec!r}.")
    mpp = check("mpp", mpp, Positive | None)
    xy, downsamples = _finite("xy", xy, "(n_spots, 2)"), _finite("downsamples", downsamples, "(n_levels,)").tolist()
    edges = np.zeros((len(downsamples), 2)) if offsets is None else _finite("offsets", offsets, "(n_levels, 2)")
    if len(edges) != len(downsamples):
        raise InvalidValueError(f"offsets must be one per level, got {len(edges)} for {len(downsamples)} levels.")
    mask = check("missing_levels", missing_levels, Literal["error", "mask"]) == "mask"
    sides = check("shape", shape, tuple[Count, Count] | None)
    base, finest = _base_downsample(spec, mpp), min(downsamples)
    present = [_is_fine_enough(finest, base * level.downsample) for level in spec.levels]
    if not all(present) and not (mask and any(present)):
        _refuse_coarse(spec, mpp, base, all_levels=not any(present))
    if mask and sides:
        present = _inside(spec, base, present, side=min(sides))
    return tuple(
        _plan_level(xy, level, base * level.downsample, downsamples=downsamples, edges=edges)
        if here
        else _absent(level)
        for level, here in zip(spec.levels, present, strict=True)
    )


def _finite(name: str, values: Any, shape: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{name} must be numbers, {shape} ({error}).") from error
    if array.ndim != (2 if "2" in shape else 1) or (array.ndim == 2 and array.shape[1] != 2) or array.shape == (0,):
        raise InvalidValueError(f"{name} must be {shape}, got the shape {array.shape}.")
    if not np.isfinite(array).all() or (array.ndim == 1 and (array <= 0).any()):
        raise InvalidValueError(f"{name} must be finite{' and positive' if array.ndim == 1 else ''}, {shape}.")
    return array


def _base_downsample(spec: CropSpec, mpp: float | None) -> float:
    """Pixels of level 0 per pixel of the finest crop level."""
    if spec.mpp is None:
        return 1.0
    if mpp is None:
        raise InvalidValueError(
            f"The model sees {spec.mpp:.4g} um/px, and the mpp of the image is unknown.",
            Advice("give it with {}", "mpp"),
            f"set a transformation of the image to a coordinate system called {Keys.UM!r}",
        )
    return spec.mpp / mpp


def _is_fine_enough(finest: float, downsample: float) -> bool:
    """Whether the finest stored level has pixels at most as wide as ``downsample``."""
    return finest <= downsample * (1 + _RTOL)


def _inside(spec: CropSpec, base: float, present: list[bool], *, side: int) -> list[bool]:
    """Keep present levels that are not wider than the image, and the finest in any case."""
    first = present.index(True)
    fits = [level.fov * base <= side * (1 + _RTOL) for level in spec.levels]
    return [here and (i == first or fits[i]) for i, here in enumerate(present)]


def _refuse_coarse(spec: CropSpec, mpp: float | None, base: float, *, all_levels: bool) -> NoReturn:
    """Refuse an image that is coarser than a level of the network, or than all of them."""
    mask = (
        []
        if all_levels or len(spec.levels) == 1
        else [Advice("predict without the missing levels with {}", "missing_levels", "mask")]
    )
    widths = [level.downsample for level in spec.levels]
    finest = max(widths) if all_levels else min(widths)
    if spec.mpp is None or mpp is None:
        raise InvalidValueError(
            f"The model needs pixels as wide as {base * finest:.3g} pixels of level 0, finer than the image has.",
            "use the full-resolution image",
            *mask,
        )
    needed = spec.mpp * finest
    raise InvalidValueError(
        f"The image has {mpp:.4g} um/px, the model needs {needed:.4g} um/px or finer. Upsampling would show it "
        "something else than it was trained on.",
        "use the full-resolution image, for Visium with fullres_image_file= of spatialdata_io.visium",
        Advice("correct the resolution of the image with {}", "mpp"),
        *mask,
        "train a network at a coarser resolution with st_predict.tl.train(..., mpp=)",
        Advice("show the encoder a coarser resolution with {}", "at_mpp"),
    )


def _absent(level: LevelSpec) -> LevelPlan:
    """Plan of a level that the image lacks."""
    return LevelPlan(level=0, read_size=level.size, size=level.size, origins=np.empty((0, 2), np.int64), missing=True)


def _plan_level(
    xy: NDArray[np.float64],
    spec: LevelSpec,
    downsample: float,
    *,
    downsamples: Sequence[float],
    edges: NDArray[np.float64],
) -> LevelPlan:
    level = _best_level(downsample, downsamples)
    ratio = downsample / downsamples[level]
    read_size = spec.size if abs(ratio - 1) <= _RTOL else round(spec.size * ratio)
    origins = np.rint((xy - edges[level]) / downsamples[level] - read_size / 2).astype(np.int64)
    return LevelPlan(level=level, read_size=read_size, size=spec.size, origins=origins)


def _best_level(downsample: float, downsamples: Sequence[float]) -> int:
    """Coarsest level that is at least as fine as ``downsample``."""
    return [i for i, stored in enumerate(downsamples) if _is_fine_enough(stored, downsample)][-1]
