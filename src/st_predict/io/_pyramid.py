"""One way to read pixels: a pyramid of levels."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import dask.array as da
import numpy as np
from xarray import DataArray, DataTree

from st_predict._errors import InvalidTypeError, InvalidValueError, StPredictError
from st_predict.io._channels import is_rgba, rgb_order
from st_predict.io._levels import levels_of
from st_predict.io._offsets import cut_at, find_offsets
from st_predict.io._regions import check_level, check_region, level_downsamples, reading
from st_predict.io._rgb8 import to_rgb8
from st_predict.io._select import find_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.io._edges import Edges

__all__ = [
    "PyramidReader",
    "SpatialDataPyramid",
    "image_attrs",
    "level_offsets",
    "open_pyramid",
]


@runtime_checkable
class PyramidReader(Protocol):
    """Interface of readers: RGB regions of the levels of an image.

    Readers may be used from several threads at once. A reader whose regions are stored pixel by pixel in memory, not colour by
    colour, may have an attribute ``interleaved`` that is True; its crops are cut faster.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> reader = stp.io.open_pyramid(sdata)
    >>> isinstance(reader, stp.io.PyramidReader)
    True
    >>> reader.read(100, 50, 40, 30, level=1).shape
    (30, 40, 3)
    """

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of each level, finest first."""

    @property
    def downsamples(self) -> tuple[float, ...]:
        """Width of a pixel of each level in level-0 pixels; the first is 1."""

    def edges(self, level: int) -> Edges:
        """Edges of the blocks of ``level`` that can only be decoded as a whole, along y and x.

        Both run from 0 to the side of the level. A region of exactly one block is read fastest.
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
        ndarray
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

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> reader = stp.io.SpatialDataPyramid(sdata["he"])
    >>> reader.level_shapes
    ((720, 880), (360, 440), (180, 220), (90, 110))
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

        0, but in an image that was cut out of another one, such as by :func:`spatialdata.bounding_box_query`: there,
        coarser levels begin up to a pixel beside level 0. Some patches of such an image are read to see by how much.
        That level 0 begins a pixel beside its place is not seen where a cut between two pixels happens to run along
        pixels of all levels.
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
    """Attributes of an image; the finest level's come last, so they win."""
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


def level_offsets(reader: PyramidReader) -> tuple[tuple[float, float], ...]:
    """Left and top edge of each level in level-0 pixels.

    Parameters
    ----------
    reader
        Reader of an image.

    Returns
    -------
    tuple of tuple
        ``(x, y)`` per level; zeros for a reader without ``offsets``.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.level_offsets(stp.io.open_pyramid(sdata))
    ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    """
    found: tuple[tuple[float, float], ...] | None = getattr(reader, "offsets", None)
    return ((0.0, 0.0),) * len(reader.level_shapes) if found is None else found


def open_pyramid(sdata: SpatialData, image_key: str | None = None) -> PyramidReader:
    """Open an image of ``sdata`` for reading.

    Parameters
    ----------
    sdata
        Object with the image.
    image_key
        Name of the image; may be left out if there is only one.

    Returns
    -------
    PyramidReader
        A reader of its levels.

    Raises
    ------
    KeyError
        If the image does not exist.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If there is no image, if there are several and none is named, if the image is not 8-bit RGB, or if a level is
        shrunk more along one axis than the other.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> reader = stp.io.open_pyramid(sdata)
    >>> reader.level_shapes[0], reader.downsamples
    ((720, 880), (1.0, 2.0, 4.0, 8.0))
    """
    key = find_image(sdata, image_key)
    try:
        return SpatialDataPyramid(sdata.images[key], name=key)
    except StPredictError as error:
        raise error.about(f"Image {key!r}:") from None
