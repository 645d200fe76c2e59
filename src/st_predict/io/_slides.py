"""The fastest reader of a slide that gives the right pixels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict._validated import File, check
from st_predict.io._openslide import OpenSlidePyramid
from st_predict.io._pictures import is_picture
from st_predict.io._regions import check_file
from st_predict.io._tiff import TIFF_VENDORS, TiffPyramid, orientation_of, refuse_misread
from st_predict.io._tiff_file import is_tiff, open_tiff

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["open_blocks", "open_slide"]

logger = logging.getLogger(__name__)

T = TypeVar("T", TiffPyramid, OpenSlidePyramid)

GENERIC = {None, *TIFF_VENDORS}  # None: OpenSlide does not know the file

MEAN_TOLERANCE = 2.0
"""Grey values between the mean colours of a tile that OpenSlide has to interpolate and ours."""


def open_slide(path: str | PathLike[str]) -> TiffPyramid | OpenSlidePyramid:
    """Open a slide with the fastest reader that gives the right pixels.

    Tiled TIFF (Aperio, generic pyramids, BigTIFF, OME-TIFF) is read by :class:`TiffPyramid`, which decodes tiles in a
    fraction of OpenSlide's time. If OpenSlide opens the file, one tile per level is compared first; any difference is
    logged as a warning, and OpenSlide is used. All other formats are read by OpenSlide.

    Parameters
    ----------
    path
        Path of the slide.

    Returns
    -------
    TiffPyramid or OpenSlidePyramid
        A reader of its levels.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If no reader can open the file, or its samples do not have 8 bits.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import tifffile
    >>> import st_predict as stp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "slide.tif"
    ...     tifffile.imwrite(path, np.full((512, 768, 3), 200, np.uint8), tile=(256, 256), photometric="rgb")
    ...     slide = stp.io.open_slide(path)
    ...     slide.read(0, 0, 100, 50, level=0).shape
    (50, 100, 3)
    """
    path = Path(check("path", path, File))
    check_file(path)
    if not is_tiff(path) or _vendor(path) not in GENERIC:
        return OpenSlidePyramid(path)
    refuse_misread(path)
    return _faster(path, _opened(TiffPyramid, path), _opened(OpenSlidePyramid, path))


def open_blocks(path: Path) -> TiffPyramid | OpenSlidePyramid | None:
    """Open a slide as :func:`open_slide` does, or return ``None`` if it has to be stored as a pyramid first.

    Raises
    ------
    ValueError
        If no reader can open it, or it is a TIFF whose index is damaged.
    """
    if is_picture(path):
        return None
    if not is_tiff(path) or _vendor(path) not in GENERIC:
        return OpenSlidePyramid(path)
    with open_tiff(path) as file:
        if orientation_of(file.pages.first) != 1:
            return None
    tiff, slide = _opened(TiffPyramid, path), _opened(OpenSlidePyramid, path)
    if isinstance(slide, InvalidValueError):
        if isinstance(tiff, InvalidValueError):
            return None
        refuse_misread(path)
    return _faster(path, tiff, slide)


def _faster(
    path: Path, tiff: TiffPyramid | InvalidValueError, slide: OpenSlidePyramid | InvalidValueError
) -> TiffPyramid | OpenSlidePyramid:
    """The reader of tiles if it gives the right pixels, else that which opens the file."""
    if isinstance(slide, OpenSlidePyramid) and isinstance(tiff, TiffPyramid):
        difference = _difference(tiff, slide)
        if difference is None:
            return tiff
        logger.warning("%s is read through OpenSlide, which is slower: %s.", path, difference)
        return slide
    if not isinstance(tiff, InvalidValueError):
        return tiff
    if not isinstance(slide, InvalidValueError):
        return slide
    raise tiff if _vendor(path) is None else slide


def _vendor(path: Path) -> str | None:
    import openslide

    return openslide.OpenSlide.detect_format(path)


def _opened(kind: type[T], path: Path) -> T | InvalidValueError:
    """Reader of a file, or the reason why there is none."""
    try:
        return kind(path)
    except InvalidValueError as error:
        return error


def _difference(tiff: TiffPyramid, slide: OpenSlidePyramid) -> str | None:
    """First difference between the two readers, in words."""
    ours, theirs = tiff.level_shapes, slide.level_shapes
    if ours[0] != theirs[0] or (ours != theirs and not tiff.is_ome):  # OpenSlide does not look for the levels of OME
        return f"its levels are {_sizes(ours)} by tifffile and {_sizes(theirs)} by OpenSlide"
    for level, shape in enumerate(ours):
        if shape in theirs and not _same_pixels(tiff, slide, level, theirs.index(shape)):
            return f"pixels of level {level} differ between tifffile and OpenSlide"
    return None


def _sizes(shapes: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"{width} x {height}" for height, width in shapes)


def _same_pixels(tiff: TiffPyramid, slide: OpenSlidePyramid, level: int, of_slide: int) -> bool:
    """Whether one tile is the same; where OpenSlide interpolates, its first tile and the mean colours of another."""
    fullest = _tile(tiff, level, *tiff.fullest_tile(level))
    if slide.is_exact(of_slide):
        return _agree(tiff, slide, (level, of_slide), fullest, exact=True)
    first = _tile(tiff, level, 0, 0)  # not moved by any downsample
    return _agree(tiff, slide, (level, of_slide), first, exact=True) and _agree(
        tiff, slide, (level, of_slide), fullest, exact=False
    )


def _tile(tiff: TiffPyramid, level: int, row: int, col: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of the part of a tile that lies in the level."""
    (height, width), (full_height, full_width) = tiff.tile_shapes[level], tiff.level_shapes[level]
    x, y = col * width, row * height
    return x, y, min(width, full_width - x), min(height, full_height - y)


def _agree(
    tiff: TiffPyramid,
    slide: OpenSlidePyramid,
    levels: tuple[int, int],
    region: tuple[int, int, int, int],
    *,
    exact: bool,
) -> bool:
    try:
        ours, theirs = tiff.read(*region, level=levels[0]), slide.read(*region, level=levels[1])
    except OSError:  # a damaged tile says so when it is needed
        return True
    if exact:
        return np.array_equal(ours, theirs)
    means = [pixels.reshape(-1, 3).mean(axis=0) for pixels in (ours, theirs)]
    return bool(np.abs(means[0] - means[1]).max() <= MEAN_TOLERANCE)
