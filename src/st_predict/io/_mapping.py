"""Whether spots are still apart after they were mapped to an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_mapped"]

FARTHEST = 1e9
"""Pixels: a thousand times the side of the largest slides."""

DISTINCT = 0.5
"""Share of the places of spots that must be places of their own in the image."""


def check_mapped(xy: NDArray[np.float64], mapped: NDArray[np.float64], *, key: str, system: str) -> None:
    """Refuse a transformation that puts spots on one another, or out of reach.

    Parameters
    ----------
    xy, mapped
        ``(n_spots, 2)``: centres in the element, and in level-0 pixels of the image.
    key, system
        Name of the element and of the coordinate system that it shares with the image.

    Raises
    ------
    ValueError
        If a centre is not finite or farther away than any image is large, or if more than half of the spots that were apart
        share a pixel.
    """
    far = ~(np.abs(mapped) < FARTHEST).all(axis=1)
    way_out = "correct it with spatialdata.transformations.set_transformation"
    text = f"The transformation from {key!r} to the image, through the coordinate system {system!r},"
    if far.any():
        raise InvalidValueError(
            f"{text} puts {far.sum()} of {len(xy)} spots at places such as {mapped[far][0].tolist()} px (x, y).",
            way_out,
        )
    places, pixels = (len(np.unique(points @ [1, 1j])) for points in (xy, np.floor(mapped)))
    if places > 1 and pixels < DISTINCT * places:
        extent = np.ptp(mapped, axis=0)
        raise InvalidValueError(
            f"{text} puts {places} spots on {pixels} pixels: together they are {extent[0]:.3g} x {extent[1]:.3g} px.",
            way_out,
        )
