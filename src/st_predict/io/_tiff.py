"""Tiled TIFF slides: Aperio, generic pyramids, BigTIFF and OME-TIFF. Each tile that is read is decoded once."""

from __future__ import annotations

import math
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import File, check
from st_predict.io._regions import FAILURES, check_region, reading
from st_predict.io._slide_file import SlideFile
from st_predict.io._tiff_file import open_tiff
from st_predict.io._tiff_mpp import mpp_of_tiff
from st_predict.io._tiles import LARGEST_TILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray


__all__ = ["TIFF_VENDORS", "TiffPyramid", "orientation_of", "refuse_misread", "refuse_stack"]

TIFF_VENDORS = {"aperio", "generic-tiff"}
"""Formats of OpenSlide whose tiles can be read without it."""

NONE, LZW, JPEG, DEFLATE = 1, 5, 7, {8, 32946}
RGB, YCBCR = 2, 6
ORIENTATION = 274
KNOWN_FLAVOURS = {"bigtiff", "generic", "mdgel", "ome", "shaped", "svs", "tiff", "uniform"}
"""Flavours of tifffile that are read here. Others have rules of their own for what a level is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLevel:
    """Index of the tiles of one level.

    Parameters
    ----------
    shape, tile
        ``(height, width)`` of the level and of a tile.
    offsets, counts
        First byte and number of bytes of each tile, row by row; plane by plane if colours are stored apart.
    decode
        Decoder of tifffile.
    planes
        1, or 3 if each colour is stored apart.
    tables
        Arguments of ``decode`` that all JPEG tiles share.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    decode: Callable[..., Any]
    planes: int
    tables: dict[str, bytes | None]

    @classmethod
    def of_page(cls, page: tifffile.TiffPage) -> TileLevel:
        """Index a page."""
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression == JPEG else {}
        return cls(
            shape=(page.imagelength, page.imagewidth),
            tile=(page.tilelength, page.tilewidth),
            offsets=np.asarray(page.dataoffsets, np.int64),
            counts=np.asarray(page.databytecounts, np.int64),
            decode=page.decode,
            planes=3 if page.planarconfig == 2 else 1,
            tables=tables,
        )

    def number(self, row: int, col: int, plane: int) -> int:
        """Position of a tile in ``offsets`` and ``counts``."""
        rows, cols = (math.ceil(side / tile) for side, tile in zip(self.shape, self.tile, strict=True))
        return (plane * rows + row) * cols + col


class TileFile:
    """File that threads read from at the same time.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset``.

        Raises
        ------
        OSError
            If the file ends before.
        """
        if hasattr(os, "pread"):
            data = os.pread(self._descriptor, count, offset)
        else:  # Windows
            with self._lock:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                data = os.read(self._descriptor, count)
        if len(data) < count:
            raise OSError(f"the file ends {count - len(data)} bytes before the end of the tile")
        return data


