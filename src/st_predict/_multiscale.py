"""An image element of SpatialData from levels that are already there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, set_transformation
from xarray import Dataset, DataTree

from st_predict._keys import Keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import NDArray
    from xarray import DataArray

__all__ = ["halve", "image_of_levels", "transformations"]

STRIP = 512
"""Rows of a level that are made at a time, so that sums in 16 bits never exist for a whole image."""


def image_of_levels(levels: Sequence[da.Array], *, mpp: float | None) -> DataArray | DataTree:
    """Make an image of its levels, as they are.

    Parameters
    ----------
    levels
        ``(3, height, width)`` each, finest first. A single one gives a single-scale image.
    mpp
        Micrometres per pixel of the finest level; if known, the image is in the coordinate system ``"um"`` too.
    """
    arrays = [_array(level, levels[0].shape) for level in levels]
    image: Any = arrays[0]
    if len(arrays) > 1:
        image = DataTree.from_dict({f"scale{i}": Dataset({"image": array}) for i, array in enumerate(arrays)})
    set_transformation(image, transformations(mpp), set_all=True)
    Image2DModel().validate(image)
    return image


def _array(level: da.Array, full: tuple[int, ...]) -> DataArray:
    array: DataArray = Image2DModel.parse(level, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    del array.attrs["transform"]
    # as in spatialdata, coordinates of a coarser level are those of the finest one, at the centres of its pixels
    sizes = {"y": full[1], "x": full[2]}
    return array.assign_coords(
        {axis: (np.arange(array.sizes[axis]) + 0.5) * (size / array.sizes[axis]) for axis, size in sizes.items()}
    )


def transformations(mpp: float | None) -> dict[str, Identity | Scale]:
    """Coordinate systems of whatever is stored in level-0 pixels: ``"global"`` is pixels, ``"um"`` micrometres."""
    systems: dict[str, Identity | Scale] = {"global": Identity()}
    if mpp is not None:
        systems[Keys.UM] = Scale([mpp, mpp], axes=("x", "y"))
    return systems


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of blocks of 2 x 2 pixels, rounded; an odd last row or column is left out.

    Parameters
    ----------
    image
        ``(height, width, 3)``.

    Returns
    -------
    ``(height // 2, width // 2, 3)``.
    """
    height, width = image.shape[0] // 2, image.shape[1] // 2
    half = np.empty((height, width, image.shape[2]), np.uint8)
    for start in range(0, height, STRIP):
        stop = min(start + STRIP, height)
        block = image[2 * start : 2 * stop, : 2 * width]
        total = block[::2, ::2].astype(np.uint16)
        for row, col in ((0, 1), (1, 0), (1, 1)):
            total += block[row::2, col::2]
        half[start:stop] = (total + 2) // 4
    return half
