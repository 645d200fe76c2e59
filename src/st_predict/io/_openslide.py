"""Slides of all formats that OpenSlide opens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict._validated import File, check
from st_predict.io._mpp import GIVE, Mpp, square_pixels
from st_predict.io._regions import check_file, check_level, check_region, reading
from st_predict.io._rgb8 import on_white
from st_predict.io._slide_file import SlideFile
from st_predict.io._tiff import TIFF_VENDORS, refuse_misread

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray


__all__ = ["OpenSlidePyramid"]


PICTURES = {".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".webp"}
"""Files of pictures, which have neither levels nor tiles."""


class OpenSlidePyramid(SlideFile):
    """A slide in any format that OpenSlide opens, with the levels of the file.

    Pixels outside the scan are white. OpenSlide addresses all levels in whole pixels of level 0. At a level whose downsample
    is not a whole number, a region may therefore lie up to half a level-0 pixel beside its place, and is interpolated.

    Parameters
    ----------
    path
        Path of the slide.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If OpenSlide cannot open the file or would show it wrongly: samples that do not have 8 bits, an orientation tag.

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
    ...     slide = stp.io.OpenSlidePyramid(path)
    ...     slide.level_shapes
    ((512, 768),)
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = check("path", path, File)
        slide = _open(self._path)
        if slide.properties.get("openslide.vendor") in TIFF_VENDORS:
            refuse_misread(self._path)
        self._of_thread = threading.local()
        self._of_thread.slide = slide
        # not asked of a handle again, as one that has failed once answers nothing
        self._properties = dict(slide.properties)
        self._openslide_downsamples = tuple(slide.level_downsamples)
        self._level_shapes = tuple((height, width) for width, height in slide.level_dimensions)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0, in x and y, if the file says so.

        Raises
        ------
        ValueError
            If what the file says is not a positive number, or its pixels are not square.
        """
        # not when the slide is opened, so that a file with wrong properties can be read with mpp=...
        return _mpp(self._properties, self._path)

    @property
    def tile_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of the tiles in which the file stores each level; (1, 1) where it does not say."""
        properties = self._properties
        sides = ("height", "width")
        tiles = [
            [int(properties.get(f"openslide.level[{level}].tile-{side}", 1)) for side in sides]
            for level in range(len(self._level_shapes))
        ]
        return tuple((height, width) for height, width in tiles)

    def is_exact(self, level: int) -> bool:
        """Whether OpenSlide gives the pixels of a level as they are stored, without interpolation."""
        check_level(level, self._level_shapes)
        return self._openslide_downsamples[level] % 1 == 0

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        """Return ``(height, width, 3)``; see :meth:`PyramidReader.read`."""
        check_region(x, y, width, height, level=level, shapes=self._level_shapes)
        # OpenSlide takes the corner in pixels of level 0 and divides by its own downsample
        downsample = self._openslide_downsamples[level]
        corner = (round(x * downsample), round(y * downsample))
        with reading(str(self._path), (x, y, width, height), level):
            rgba = np.asarray(self._read_region(corner, level, (width, height)))
            # in memory, each colour lies by itself, as crops have it
            return on_white(rgba.transpose(2, 0, 1)).transpose(1, 2, 0)

    def _read_region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        import openslide

        try:
            return self._handle().read_region(corner, level, size)
        except openslide.OpenSlideError as error:
            del self._of_thread.slide
            raise OSError(f"OpenSlide: {error}") from error

    def _handle(self) -> Any:
        """A handle of the thread's own: threads that share one wait for each other."""
        if not hasattr(self._of_thread, "slide"):
            self._of_thread.slide = _open(self._path)
        return self._of_thread.slide


def _open(path: Path) -> Any:
    import openslide

    check_file(path)
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        if path.suffix.lower() in PICTURES:
            raise InvalidValueError(
                f"OpenSlide reads no {path.suffix} files, such as {path}.",
                "make an image element of its pixels with spatialdata.models.Image2DModel.parse, and add it to a SpatialData object",
                "convert it to a tiled TIFF",
            ) from error
        raise InvalidValueError(
            f"OpenSlide cannot open {path}: {error}. It may be damaged, or of a format that OpenSlide does not know; "
            "https://openslide.org/formats lists those it does.",
            "get it again",
            "convert it to one of these formats",
        ) from error


def _mpp(properties: Any, path: Path) -> tuple[float, float] | None:
    values = [properties.get(f"openslide.mpp-{axis}") for axis in ("x", "y")]
    if None in values:
        return None
    source = f"the properties of {path}"
    x, y = (Mpp(_number(value, source), source).value for value in values)
    square_pixels(x, y, source)
    return x, y


def _number(value: str, source: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InvalidValueError(f"mpp must be a positive number, got {value!r} from {source}.", GIVE) from None
