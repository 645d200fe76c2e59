"""One way to read pixels: a pyramid of levels."""

from __future__ import annotations

import errno
import math
import struct
import zlib
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from operator import index
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import dask.array as da
import numpy as np
from xarray import DataArray, DataTree

from st_predict._errors import InvalidTypeError, InvalidValueError, StPredictError
from st_predict.io._channels import is_rgba, rgb_order
from st_predict.io._levels import levels_of
from st_predict.io._offsets import cut_at, find_offsets
from st_predict.io._rgb8 import to_rgb8
from st_predict.io._select import find_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.io._levels import Edges

__all__ = [
    "FAILURES",
    "PyramidReader",
    "SpatialDataPyramid",
    "check_file",
    "check_level",
    "check_region",
    "image_attrs",
    "level_downsamples",
    "level_offsets",
    "open_pyramid",
    "reading",
]

FAILURES = (EOFError, KeyError, OSError, RuntimeError, ValueError, struct.error, zlib.error)
"""What libraries raise when pixels cannot be read or decoded."""

_GET_AGAIN = "Get the file again."


@runtime_checkable
class PyramidReader(Protocol):
    """Reads RGB regions of the levels of an image.

    Readers may be used from several threads at once. A reader whose regions lie in memory pixel by pixel, not colour by
    colour, may say so by an attribute ``interleaved`` that is True; crops of it are then cut faster.
    """

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of each level, finest first."""

    @property
    def downsamples(self) -> tuple[float, ...]:
        """Width of a pixel of each level in level-0 pixels; the first is 1."""

    def edges(self, level: int) -> Edges:
        """Where the blocks of pixels that can only be decoded as a whole begin and end, along y and x of ``level``.

        Both run from 0 to the side of the level. A region that is exactly one block is read the fastest.
        """

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        """Read a region that lies inside the level.

        Parameters
        ----------
        x, y
            Left and top edge, in pixels of ``level``.
        width, height
            Size, in pixels of ``level``.
        level
            Index into :attr:`level_shapes`.

        Returns
        -------
        ``(height, width, 3)``, RGB; it may share memory with the image.

        Raises
        ------
        MemoryError
            If the region does not fit into memory.
        OSError
            If pixels are damaged or cannot be read; the message says which.
        ValueError
            If the level does not exist, or the region does not lie inside it.
        """


class SpatialDataPyramid:
    """A 2D image of a :class:`~spatialdata.SpatialData` object, single- or multi-scale.

    Parameters
    ----------
    image
        8-bit RGB, with the axes c, y and x.
    name
        Name of the image, for messages.

    Raises
    ------
    TypeError
        If the image is not an image element.
    ValueError
        If the image is not 8-bit RGB in two dimensions, its channels have names of something else, its levels are not
        stored finest first, or a level is shrunk more along one axis than the other.
    """

    def __init__(self, image: DataArray | DataTree, *, name: str = "image") -> None:
        self._name = name
        levels = _levels(image)
        arrays = [_cyx(level) for level in levels]
        self._levels = levels_of(arrays, name)
        self._level_shapes = tuple((int(array.shape[1]), int(array.shape[2])) for array in arrays)
        self._downsamples = level_downsamples(self._level_shapes)
        self._cut = cut_at(levels[0].attrs.get("transform", {})) if len(levels) > 1 else None

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of each level, finest first."""
        return self._level_shapes

    @property
    def downsamples(self) -> tuple[float, ...]:
        """Width of a pixel of each level in level-0 pixels; the first is 1."""
        return self._downsamples

    @cached_property
    def offsets(self) -> tuple[tuple[float, float], ...]:
        """Left and top edge ``(x, y)`` of each level in level-0 pixels.

        0, but in an image that was cut out of another one, such as by :func:`spatialdata.bounding_box_query`: there, coarser
        levels begin up to a pixel beside level 0. Some patches of such an image are read to see by how much. That level 0 begins
        a pixel beside its place is not seen where a cut between two pixels happens to run along pixels of all levels.
        """
        if self._cut is None:
            return ((0.0, 0.0),) * len(self._level_shapes)
        return find_offsets(
            self._level_shapes,
            self._downsamples,
            self._cut,
            lambda x, y, width, height, level: self.read(x, y, width, height, level=level),
        )

    @property
    def interleaved(self) -> bool:
        """Whether regions lie in memory pixel by pixel; see :class:`PyramidReader`."""
        return all(getattr(level, "interleaved", False) for level in self._levels)

    def edges(self, level: int) -> Edges:
        """Edges of the blocks that the level is stored in; see :meth:`PyramidReader.edges`."""
        check_level(level, self._level_shapes)
        return self._levels[level].edges

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        """Return ``(height, width, 3)``; see :meth:`PyramidReader.read`."""
        check_region(x, y, width, height, level=level, shapes=self._level_shapes)
        with reading(f"Image {self._name!r}", (x, y, width, height), level):
            return self._levels[level].read(slice(y, y + height), slice(x, x + width)).transpose(1, 2, 0)