class TiffPyramid(SlideFile):
    """A tiled TIFF slide, with the levels of the file.

    Aperio (svs), generic pyramidal TIFF, BigTIFF and OME-TIFF with 8-bit RGB tiles: JPEG, deflate, LZW or uncompressed.
    Pixels equal OpenSlide's where OpenSlide does not interpolate. Tiles that were never written are white.

    Parameters
    ----------
    path
        Path of the slide.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is of another kind; :func:`open_slide` then tries OpenSlide.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import tifffile
    >>> import st_predict as stp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "slide.tif"
    ...     pixels = np.full((512, 768, 3), 200, np.uint8)
    ...     tifffile.imwrite(
    ...         path, pixels, tile=(256, 256), photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER"
    ...     )
    ...     slide = stp.io.TiffPyramid(path)
    ...     slide.level_shapes, slide.mpp
    (((512, 768),), (0.5, 0.5))
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = check("path", path, File)
        with open_tiff(self._path) as file:
            pages = _pyramid_pages(file, self._path)
            self._levels = tuple(TileLevel.of_page(page) for page in pages)
            self._mpp = mpp_of_tiff(file, self._path)
            self._is_aperio, self._is_ome = bool(file.is_svs), bool(file.is_ome)
        if self._is_aperio and any((level.counts == 0).any() for level in self._levels[1:]):
            raise InvalidValueError(f"{self._path} lacks tiles, which OpenSlide makes from the next finer level.")
        self._level_shapes = tuple(level.shape for level in self._levels)
        self._file = TileFile(self._path)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0, in x and y, if the file says so.

        Raises
        ------
        ValueError
            If the file says something that is not a positive number, or its pixels are not square.
        """
        # not checked when the slide is opened, so that a file with wrong properties can be read with mpp=...
        return None if self._mpp is None else self._mpp.checked()

    @property
    def tile_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of the tiles of each level."""
        return tuple(level.tile for level in self._levels)

    @property
    def is_ome(self) -> bool:
        """Whether it is an OME-TIFF, whose levels OpenSlide does not look for."""
        return self._is_ome

    def fullest_tile(self, level: int) -> tuple[int, int]:
        """Row and column of the tile with the most bytes, which shows more than an empty one."""
        index = self._levels[level]
        cols = math.ceil(index.shape[1] / index.tile[1])
        row, col = divmod(int(index.counts[: len(index.counts) // index.planes].argmax()), cols)
        return row, col

    @property
    def interleaved(self) -> bool:
        """Whether regions lie in memory pixel by pixel; see :class:`PyramidReader`."""
        return all(level.planes == 1 for level in self._levels)

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        """Return ``(height, width, 3)``; see :meth:`PyramidReader.read`."""
        check_region(x, y, width, height, level=level, shapes=self._level_shapes)
        index = self._levels[level]
        tile_height, tile_width = index.tile
        with reading(str(self._path), (x, y, width, height), level):
            if (x % tile_width, y % tile_height, width, height) == (0, 0, tile_width, tile_height):
                return self._tile(index, y // tile_height, x // tile_width, (height, width))
            region = np.empty((height, width, 3), np.uint8)
            for row in range(y // tile_height, math.ceil((y + height) / tile_height)):
                for col in range(x // tile_width, math.ceil((x + width) / tile_width)):
                    self._copy(index, (row, col), region, (x, y))
        return region

    def _copy(
        self, index: TileLevel, place: tuple[int, int], region: NDArray[np.uint8], corner: tuple[int, int]
    ) -> None:
        """Copy the part of a tile that lies in a region, ``(height, width, 3)``, whose left and top are ``corner``."""
        (left, top), (height, width) = corner, region.shape[:2]
        y, x = (number * side for number, side in zip(place, index.tile, strict=True))
        rows = slice(max(y, top), min(y + index.tile[0], top + height))
        cols = slice(max(x, left), min(x + index.tile[1], left + width))
        tile = self._tile(index, *place, (rows.stop - y, cols.stop - x))
        region[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = tile[
            rows.start - y : rows.stop - y, cols.start - x : cols.stop - x
        ]

    def _tile(self, index: TileLevel, row: int, col: int, least: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode a tile, ``(height, width, 3)``, of which at least this height and width are needed."""
        try:
            planes = [self._decode(index, index.number(row, col, plane)) for plane in range(index.planes)]
            if any(
                pixels is not None and (pixels.shape[0] < least[0] or pixels.shape[1] < least[1]) for pixels in planes
            ):
                raise OSError("it is smaller than the index says")
        except FAILURES as error:
            y, x = row * index.tile[0], col * index.tile[1]
            raise OSError(f"the tile at x {x}, y {y} of the level: {error}") from error
        shape = (*index.tile, 3 // index.planes)
        tiles = [np.full(shape, 255, np.uint8) if pixels is None else pixels for pixels in planes]
        return tiles[0] if index.planes == 1 else np.concatenate(tiles, axis=-1)

    def _decode(self, index: TileLevel, number: int) -> NDArray[np.uint8] | None:
        """``(height, width, 3 or 1)``, or ``None`` where no tile was written."""
        count = int(index.counts[number])
        if count == 0:
            return None
        data = self._file.read(int(index.offsets[number]), count)
        pixels = index.decode(data, number, **index.tables)[0][0]
        if index.tables and not (data := data.rstrip(b"\0")).endswith(b"\xff\xd9"):
            # JPEG decoders fill in missing pixels. Bytes behind the end change these, but no others.
            more = index.decode(data + bytes(range(64)), number, **index.tables)[0][0]
            if not np.array_equal(pixels, more):
                raise OSError("its JPEG stream ends too early")
        return pixels


def orientation_of(page: tifffile.TiffPage) -> int:
    """Where the first row and column of the stored pixels are shown: 1 (top and left) to 8, as in EXIF."""
    return int(page.tags.valueof(ORIENTATION, 1))


def _pyramid_pages(file: tifffile.TiffFile, path: Path) -> list[tifffile.TiffPage]:
    """Pages of the levels, finest first.

    Raises
    ------
    ValueError
        If the file is of another flavour, or a level is not 8-bit RGB in tiles of a known compression.
    """
    strange = set(file.flags) - KNOWN_FLAVOURS
    if strange:
        raise InvalidValueError(f"{path} is a TIFF of the flavour {sorted(strange)}.")
    pages = sorted(_level_pages(file, path), key=lambda page: -page.imagewidth * page.imagelength)
    for level, page in enumerate(pages):
        reason = _unfit(page)
        if reason:
            raise InvalidValueError(f"{path}, level {level}: {reason}.")
    return pages


def _level_pages(file: tifffile.TiffFile, path: Path) -> list[Any]:
    pages: list[Any] = list(file.pages)
    if file.is_ome:
        refuse_stack(file, path)
        return [level.keyframe for level in file.series[0].levels]
    if file.is_svs:
        return [page for page in pages if page.is_tiled]
    return [pages[0], *(page for page in pages[1:] if page.is_tiled and page.is_reduced)]


def refuse_stack(file: tifffile.TiffFile, path: Path) -> None:
    """Refuse a file whose first series has several images, such as markers: no reader can tell which are meant.

    Raises
    ------
    ValueError
        If there is more than one image at the finest level.
    """
    series = file.series[0]
    n_images = series.size // max(series.keyframe.size, 1)
    if n_images > 1:
        raise InvalidValueError(
            f"{path} holds {n_images} images of {series.keyframe.imagewidth} x {series.keyframe.imagelength} px "
            f"(axes {series.axes}); expected one RGB image.",
            "save red, green and blue as one RGB image",
        )


def _unfit(page: tifffile.TiffPage) -> str | None:
    """Why tiles of a page are not read here."""
    checks = {
        "it is stored in strips": not page.is_tiled,
        f"its samples are {page.dtype}, not uint8": page.dtype != np.uint8 or page.bitspersample != 8,
        f"it has {page.samplesperpixel} samples per pixel, not 3": page.samplesperpixel != 3,
        f"its orientation tag is {orientation_of(page)}": orientation_of(page) != 1,
        f"its compression is {page.compression}": page.compression not in {NONE, LZW, JPEG, *DEFLATE},
        f"its photometric interpretation is {page.photometric}": page.photometric != RGB
        and not (page.photometric == YCBCR and page.compression == JPEG),
        "each colour is a JPEG image": page.planarconfig == 2 and page.compression == JPEG,
        f"its predictor is {page.predictor}": page.predictor not in {1, 2},
        "its bits are in reverse order": page.fillorder != 1,
    }
    found = [reason for reason, holds in checks.items() if holds]
    if not found and max(page.tilelength, page.tilewidth) > LARGEST_TILE:
        found = [f"its tiles have {page.tilewidth} x {page.tilelength} px"]
    return found[0] if found else None


def refuse_misread(path: Path) -> None:
    """Refuse files that OpenSlide opens and shows wrongly."""
    with open_tiff(path) as file:
        refuse_stack(file, path)
        page = file.pages.first
        bits, orientation = page.bitspersample, orientation_of(page)
    if bits != 8:
        raise InvalidValueError(
            f"{path} has samples of {bits} bits, and nothing says which values are black and white.",
            Advice("state them with {} for 12-bit data", "value_range", (0, 4095)),
            Advice("with {} for data that uses all 16 bits", "value_range", (0, 65535)),
            "convert it to 8 bits",
        )
    if orientation != 1:
        raise InvalidValueError(
            f"{path} has the orientation tag {orientation}, and its tiles are not stored upright.",
            "read it with st_predict.io.read_image",
        )
