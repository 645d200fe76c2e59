"""Micrometres per pixel from the metadata of a TIFF: OME, Aperio, or the resolution tags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError, fromstring

from st_predict._errors import InvalidValueError
from st_predict.io._mpp import GIVE, Mpp, square_pixels

if TYPE_CHECKING:
    from pathlib import Path

    import tifffile

__all__ = ["TiffMpp", "mpp_of_tiff"]

UNITS_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "in": 25400.0}
"""Units of OME in micrometres; the two Greek letters are different characters."""

RESOLUTION_UM = {2: 25400.0, 3: 10000.0}
"""Resolution units of TIFF, inch and centimetre, in micrometres."""

X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296


@dataclass(frozen=True, slots=True)
class TiffMpp:
    """Micrometres per pixel as a file states them, unchecked.

    Parameters
    ----------
    x, y
        Numbers, or texts that may be numbers.
    source
        Place in the file, for messages.
    """

    x: float | str
    y: float | str
    source: str

    def checked(self) -> tuple[float, float]:
        """Micrometres per pixel in x and y.

        Raises
        ------
        ValueError
            If they are not positive numbers, or not equal.
        """
        try:
            x, y = float(self.x), float(self.y)
        except ValueError:
            raise InvalidValueError(
                f"mpp must be a positive number, got {self.x!r} from {self.source}.", GIVE
            ) from None
        square_pixels(Mpp(x, self.source).value, Mpp(y, self.source).value, self.source)
        return x, y


def mpp_of_tiff(file: tifffile.TiffFile, path: Path) -> TiffMpp | None:
    """Find the micrometres per pixel that a TIFF states, or ``None``."""
    if file.is_ome:
        return _of_ome(str(file.ome_metadata), f"the OME metadata of {path}")
    if file.is_svs:
        found = re.search(r"\|\s*MPP\s*=\s*([^|\s]*)", str(file.pages.first.description))
        return TiffMpp(found[1], found[1], f"the properties of {path}") if found else None
    return _of_tags(file.pages.first, f"the resolution tags of {path}")


def _of_ome(metadata: str, source: str) -> TiffMpp | None:
    try:
        pixels = next((e for e in fromstring(metadata).iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    except ParseError:
        return None
    if pixels is None:
        return None
    x, y = (_size(pixels, axis) for axis in "XY")
    return None if x is None or y is None else TiffMpp(x, y, source)


def _size(pixels: Element, axis: str) -> float | str | None:
    value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
    if value is None or unit not in UNITS_UM:  # a unit such as "pixel" says nothing
        return None
    try:
        return float(value) * UNITS_UM[unit]
    except ValueError:
        return value


def _of_tags(page: Any, source: str) -> TiffMpp | None:
    unit = RESOLUTION_UM.get(int(page.tags.valueof(RESOLUTION_UNIT, 2)))
    ratios = [page.tags.valueof(tag) for tag in (X_RESOLUTION, Y_RESOLUTION)]
    if unit is None or any(ratio is None or 0 in ratio for ratio in ratios):
        return None
    x, y = (unit * below / above for above, below in ratios)
    return TiffMpp(x, y, source)