def check_file(path: Path) -> None:
    """Refuse a path without a file.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        If it is a folder.
    """
    if path.is_dir():
        raise InvalidValueError(
            f"{path} is a folder, and a slide is a file.",
            "name the file of a picture",
            "read a SpatialData store with spatialdata.read_zarr",
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")


def check_level(level: int, shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse a level that a pyramid does not have."""
    if not isinstance(level, Integral) or not 0 <= level < len(shapes):
        raise InvalidValueError(f"level must be a whole number from 0 to {len(shapes) - 1}, got {level!r}.")


def check_region(x: int, y: int, width: int, height: int, *, level: int, shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse a region that does not lie inside a level; cheap beside reading it."""
    check_level(level, shapes)
    full = shapes[level]
    try:
        inside = 0 <= index(x) <= x + index(width) <= full[1] and 0 <= index(y) <= y + index(height) <= full[0]
    except TypeError:
        inside = False
    if not inside or width < 0 or height < 0:
        raise InvalidValueError(
            f"x {x!r}, y {y!r}, width {width!r} and height {height!r} must be whole numbers of pixels inside level "
            f"{level}, which is {full[1]} x {full[0]} px."
        )


class reading:  # noqa: N801  # a context manager, in a fifth of the time of contextlib's
    """Say which region of an image it was where reading it fails.

    Parameters
    ----------
    what
        Image, or file.
    region
        Left, top, width and height, in pixels of the level.
    level
        Which level.

    Raises
    ------
    MemoryError
        If the region does not fit into memory.
    OSError
        If its pixels are damaged or cannot be read.
    """

    __slots__ = ("_level", "_region", "_what")

    def __init__(self, what: str, region: tuple[int, int, int, int], level: int) -> None:
        self._what, self._region, self._level = what, region, level

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if error is None or isinstance(error, StPredictError) or getattr(error, "errno", None) == errno.ENOSPC:
            return
        x, y, width, height = self._region
        place = f"{self._what}, level {self._level}, x {x}, y {y}, {width} x {height} px"
        if isinstance(error, MemoryError):
            raise MemoryError(
                f"{place}: {width * height * 3 / 1e9:.3g} GB do not fit into memory ({error})."
            ) from error
        if isinstance(error, FAILURES):
            again = "" if _GET_AGAIN in str(error) else f" {_GET_AGAIN}"
            raise OSError(f"{place}: cannot be read, perhaps because it is damaged ({error}).{again}") from error


def _levels(image: DataArray | DataTree) -> list[DataArray]:
    if isinstance(image, DataArray):
        return [image]
    if not isinstance(image, DataTree):
        raise InvalidTypeError(
            f"Expected an image element, a DataArray or a DataTree of xarray, got {type(image).__name__}."
        )
    scales = [image.children[name] for name in sorted(image.children, key=_number_of)]
    levels = [level for scale in scales for level in list(scale.data_vars.values())[:1]]
    if not levels or len(levels) < len(image.children):
        raise InvalidValueError("Expected an image in each scale, got a DataTree without one.")
    sides = [(level.sizes["x"], level.sizes["y"]) for level in levels]
    if any(fine[0] < coarse[0] or fine[1] < coarse[1] for fine, coarse in pairwise(sides)):
        # the transformations of an image are of its first level, whatever size that has
        found = ", ".join(f"{scale.name} {x} x {y}" for scale, (x, y) in zip(scales, sides, strict=True))
        raise InvalidValueError(
            f"Expected levels from fine to coarse, got {found} px, so that spots would be put on the pixels of another level.",
            "make the image again with spatialdata.models.Image2DModel.parse(..., scale_factors=...)",
        )
    return levels


def _number_of(scale: str) -> int:
    """Place of a level in an image, by its name, ``"scale0"`` and so on."""
    number = scale.removeprefix("scale")
    return int(number) if number.isdecimal() else -1


def image_attrs(image: DataArray | DataTree) -> dict[Any, Any]:
    """Attributes of an image; those of its finest level come last, so they win."""
    return {**image.attrs, **_levels(image)[0].attrs}


def _cyx(level: DataArray) -> da.Array:
    if set(level.dims) != {"c", "y", "x"}:
        raise InvalidValueError(
            f"Expected a 2D image with the axes c, y and x, got the axes {level.dims}.",
            "add one plane as an image of its own",
        )
    if is_rgba(level) and level.dtype == np.uint8:
        level = cast("DataArray", to_rgb8(level))
    if level.sizes["c"] != 3:
        raise InvalidValueError(
            f"Expected an RGB image, got {level.sizes['c']} channels.",
            "convert grey or RGBA with st_predict.io.to_rgb8 and add the result as an image of its own",
            "keep only the red, green and blue channel and add these as an image of their own",
        )
    if level.dtype == np.int8:  # as HEST declares a slide, whose coarse levels are then computed of wrong numbers
        raise InvalidValueError(
            "Expected an 8-bit image (uint8), got int8.",
            "read the slide from its file with st_predict.io.from_anndata(sdata.tables[...], image=..., mpp=...)",
        )
    if level.dtype != np.uint8:
        raise InvalidValueError(
            f"Expected an 8-bit image (uint8), got {level.dtype}.",
            "convert it with st_predict.io.to_rgb8 and add the result as an image of its own",
        )
    array: da.Array = da.asarray(level.transpose("c", "y", "x").data)  # type: ignore[no-untyped-call]
    order = rgb_order(level)
    return array if order == [0, 1, 2] else array[order]


def level_downsamples(shapes: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """Downsamples of the levels of a pyramid, from their shapes.

    A level that was made by an integer factor ends at a whole pixel, so that the ratio of the shapes is slightly off.
    The factor is taken to be that integer whenever both sides agree with it.

    Parameters
    ----------
    shapes
        ``(height, width)`` of each level, finest first.

    Returns
    -------
    Width of a pixel of each level in level-0 pixels; the first is 1.

    Raises
    ------
    ValueError
        If a level is shrunk more along one axis than along the other, beyond what whole pixels explain.
    """
    return tuple(_downsample(shapes[0], shape, level) for level, shape in enumerate(shapes))


def _downsample(full: tuple[int, int], shape: tuple[int, int], level: int) -> float:
    y, x = (f / s for f, s in zip(full, shape, strict=True))
    if not _one_factor_explains(full, shape):
        raise InvalidValueError(
            f"Level {level} is shrunk {x:.6g} times in x and {y:.6g} times in y, from {full[1]} x {full[0]} to "
            f"{shape[1]} x {shape[0]} pixels: more different than whole pixels explain.",
            "make the levels again, by the same factor in x and y",
        )
    ratio = (x + y) / 2
    whole = max(1, round(ratio))
    trimmed_or_rounded = all(f // whole <= s <= -(-f // whole) for f, s in zip(full, shape, strict=True))
    return float(whole) if trimmed_or_rounded else ratio


def _one_factor_explains(full: tuple[int, int], shape: tuple[int, int]) -> bool:
    """Whether some factor leads to both sides of ``shape``, each less or more by at most a pixel."""
    smallest = max(f / (s + 1) for f, s in zip(full, shape, strict=True))
    largest = min(f / (s - 1) if s > 1 else math.inf for f, s in zip(full, shape, strict=True))
    return smallest <= largest


def level_offsets(reader: PyramidReader) -> tuple[tuple[float, float], ...]:
    """Left and top edge ``(x, y)`` of each level in level-0 pixels; 0 for a reader that does not say."""
    found: tuple[tuple[float, float], ...] | None = getattr(reader, "offsets", None)
    return ((0.0, 0.0),) * len(reader.level_shapes) if found is None else found


def open_pyramid(sdata: SpatialData, image_key: str | None = None) -> PyramidReader:
    """Open an image of ``sdata`` for reading.

    Parameters
    ----------
    sdata
        Holds the image.
    image_key
        Name of the image; may be left out when there is only one.

    Returns
    -------
    A reader of its levels.

    Raises
    ------
    KeyError
        If the image does not exist.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If there is no image at all, if there are several and none is named, if it is not 8-bit RGB, or if a level is
        shrunk more along one axis than the other.
    """
    key = find_image(sdata, image_key)
    try:
        return SpatialDataPyramid(sdata.images[key], name=key)
    except StPredictError as error:
        raise error.about(f"Image {key!r}:") from None
