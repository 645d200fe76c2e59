from __future__ import annotations

import re
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from st_predict._errors import InvalidTypeError, StPredictError
from st_predict.crops import iter_batches, plan_crops
from st_predict.io import open_pyramid
from st_predict.pl import crops
from st_predict.specs import CropSpec, LevelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

THREE = CropSpec(levels=tuple(LevelSpec(size=40, downsample=d) for d in (1, 2, 4)))


def squares(axes: plt.Axes) -> list[tuple[float, float, float]]:
    """Left, top and side of each field, finest first."""
    fields = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    return [(field.get_x(), field.get_y(), field.get_width()) for field in fields[::-1]]


def seen(axes: plt.Axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


@pytest.mark.parametrize("spot", ["s0", "s5", "s11"])
@pytest.mark.parametrize("mpp", [None, 1.0])
def test_crops_are_those_that_a_network_is_given(sdata: SpatialData, spot: str, mpp: float | None) -> None:
    levels = tuple(LevelSpec(size=s, downsample=d) for s, d in ((40, 1), (30, 2.5), (16, 4)))
    spec = CropSpec(levels=levels, mpp=mpp, pad_value=200)
    axes = crops(sdata, spec, spot=spot, mpp=0.7)
    reader = open_pyramid(sdata)
    xy = np.array([(x, y) for y in (50, 200, 390) for x in (10, 150, 300, 590)], dtype=float)[[int(spot[1:])]]
    plan = plan_crops(xy, spec, downsamples=reader.downsamples, mpp=0.7)
    (batch,) = iter_batches(reader, plan, batch_size=None, pad_value=200)
    for one, crop in zip(axes[1:], batch.crops, strict=True):
        # resampling of Pillow and torch may round the other way
        np.testing.assert_allclose(seen(one), crop[0].permute(1, 2, 0).numpy(), atol=1)


def test_squares_are_nested_around_the_spot(sdata: SpatialData) -> None:
    axes = crops(sdata, THREE, spot="s6")
    assert squares(axes[0]) == [(280, 180, 40), (260, 160, 80), (220, 120, 160)]
    assert axes[0].get_title() == "spot s6"
    left, right = axes[0].get_xlim()
    bottom, top = axes[0].get_ylim()
    assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx((300, 200))
    assert left < 220
    assert bottom > top


def test_colours_match_the_crops(sdata: SpatialData) -> None:
    axes = crops(sdata, THREE, spot="s6")
    edges = [patch.get_edgecolor() for patch in axes[0].patches if not patch.get_fill()][::-1]
    assert [one.patches[0].get_edgecolor() for one in axes[1:]] == edges
    assert len(set(edges)) == 3


def test_fields_are_scaled_to_the_image(sdata: SpatialData) -> None:
    spec = CropSpec(levels=(LevelSpec(size=20), LevelSpec(size=20, downsample=2)), mpp=1.0)
    axes = crops(sdata, spec, spot=(300.0, 200.0), mpp=0.5)
    assert squares(axes[0]) == [(280, 180, 40), (260, 160, 80)]
    assert [one.get_title() for one in axes] == [
        "x 300, y 200",
        "20 x 20 px of 1 µm\nfield 40 px = 20 µm",
        "20 x 20 px of 2 µm\nfield 80 px = 40 µm",
    ]
    # 80 px and some around are 56 um
    assert axes[0].artists[0].txt_label.get_text() == "10 µm"


def test_without_mpp_there_are_no_micrometres(sdata: SpatialData) -> None:
    axes = crops(sdata, THREE, spot="s6")
    assert axes[2].get_title() == "40 x 40 px\nfield 80 px"
    assert not axes[0].artists


def test_outside_the_image_is_padding(sdata: SpatialData) -> None:
    axes = crops(sdata, CropSpec(levels=(LevelSpec(size=40),)), spot="s0")  # at x 10, y 50
    assert (seen(axes[1])[:, :10] == 255).all()
    np.testing.assert_array_equal(seen(axes[1])[0, 10:, 0], np.arange(30) // 4)


def test_the_image_around_is_in_place(sdata: SpatialData) -> None:
    axes = crops(sdata, THREE, spot="s0")
    left, right, bottom, top = axes[0].images[0].get_extent()
    assert (left, top) == (0, 0)
    np.testing.assert_array_equal(seen(axes[0])[0, :, 0], np.arange(right) // 4)
    np.testing.assert_array_equal(seen(axes[0])[:, 0, 1], np.arange(bottom) // 4)


def test_the_spot_in_the_middle_is_the_default(sdata: SpatialData) -> None:
    # medians are x 225 and y 200, between spots 5 and 6
    assert crops(sdata, THREE)[0].get_title() in {"spot s5", "spot s6"}


def test_what_cannot_be_drawn(sdata: SpatialData) -> None:
    fixed = CropSpec(levels=(LevelSpec(size=20),), mpp=0.5)
    with pytest.raises(ValueError, match=r"0.5 um/px, and the mpp of the image is unknown. Give it with mpp="):
        crops(sdata, fixed)
    with pytest.raises(ValueError, match=r"The image has 1 um/px, the model needs 0.5 um/px or finer"):
        crops(sdata, fixed, mpp=1.0)
    with pytest.raises(ValueError, match="finer than the image has"):
        crops(sdata, CropSpec(levels=(LevelSpec(size=20, downsample=0.5),)))
    with pytest.raises(KeyError, match=r"No spot 's77' among 12, which are named like \['s7'"):
        crops(sdata, THREE, spot="s77")
    with pytest.raises(ValueError, match=re.escape("is outside the image of 600 x 400 px, at x 600, y 10")):
        crops(sdata, THREE, spot=(600.0, 10.0))
    del sdata.images["he"]
    with pytest.raises(ValueError, match="There is no image"):
        crops(sdata, THREE)
    assert not plt.get_fignums()


def test_axes_of_the_user_and_saving(sdata: SpatialData, tmp_path: Path) -> None:
    figure, given = plt.subplots(2, 2)
    axes = crops(sdata, THREE, ax=given)
    assert list(axes) == list(given.ravel())
    assert plt.fignum_exists(figure.number)
    crops(sdata, THREE, save=tmp_path / "crops.png")
    assert plt.get_fignums() == [figure.number]
    assert (tmp_path / "crops.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("crop", None),
        ("spot", 3),
        ("spot", (1.0,)),
        ("spot", (np.nan, 1.0)),
        ("mpp", "half"),
        ("region", 3),
        ("table_key", 3),
        ("image_key", ["he"]),
        ("figsize", "large"),
        ("save", 3),
        ("show", 3),
    ],
)
def test_arguments_of_another_type_are_named(sdata: SpatialData, argument: str, value: object) -> None:
    with pytest.raises(StPredictError, match=rf"^{argument}.* (must be|must be|is missing)"):
        crops(**{"sdata": sdata, "crop": THREE, argument: value})
    with pytest.raises(InvalidTypeError, match="sdata must be a SpatialData object, got an AnnData"):
        crops(sdata["table"], THREE)
    assert not plt.get_fignums()


def test_a_place_may_be_an_array(sdata: SpatialData) -> None:
    assert crops(sdata, THREE, spot=np.array([300, 200]))[0].get_title() == "x 300, y 200"
