"""Channels are told apart by name."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata.models import Image2DModel

from st_predict.io import SpatialDataPyramid

PIXELS = np.random.default_rng(0).integers(0, 255, (3, 40, 60), dtype=np.uint8)


def pyramid(pixels: np.ndarray, names: list[object] | None, **kwargs: object) -> SpatialDataPyramid:
    return SpatialDataPyramid(Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names, **kwargs))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["b", "g", "r"], [2, 1, 0]),
        (["Green", "blue", "RED"], [2, 0, 1]),
        (["red channel", "green_channel", "blue"], [0, 1, 2]),
        (["R", "B", "G"], [0, 2, 1]),
        ([2, 1, 0], [2, 1, 0]),
        (["channel_1", "channel_2", "channel_3"], [0, 1, 2]),
        (["C2", "C0", "C1"], [1, 2, 0]),
        (None, [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("levels", [{}, {"scale_factors": [2]}])
def test_order_by_name(names: list[object] | None, order: list[int], levels: dict[str, object]) -> None:
    reader, plain = pyramid(PIXELS, names, **levels), pyramid(PIXELS[order], ["r", "g", "b"], **levels)
    np.testing.assert_array_equal(reader.read(5, 3, 20, 30, level=0), PIXELS[order][:, 3:33, 5:25].transpose(1, 2, 0))
    for level in range(len(plain.level_shapes)):
        np.testing.assert_array_equal(reader.read(0, 0, 20, 20, level=level), plain.read(0, 0, 20, 20, level=level))


@pytest.mark.parametrize(
    "names",
    [
        ["DAPI", "CD3", "PanCK"],
        ["hematoxylin", "eosin", "dab"],
        ["r", "g", "g2"],
        ["h", "s", "v"],
        [0, 3, 5],
        ["r", "g", 2],
    ],
)
def test_other_channels_are_refused_by_name(names: list[object]) -> None:
    with pytest.raises(
        ValueError, match=r"got channels called \[.*, which are other stains or colours.*set_channel_names"
    ):
        pyramid(PIXELS, names)
