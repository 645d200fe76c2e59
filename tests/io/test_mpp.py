"""Micrometres per pixel, against arithmetic."""

from __future__ import annotations

import logging
import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

from st_predict._errors import InvalidValueError
from st_predict.io import Mpp, find_mpp
from st_predict.io._mpp import lattice_pitch, square_pixels


def _um(sdata, x, y, system="um"):
    set_transformation(sdata["he"], Scale([x, y], axes=("x", "y")), system)


def _hexagonal(n_rows, n_cols):
    """Rows and columns of Visium, and centres for a pitch of 1."""
    grid = np.array([(r, c) for r in range(n_rows) for c in range(r % 2, n_cols, 2)])
    return grid, grid[:, ::-1] * [0.5, np.sqrt(3) / 2]


def _square(n_rows, n_cols):
    grid = np.array([(r, c) for r in range(n_rows) for c in range(n_cols)])
    return grid, grid[:, ::-1].astype(float)


def _section(grid, xy, *, instance_key="instance", image=None, **uns):
    index = np.arange(len(xy))
    circles = gpd.GeoDataFrame({"radius": 1.0}, geometry=[Point(p) for p in xy], index=index)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["spots"] * len(xy)),
            instance_key: index,
            "array_row": grid[:, 0],
            "array_col": grid[:, 1],
        },
        index=index.astype(str),
    )
    if instance_key == "spot_id":
        obs["in_tissue"] = 1
    table = TableModel.parse(
        AnnData(np.zeros((len(xy), 1), np.float32), obs=obs, uns=uns),
        region="spots",
        region_key="region",
        instance_key=instance_key,
    )
    he = Image2DModel.parse(
        np.zeros((3, 20, 20), np.uint8), dims=("c", "y", "x"), transformations={"global": image or Identity()}
    )
    return SpatialData(images={"he": he}, shapes={"spots": ShapesModel.parse(circles)}, tables={"table": table})


def test_an_argument_is_taken(sdata):
    _um(sdata, 0.3, 0.3)
    assert find_mpp(sdata, image_key="he", mpp=0.5) == Mpp(0.5, "argument")


@pytest.mark.parametrize("mpp", [0, -1, np.nan, np.inf])
def test_an_impossible_argument_is_refused(sdata, mpp):
    with pytest.raises(ValueError, match=f"mpp must be a positive number, got {mpp} from argument"):
        find_mpp(sdata, mpp=mpp)


def test_another_word_than_spots_is_refused(sdata):
    with pytest.raises(ValueError, match="must be a number, 'spots' or None, got 'image'"):
        find_mpp(sdata, mpp="image")


@pytest.mark.parametrize(
    "name", ["um", "µm", "μm", "UM", "micrometers", "Micrometer", "micron", "microns", "micrometre"]
)
def test_a_coordinate_system_in_micrometres(sdata, name):
    _um(sdata, 0.4, 0.4, name)
    found = find_mpp(sdata)
    assert found.value == pytest.approx(0.4)
    assert repr(name) in found.source


@pytest.mark.parametrize("name", ["aligned", "mm", "column", "umap"])
def test_another_coordinate_system_says_nothing(sdata, name):
    _um(sdata, 0.4, 0.4, name)
    assert find_mpp(sdata) is None


