"""Checks that the sizes of fields of view and spots fit the image."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from st_predict._errors import Advice, InvalidValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict._sections._section import Section
    from st_predict.specs import CropSpec

__all__ = ["check_field", "check_sizes", "field_px", "spacing"]

logger = logging.getLogger(__name__)

LEAST, FEW = 1 / 8, 1 / 2
"""Share of the widest field of view filled by the whole image: below the first it is refused, below the second a warning is logged."""

DIAMETER_UM, SPACING_UM = (1.0, 1000.0), (1.0, 3000.0)
"""Range of assays, from bins of Visium HD to early arrays with a wide pitch."""

SPACING_PX = 3.0

_SAMPLED = 2000


def field_px(section: Section, crop: CropSpec) -> float:
    """Return the side of the widest field of view in level-0 pixels; masked levels do not count."""
    lacking = section.lacks(crop) if section.missing_levels == "mask" else []
    widest = max(level.fov for i, level in enumerate(crop.levels) if i not in lacking)
    return widest if crop.mpp is None or section.mpp is None else widest * crop.mpp / section.mpp.value


def check_field(section: Section, crop: CropSpec) -> None:
    """Compare the widest field of view with the image.

    Raises
    ------
    ValueError
        If the image could fill at most an eighth of it; the rest would be padding.
    """
    field = field_px(section, crop)
    height, width = section.reader.level_shapes[0]
    share = min(1.0, width / field) * min(1.0, height / field)
    if share >= FEW:
        return
    text = (
        f"Image {section.image_key!r} is {width} x {height} px and the widest field of view {field:.0f} px"
        f"{_resolution(section)}: at most {100 * share:.2g} % of it is image, the rest padding."
    )
    if share < LEAST:
        raise InvalidValueError(
            text, Advice("correct the resolution of the image with {}", "mpp"), "use an image of a larger area"
        )
    logger.warning(text)


def check_sizes(section: Section) -> None:
    """Warn of spot diameters and distances beyond all assays, in micrometres or, without mpp, in pixels."""
    xy = section.spots.xy
    distance = spacing(xy) if len(xy) > 1 else None
    if section.mpp is None:
        if distance is not None and distance < SPACING_PX:
            logger.warning("The spots of %r are %.3g px apart. Check the transformations.", section.region, distance)
        return
    mpp = section.mpp.value
    if section.spots.radius is not None:
        _warn(section, 2 * mpp * float(np.median(section.spots.radius)), DIAMETER_UM, what="wide")
    if distance is not None:
        _warn(section, mpp * distance, SPACING_UM, what="apart")


def spacing(xy: NDArray[np.float64]) -> float:
    """Return the median distance between nearest neighbours among at least two spots."""
    some = xy[:: max(1, len(xy) // _SAMPLED)]
    return float(np.median(cKDTree(xy).query(some, k=2)[0][:, 1]))


def _warn(section: Section, size_um: float, bounds: tuple[float, float], *, what: str) -> None:
    low, high = bounds
    if not low <= size_um <= high:
        logger.warning(
            "The spots of %r are %.3g um %s%s; the range of all assays is %g to %g um. Check the resolution and the transformations.",
            *(section.region, size_um, what, _resolution(section), low, high),
        )


def _resolution(section: Section) -> str:
    return "" if section.mpp is None else f" (at {section.mpp.value:.4g} um per pixel, from {section.mpp.source})"
