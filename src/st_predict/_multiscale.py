"""Image elements of SpatialData from existing levels."""

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
"""Rows per step, so that 16-bit sums never exist for a whole image."""


def image_of_levels(levels: Sequence[da.Array], *, mpp: float | None) -> DataArray | DataTree:
    """Make an image from its levels, unchanged.

    Parameters
    ----------
    levels
        Levels ``(3, height, width)``, finest first. One level gives a single-scale image.
    mpp
        Micrometres per pixel of the finest level; if known, the image gets the coordinate system ``"um"`` too.
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
    # as in spatialdata, coarser levels have the finest level's coordinates at their pixel centres
    sizes = {"y": full[1], "x": full[2]}
    return array.assign_coords(
        {axis: (np.arange(array.sizes[axis]) + 0.5) * (size / array.sizes[axis]) for axis, size in sizes.items()}
    )


def transformations(mpp: float | None) -> dict[str, Identity | Scale]:
    """Return coordinate systems of an element in level-0 pixels: ``"global"`` is pixels, ``"um"`` micrometres."""
    systems: dict[str, Identity | Scale] = {"global": Identity()}
    if mpp is not None:
        systems[Keys.UM] = Scale([mpp, mpp], axes=("x", "y"))
    return systems


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return rounded means of blocks of 2 x 2 pixels; an odd last row or column is left out.

    Parameters
    ----------
    image
        Image, ``(height, width, 3)``.

    Returns
    -------
    ndarray
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
