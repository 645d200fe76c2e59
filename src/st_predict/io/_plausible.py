"""Whether an image of stained tissue can have a resolution."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from st_predict._errors import Advice, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict.io._resolution import Mpp

__all__ = ["check_range", "compare"]

logger = logging.getLogger(__name__)

POSSIBLE_UM = (0.05, 50.0)
"""From about half of what light can resolve at all to the width of a spot."""

USUAL_UM = (0.1, 20.0)
"""From a scanner with a 100x objective to the preview image of a slide."""

SAME = 1.1
"""Two sources agree up to this factor: spots of early assays lie on an uneven lattice."""

IMPOSSIBLE = 5.0
"""Factor between two sources that only a wrong unit or a wrong file explains."""

_DPI = (72, 96, 100, 150, 200, 300, 600, 1200)
_WAY_OUT = Advice("give the right one with {}", "mpp")


def check_range(found: Mpp, image_key: str, *, refuse: bool = True) -> None:
    """Refuse a resolution that no microscope has, and warn of one that few have.

    Parameters
    ----------
    found
        Micrometres per pixel of level 0.
    image_key
        Name of the image, for messages.
    refuse
        Whether an impossible one is an error; else it is a warning too.

    Raises
    ------
    ValueError
        If it lies outside 0.05 to 50 um.
    """
    text = f"Image {image_key!r} has {found.value:.4g} um per pixel, from {found.source}{_as_dpi(found.value)}"
    low, high = POSSIBLE_UM
    if refuse and not low <= found.value <= high:
        raise InvalidValueError(f"{text}. Images of stained tissue have mpp from {low:g} to {high:g}.", *_ways(found))
    low, high = USUAL_UM
    if not low <= found.value <= high:
        logger.warning("%s. Nearly all images have mpp from %g to %g; check the unit.", text, low, high)


def compare(found: Mpp, others: Iterable[Mpp], image_key: str) -> None:
    """Compare a resolution with what other sources say.

    What the caller has given is only compared with the spots: whoever gives mpp may correct a file by it.

    Parameters
    ----------
    found
        Micrometres per pixel that will be used.
    others
        What other sources say.
    image_key
        Name of the image, for messages.

    Raises
    ------
    ValueError
        If two sources differ by a factor of more than 5.
    """
    for other in others:
        factor = max(found.value / other.value, other.value / found.value)
        text = f"Image {image_key!r} has {found.value:.4g} um per pixel from {found.source}, and {other.value:.4g} from {other.source}"
        if factor > IMPOSSIBLE and (not found.asked or other.measured):
            raise InvalidValueError(
                f"{text}: {factor:.3g} times more or less.", *_ways(found), *_ways(other, correct=False)
            )
        if factor > SAME:
            logger.warning("%s. The first is used.", text)


def _ways(found: Mpp, *, correct: bool = True) -> list[Advice | str]:
    ways: list[Advice | str] = []
    if correct:
        ways.append(Advice("correct {}", "mpp") if found.asked else _WAY_OUT)
    if found.measured:
        ways.append("correct the assay in .uns of the table")
    return ways


def _as_dpi(value: float) -> str:
    """What a resolution of prints and screens is called, which image files have instead of one of the tissue."""
    dpi = 25_400 / value
    near = [known for known in _DPI if abs(dpi / known - 1) < 5e-3]
    return f" ({near[0]} dpi, a resolution of prints and screens)" if near else ""
