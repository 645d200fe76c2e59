"""Resolutions that cannot be, or that two sources do not agree about."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from shapely import Point
from spatialdata.transformations import Scale, set_transformation

from st_predict import pp
from st_predict.io import find_mpp

if TYPE_CHECKING:
    from spatialdata import SpatialData


def in_um(sdata: SpatialData, mpp: float, system: str = "um") -> None:
    set_transformation(sdata["he"], Scale([mpp, mpp], axes=("x", "y")), system)


@pytest.mark.parametrize("mpp", [25400 / 72, 250, 0.00025, 0.025, 1e-300, 1e300])
def test_what_no_microscope_has_is_refused_with_its_source(sdata: SpatialData, mpp: float) -> None:
    in_um(sdata, mpp)
    found = re.escape(f"'he' has {mpp:.4g} um per pixel, from coordinate system 'um'")
    with pytest.raises(ValueError, match=found + r".* 0\.05 to 50\. Give the right one with mpp="):
        find_mpp(sdata, required=True)
    with pytest.raises(ValueError, match=r"from argument.*Correct mpp="):
        find_mpp(sdata, mpp=mpp)
    assert find_mpp(sdata, mpp=0.5).value == 0.5  # a wrong file is corrected by the argument


@pytest.mark.parametrize(("mpp", "dpi"), [(25400 / 72, "72 dpi"), (25400 / 300, "300 dpi"), (300.0, None)])
def test_resolutions_of_prints_are_called_so(sdata: SpatialData, mpp: float, dpi: str | None) -> None:
    in_um(sdata, mpp)
    with pytest.raises(ValueError, match="um per pixel") as caught:
        pp.make_grid(sdata)
    assert ("dpi" in str(caught.value)) == (dpi is not None)
    assert dpi is None or f"({dpi}, a resolution of prints and screens)" in str(caught.value)
    assert "pitch_um" not in str(caught.value)


@pytest.mark.parametrize(("mpp", "warned"), [(0.06, True), (0.1, False), (0.25, False), (5, False), (30, True)])
def test_what_few_images_have_is_said(
    sdata: SpatialData, caplog: pytest.LogCaptureFixture, mpp: float, warned: bool
) -> None:
    in_um(sdata, mpp)
    with caplog.at_level(logging.WARNING):
        assert find_mpp(sdata, required=True).value == pytest.approx(mpp)
    assert (f"'he' has {mpp:.4g} um per pixel, from coordinate system 'um'" in caplog.text) == warned


def test_without_need_it_is_only_said(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    in_um(sdata, 400)
    assert find_mpp(sdata).value == pytest.approx(400)
    assert "has 400 um per pixel" in caplog.text


def with_lattice(sdata: SpatialData, *, um: float) -> SpatialData:
    """The spots of ``sdata`` on a square lattice 100 px apart, and an image in ``um``."""
    xy = [(50 + 100 * column, 50 + 100 * row) for row in range(3) for column in range(4)]
    sdata["spots"]["geometry"] = [Point(x / 2, y / 2) for x, y in xy]
    obs = sdata["table"].obs
    obs["array_row"], obs["array_col"] = np.divmod(np.arange(12), 4)
    sdata["table"].uns["assay"] = "legacy_st"  # 200 um, so 2 um per pixel
    in_um(sdata, um)
    return sdata


@pytest.mark.parametrize(("um", "said"), [(2.1, False), (1.5, True), (0.5, True)])
def test_sources_that_differ_are_named(
    sdata: SpatialData, caplog: pytest.LogCaptureFixture, um: float, said: bool
) -> None:
    assert find_mpp(with_lattice(sdata, um=um), required=True).value == pytest.approx(um)
    text = f"{um} um per pixel from coordinate system 'um', and 2 from distance between spots (legacy_st: 200 um, 100.00 px)"
    assert (text in caplog.text) == said


@pytest.mark.parametrize("um", [0.2, 20])
def test_a_factor_of_ten_between_image_and_spots_is_refused(sdata: SpatialData, um: float) -> None:
    with pytest.raises(
        ValueError, match=r"and 2 from distance between spots .* 10 times more or less. Give .* mpp=, or"
    ):
        find_mpp(with_lattice(sdata, um=um), required=True)
    assert find_mpp(sdata, mpp=2).value == 2


@pytest.mark.parametrize("mpp", [0.2, 20])
def test_an_argument_is_compared_with_the_spots(sdata: SpatialData, mpp: float) -> None:
    with pytest.raises(ValueError, match=r"from argument, and 2 from distance between spots.*Correct mpp="):
        find_mpp(with_lattice(sdata, um=2.0), mpp=mpp)


def test_two_coordinate_systems_that_differ(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    in_um(sdata, 0.5)
    in_um(sdata, 0.4, "micrometers")
    find_mpp(sdata, required=True)
    assert "0.5 um per pixel from coordinate system 'um', and 0.4 from coordinate system 'micrometers'" in caplog.text
    in_um(sdata, 5, "micrometers")
    with pytest.raises(ValueError, match="10 times more or less"):
        find_mpp(sdata, required=True)


def test_attributes_are_compared_too(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    in_um(sdata, 0.5)
    sdata["he"].attrs["mpp"] = 0.4
    find_mpp(sdata, required=True)
    assert "and 0.4 from attribute 'mpp' of the image" in caplog.text