def test_rotation_does_not_change_the_scale(sdata):
    turn = 0.37 * np.array([[0.6, -0.8], [0.8, 0.6]])
    matrix = np.block([[turn, np.array([[5.0], [6.0]])], [np.zeros((1, 2)), np.ones((1, 1))]])
    set_transformation(sdata["he"], Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y")), "um")
    assert find_mpp(sdata).value == pytest.approx(0.37)


def test_pixels_that_are_not_square(sdata):
    _um(sdata, 0.4, 0.402)
    assert find_mpp(sdata).value == pytest.approx(0.401)
    _um(sdata, 0.4, 0.41)
    with pytest.raises(ValueError, match=re.escape("Pixels are not square: 0.41 by 0.4 um")):
        find_mpp(sdata)


@pytest.mark.parametrize("value", [0.25, [0.25, 0.25]])
def test_attributes_of_the_image(sdata, value):
    sdata["he"].attrs["mpp"] = value
    assert find_mpp(sdata) == Mpp(0.25, "attribute 'mpp' of the image")


def test_the_coordinate_system_comes_before_the_attributes(sdata):
    sdata["he"].attrs["mpp"] = 0.25
    _um(sdata, 0.4, 0.4)
    assert find_mpp(sdata).value == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("lattice", "uns", "pitch_um"),
    [
        (_hexagonal(12, 20), {"assay": "visium"}, 100),
        (_square(9, 7), {"assay": "legacy_st"}, 200),
        (_square(9, 7), {"assay": "visium_hd", "bin_um": 16}, 16),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_distance_between_spots(lattice, uns, pitch_um, scale):
    grid, xy = lattice
    pitch = 80.0
    sdata = _section(grid, xy * pitch + 11, image=Scale([scale, scale], axes=("x", "y")), **uns)
    found = find_mpp(sdata)
    assert found.value == pytest.approx(pitch_um / (pitch / scale))
    assert uns["assay"] in found.source
    assert find_mpp(sdata, mpp="spots") == found


def test_a_grid_does_not_hide_the_lattice():
    grid, xy = _square(5, 5)
    sdata = _section(grid, xy * 100, assay="legacy_st")
    sdata["grid"] = ShapesModel.parse(gpd.GeoDataFrame({"radius": [1.0, 1.0]}, geometry=[Point(1, 1), Point(2, 2)]))
    assert find_mpp(sdata, shapes_key="grid").value == pytest.approx(2.0)
    assert find_mpp(sdata, shapes_key="spots").value == pytest.approx(2.0)


def test_the_image_comes_before_the_spots_unless_they_are_asked_for():
    grid, xy = _square(5, 5)
    sdata = _section(grid, xy * 100, assay="legacy_st")
    _um(sdata, 0.5, 0.5)
    assert find_mpp(sdata).value == pytest.approx(0.5)
    assert find_mpp(sdata, mpp="spots").value == pytest.approx(2.0)


def test_visium_of_spatialdata_io_is_known():
    grid, xy = _hexagonal(12, 20)
    assert find_mpp(_section(grid, xy * 50, instance_key="spot_id")).value == pytest.approx(2.0)


def test_square_bins_are_not_taken_for_visium():
    grid, xy = _square(12, 20)
    assert find_mpp(_section(grid, xy * 50, instance_key="spot_id")) is None


def test_a_lattice_of_an_unknown_assay_says_nothing():
    grid, xy = _square(5, 5)
    sdata = _section(grid, xy * 100)
    assert find_mpp(sdata) is None
    with pytest.raises(ValueError, match="distance between the spots of table 'table' is unknown"):
        find_mpp(sdata, mpp="spots")


def test_unknown_assay_and_bins():
    grid, xy = _square(5, 5)
    with pytest.raises(ValueError, match="Unknown assay 'slideseq'"):
        find_mpp(_section(grid, xy, assay="slideseq"))
    with pytest.raises(ValueError, match="'bin_um'"):
        find_mpp(_section(grid, xy, assay="visium_hd"))


def test_spots_without_a_table_or_a_lattice(sdata):
    sdata["table"].uns["assay"] = "visium"
    with pytest.raises(ValueError, match="no complete columns 'array_row' and 'array_col'"):
        find_mpp(sdata)
    with pytest.raises(ValueError, match="sdata has no table of spots"):
        find_mpp(SpatialData(images={"he": sdata["he"]}), mpp="spots")


def test_nothing_known_says_what_to_do(sdata):
    assert find_mpp(sdata) is None
    with pytest.raises(
        ValueError, match=re.escape("micrometres a pixel of image 'he' has. Give it with mpp=, or set a transformation")
    ):
        find_mpp(sdata, required=True)


@pytest.mark.parametrize(("lattice", "hexagonal"), [(_square(12, 12), False), (_hexagonal(14, 20), True)])
def test_pitch_of_a_jittered_turned_lattice_with_far_off_spots(lattice, hexagonal):
    grid, xy = lattice
    generator = np.random.default_rng(0)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    centres = (xy + generator.normal(0, 0.05, xy.shape)) @ turn.T * 300 + 1000
    centres[[5, 60]] += 4000
    assert lattice_pitch(centres, grid, hexagonal=hexagonal) == pytest.approx(300, rel=0.005)


def test_what_is_no_lattice_is_refused():
    grid, xy = _square(8, 8)
    shuffled = np.random.default_rng(0).permutation(xy)
    with pytest.raises(ValueError, match="lie on no square lattice"):
        lattice_pitch(shuffled * 100, grid)
    with pytest.raises(ValueError, match="lie on no hexagonal lattice"):
        lattice_pitch(xy * 100, grid, hexagonal=True)
    with pytest.raises(ValueError, match="on one line"):
        lattice_pitch(xy[:8], grid[:8])
    with pytest.raises(ValueError, match="on one line"):
        lattice_pitch(xy[:2], grid[:2])


def test_resolving_logs_value_and_source(sdata, caplog):
    caplog.set_level(logging.INFO, logger="st_predict")
    assert find_mpp(sdata, mpp=0.5, required=True) == Mpp(0.5, "argument")
    assert "0.5 um per pixel, from argument" in caplog.text


def test_advice_is_about_arguments_of_the_called_function(sdata):
    _um(sdata, 0.5, 0.4)
    with pytest.raises(InvalidValueError) as caught:
        find_mpp(sdata)
    assert str(caught.value).endswith("Resample the image, or give it with mpp=.")
    with pytest.raises(InvalidValueError) as caught:
        square_pixels(0.5, 0.4, "somewhere")
    assert str(caught.value).endswith("from somewhere. Resample the image.")


@pytest.mark.parametrize("mpp", ["half", [0.5], np.zeros(2), True, {}])
def test_an_argument_of_another_type_is_named(sdata, mpp):
    with pytest.raises(InvalidValueError, match=r"mpp must be a .*number.*, got"):
        find_mpp(sdata, mpp=mpp)


@pytest.mark.parametrize("mpp", [np.float32(0.5), np.float64(0.5)])
def test_numbers_of_numpy_become_those_of_python(sdata, mpp):
    assert type(find_mpp(sdata, mpp=mpp).value) is float


@pytest.mark.parametrize("value", ["half", [1, 2, 3], {}])
def test_an_attribute_that_is_no_number(sdata, value):
    sdata["he"]["scale0"]["image"].attrs["mpp"] = value
    with pytest.raises(InvalidValueError, match=r"got .* from attribute 'mpp' of the image. Give it with mpp="):
        find_mpp(sdata)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_a_coordinate_system_that_says_nothing(sdata, scale):
    _um(sdata, scale, scale)
    with pytest.raises(InvalidValueError, match="transformation of the image to 'um' cannot be inverted"):
        find_mpp(sdata)


@pytest.mark.parametrize("width", ["wide", -2.0])
def test_bins_that_have_no_width(width):
    grid, xy = _square(4, 4)
    with pytest.raises(InvalidValueError, match=r"uns\['bin_um'\] must be"):
        find_mpp(_section(grid, xy, assay="visium_hd", bin_um=width))


def test_columns_of_text_are_no_visium():
    grid, xy = _hexagonal(4, 8)
    sdata = _section(grid, xy * 10, instance_key="spot_id")
    sdata["table"].obs[["array_row", "array_col"]] = "a"
    assert find_mpp(sdata) is None
