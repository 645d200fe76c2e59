"""Conversion to 8-bit RGB, with a stated scaling."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from xarray import DataArray, DataTree

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._validated import Number, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_range", "on_white", "rgb8", "to_rgb8"]

Range = tuple[float, float]

CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}


def to_rgb8(image: DataArray | DataTree, *, value_range: Range | None = None) -> DataArray | DataTree:
    """Convert an image to 8-bit RGB, the format that this package reads.

    The result is lazy. Grey is repeated in three channels; RGBA is composited on white.

    Parameters
    ----------
    image
        Image element with the axes c, y and x and 1, 3 or 4 channels, single- or multi-scale. It is not changed.
    value_range
        Values that become 0 and 255; in between, the scale is linear and results are rounded. By default 0 to 255 for
        uint8 and 0 to 1 for floats. Other integers need it: ``(0, 4095)`` for 12-bit data, ``(0, 65535)`` for 16-bit.

    Returns
    -------
    DataArray or DataTree
        A new image element with three channels, uint8, and the transformations and attributes of ``image``.

    Raises
    ------
    TypeError
        If ``image`` is not an image element.
    ValueError
        If it does not have 1, 3 or 4 channels; if ``value_range`` is missing or not ascending. When pixels are
        computed: if values lie outside ``value_range``.

    Examples
    --------
    >>> import numpy as np
    >>> from spatialdata.models import Image2DModel
    >>> from st_predict.io import to_rgb8
    >>> pixels = np.full((3, 2, 2), 4095, np.uint16)
    >>> image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    >>> int(to_rgb8(image, value_range=(0, 4095)).max())
    255
    """
    if isinstance(image, DataTree):
        return image.map_over_datasets(partial(_dataset, value_range=value_range))
    if not isinstance(image, DataArray):
        raise InvalidTypeError(
            f"image must be an image element, a DataArray or a DataTree of xarray, got {type(image).__name__}."
        )
    return _array(image, value_range)


def _dataset(scale: Any, *, value_range: Range | None) -> Any:
    if not scale.data_vars:  # the root
        return scale
    arrays = {name: _array(array, value_range) for name, array in scale.data_vars.items()}
    return scale.drop_vars([*arrays, *({"c"} & set(scale.coords))]).assign(arrays)


def _array(image: DataArray, value_range: Range | None) -> DataArray:
    if set(image.dims) != {"c", "y", "x"}:
        raise InvalidValueError(f"Expected a 2D image with the axes c, y and x, got the axes {image.dims}.")
    _check_channels(image.sizes["c"], "The image")
    value_range = check_range(image.dtype, value_range, what="The image")
    image = image.transpose("c", "y", "x")
    pixels = da.asarray(image.data)  # type: ignore[no-untyped-call]
    pixels = pixels.rechunk({0: -1})
    rgb = pixels.map_blocks(
        partial(rgb8, value_range=value_range, what="The image"),
        dtype=np.uint8,
        chunks=((3,), *pixels.chunks[1:]),
        meta=np.empty((0, 0, 0), np.uint8),
    )
    names = list(image.coords["c"].values[:3]) if "c" in image.coords and image.sizes["c"] > 1 else ["r", "g", "b"]
    coords = {axis: image.coords[axis] for axis in ("y", "x") if axis in image.coords}
    return DataArray(rgb, dims=("c", "y", "x"), coords={"c": names, **coords}, name=image.name, attrs=dict(image.attrs))


def rgb8(planes: NDArray[Any], *, value_range: Range | None, what: str) -> NDArray[np.uint8]:
    """Convert pixels to 8-bit RGB.

    Parameters
    ----------
    planes
        ``(1, 3 or 4, height, width)``.
    value_range
        From :func:`check_range`.
    what
        Image, for messages.

    Returns
    -------
    ndarray
        ``(3, height, width)``.

    Raises
    ------
    ValueError
        If values lie outside ``value_range``.
    """
    _check_channels(len(planes), what)
    scaled = planes if value_range is None else _scaled(planes, value_range, what)
    if len(planes) == 4:
        return on_white(scaled)
    return scaled if len(planes) == 3 else np.repeat(scaled, 3, axis=0)


def check_range(dtype: np.dtype[Any], value_range: Range | None, *, what: str) -> Range | None:
    """Resolve the values that become 0 and 255; ``None`` if the pixels stay as they are.

    Raises
    ------
    ValueError
        If the range is not ascending, or is needed and not given; if values are not real numbers.
    """
    if dtype.kind not in "uif":
        raise InvalidValueError(f"{what} has values of type {dtype}, which are not numbers.", "convert them")
    if value_range is not None:
        low, high = check("value_range", value_range, tuple[Number, Number])
        if not low < high:
            raise InvalidValueError(f"value_range must be ascending, got {value_range!r}.")
        return low, high
    if dtype == np.uint8:
        return None
    if dtype.kind == "f":
        return 0.0, 1.0
    raise InvalidValueError(
        f"{what} has values of type {dtype}, and nothing says which of them are black and white.",
        Advice("state them with {} for 12-bit data", "value_range", (0, 4095)),
        Advice("with {} for data that uses all 16 bits", "value_range", (0, 65535)),
        "convert it to 8 bits",
    )


def _check_channels(n: int, what: str) -> None:
    if n not in CHANNELS:
        raise InvalidValueError(
            f"{what} has {n} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA).",
            "keep only the red, green and blue channel",
        )


def _scaled(planes: NDArray[Any], value_range: Range, what: str) -> NDArray[np.uint8]:
    low, high = value_range
    least, most = (planes.min(), planes.max()) if planes.size else value_range
    if not low <= least <= most <= high:
        raise InvalidValueError(
            f"{what} has values from {least:g} to {most:g}, outside the value_range ({low:g}, {high:g}).",
            Advice("state the range of the data with {}", "value_range"),
            "convert it to 8 bits",
        )
    return np.rint((planes.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite ``(4, height, width)`` over white: ``(3, height, width)``."""
    alpha, colours = rgba[3], np.ascontiguousarray(rgba[:3])
    if not (alpha == 255).all():
        weighted = colours * alpha.astype(np.uint16) + 255 * (255 - alpha.astype(np.uint16))
        colours = ((weighted + 127) // 255).astype(np.uint8)
    return colours
