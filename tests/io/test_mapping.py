"""Transformations that put spots on one another, or out of reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from spatialdata.transformations import Affine, set_transformation

from st_predict.io import read_spots

if TYPE_CHECKING:
    from spatialdata import SpatialData


def scaled(factor: float, shift: float = 0.0) -> Affine:
    matrix = np.array([[factor, 0, shift], [0, factor, shift], [0, 0, 1]])
    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))


@pytest.mark.parametrize(
    ("element", "transformation", "message"),
    [
        ("spots", scaled(1e-9, 5), "puts 12 spots on 1 pixels: together they are 2.9e-07 x 1.7e-07 px"),
        ("spots", scaled(4e-3, 200), "puts 12 spots on 2 pixels"),
        ("he", scaled(1e200), "puts 12 spots on 1 pixels"),
        ("spots", scaled(1e300), "puts 12 of 12 spots at places such as"),
        ("spots", scaled(1, 1e20), "puts 12 of 12 spots at places such as"),
        ("he", scaled(1e-300), "puts 12 of 12 spots at places such as"),
        ("spots", scaled(np.nan), "cannot be inverted"),
        ("spots", scaled(np.inf), "cannot be inverted"),
        ("he", scaled(1, np.nan), "cannot be inverted"),
        ("he", scaled(0), "cannot be inverted"),
    ],
)
def test_impossible_transformations(sdata: SpatialData, element: str, transformation: Affine, message: str) -> None:
    set_transformation(sdata[element], transformation, "global")
    with pytest.raises(ValueError, match=message):
        read_spots(sdata)
