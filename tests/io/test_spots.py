"""Spot centres, against arithmetic."""

from __future__ import annotations

import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import ndimage
from shapely import Point, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation, set_transformation

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._sections._cells import spot_radius
from st_predict._sections._section import open_sdata
from st_predict._where import Where
from st_predict.io import Spots, open_pyramid, read_spots, spots_outside
from st_predict.io._label_centres import label_centres

XY = np.array([(x, y) for y in (50, 200, 390) for x in (10, 150, 300, 590)], float)
QUARTER_TURN = Affine([[0, -1, 400], [1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
MIRROR = Affine([[-1, 0, 600], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def _section(xy, *, shapes=None, image=None, system="global", shape=(400, 600)):
    """Spots at ``xy`` and an image, each with its transformation."""
    index = [f"s{i}" for i in range(len(xy))]
    gdf = gpd.GeoDataFrame({"radius": 1.0}, geometry=[Point(p) for p in xy], index=index)
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(xy)), "instance": index}, index=index)
    table = AnnData(np.zeros((len(xy), 1), np.float32), obs=obs)
    return SpatialData(
        images={
            "he": Image2DModel.parse(
                np.zeros((3, *shape), np.uint8), dims=("c", "y", "x"), transformations={system: image or Identity()}
            )
        },
        shapes={"spots": ShapesModel.parse(gdf, transformations={system: shapes or Identity()})},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )


def test_half_resolution_shapes(sdata):
    spots = read_spots(sdata, image_key="he")
    np.testing.assert_allclose(spots.xy, XY)
    assert list(spots.names) == [f"s{i}" for i in range(12)]
    assert spots.grid is None
    assert len(spots) == 12


def test_the_pixel_under_a_spot(sdata):
    reader = open_pyramid(sdata)
    for x, y in read_spots(sdata).xy:
        red, green, _ = reader.read(int(x), int(y), 1, 1, level=0)[0, 0]
        assert (red, green) == (x // 4, y // 4)


@pytest.mark.parametrize(
    ("shapes", "image", "truth"),
    [
        (Identity(), Identity(), lambda x, y: (x, y)),
        (Scale([0.5, 0.5], axes=("x", "y")), Identity(), lambda x, y: (x / 2, y / 2)),
        (Identity(), Scale([4, 4], axes=("x", "y")), lambda x, y: (x / 4, y / 4)),  # spots of the full resolution
        (Translation([7, -3], axes=("x", "y")), Identity(), lambda x, y: (x + 7, y - 3)),
        (Identity(), Translation([7, -3], axes=("x", "y")), lambda x, y: (x - 7, y + 3)),
        (QUARTER_TURN, Identity(), lambda x, y: (400 - y, x)),
        (Identity(), QUARTER_TURN, lambda x, y: (y, 400 - x)),
        (MIRROR, Identity(), lambda x, y: (600 - x, y)),
        (
            Sequence([Scale([2, 2], axes=("x", "y")), QUARTER_TURN]),
            Sequence([Translation([5, 6], axes=("x", "y")), Scale([3, 3], axes=("x", "y"))]),
            lambda x, y: ((400 - 2 * y) / 3 - 5, 2 * x / 3 - 6),
        ),
    ],
)
@pytest.mark.parametrize(("system", "stored"), [("global", False), ("downscaled_hires", True)])
def test_transformations(shapes, image, truth, system, stored, tmp_path):
    sdata = _section(XY, shapes=shapes, image=image, system=system)
    if stored:
        sdata.write(tmp_path / "s.zarr")
        sdata = SpatialData.read(tmp_path / "s.zarr")
    np.testing.assert_allclose(read_spots(sdata).xy, [truth(x, y) for x, y in XY], atol=1e-6)


@pytest.mark.parametrize("matrix", [[[1, 0.02, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1.02, 0], [0, 0, 1]]])
def test_shear_and_unequal_scale_are_refused(matrix):
    sdata = _section(XY, shapes=Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y")))
    with pytest.raises(ValueError, match="shears, or scales x and y differently"):
        read_spots(sdata)


def test_rounding_of_a_scale_is_no_unequal_scale():
    sdata = _section(XY, shapes=Scale([0.5, 0.50004], axes=("x", "y")))
    np.testing.assert_allclose(read_spots(sdata).xy, XY * [0.5, 0.50004])


def test_no_shared_coordinate_system():
    sdata = _section(XY)
    set_transformation(sdata["he"], {"hires": Identity()}, set_all=True)
    with pytest.raises(ValueError, match=re.escape("'spots' is in ['global'], the image in ['hires']")):
        read_spots(sdata)


def test_systems_that_agree_and_systems_that_do_not():
    sdata = _section(XY)
    for name in ("he", "spots"):
        set_transformation(sdata[name], Scale([0.7, 0.7], axes=("x", "y")), "um")
    np.testing.assert_allclose(read_spots(sdata).xy, XY)
    set_transformation(sdata["he"], Scale([0.8, 0.8], axes=("x", "y")), "um")
    with pytest.raises(ValueError, match="coordinate systems 'global' and 'um'"):
        read_spots(sdata)


@pytest.mark.parametrize("direction", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_systems_may_differ_by_half_a_pixel(direction):
    sdata = _section(XY)
    set_transformation(sdata["he"], Identity(), "other")
    for shift, agree in ((0.499, True), (0.501, False)):
        moved = Translation([shift * d for d in direction], axes=("x", "y"))
        set_transformation(sdata["spots"], moved, "other")
        if agree:
            np.testing.assert_allclose(read_spots(sdata).xy, XY)  # those of the first system, by name
        else:
            with pytest.raises(ValueError, match="'global' and 'other', which put the spots on different pixels"):
                read_spots(sdata)


def test_half_a_pixel_is_one_of_the_image():
    wide = Scale([10, 10], axes=("x", "y"))  # units of the system are a tenth of a pixel
    sdata = _section(XY)
    set_transformation(sdata["he"], wide, "other")
    for shift, agree in ((4.99, True), (5.01, False)):
        set_transformation(sdata["spots"], Sequence([wide, Translation([shift, 0], axes=("x", "y"))]), "other")
        if agree:
            np.testing.assert_allclose(read_spots(sdata).xy, XY)
        else:
            with pytest.raises(ValueError, match="different pixels"):
                read_spots(sdata)


def test_order_is_that_of_the_table(sdata):
    order = np.random.default_rng(0).permutation(12)
    sdata["table"] = sdata["table"][order].copy()
    spots = read_spots(sdata)
    assert list(spots.names) == [f"s{i}" for i in order]
    np.testing.assert_allclose(spots.xy, XY[order])


def test_a_table_may_hold_fewer_spots_than_the_shapes(sdata):
    sdata["table"] = sdata["table"][[7, 2]].copy()
    np.testing.assert_allclose(read_spots(sdata).xy, XY[[7, 2]])


def test_a_table_of_several_sections_needs_a_region():
    one = _section(XY)
    two = _section(XY[:5] + 1)
    obs = pd.concat(
        [
            pd.DataFrame({"region": "one", "instance": one["table"].obs["instance"].to_numpy()}),
            pd.DataFrame({"region": "two", "instance": two["table"].obs["instance"].to_numpy()}),
        ],
        ignore_index=True,
    )
    obs.index = [f"row{i}" for i in range(17)]
    obs["region"] = obs["region"].astype("category")
    table = AnnData(np.zeros((17, 1), np.float32), obs=obs)
    table = TableModel.parse(table, region=["one", "two"], region_key="region", instance_key="instance")
    sdata = SpatialData(
        images={"he": one["he"]}, shapes={"one": one["spots"], "two": two["spots"]}, tables={"table": table}
    )
    np.testing.assert_allclose(read_spots(sdata, region="one").xy, XY)
    spots = read_spots(sdata, region="two")
    np.testing.assert_allclose(spots.xy, XY[:5] + 1)
    assert list(spots.names) == [f"row{i}" for i in range(12, 17)]
    with pytest.raises(
        ValueError, match=re.escape("Table 'table' annotates several regions: ['one', 'two']. Choose one with region=")
    ):
        read_spots(sdata)
    with pytest.raises(KeyError, match="has no region 'three'"):
        read_spots(sdata, region="three")


def test_shapes_without_a_table(sdata):
    bare = SpatialData(images={"he": sdata["he"]}, shapes={"spots": sdata["spots"]})
    spots = read_spots(bare)
    np.testing.assert_allclose(spots.xy, XY)
    assert list(spots.names) == [f"s{i}" for i in range(12)]


def test_shapes_that_are_named_win_over_a_table(sdata):
    squares = gpd.GeoDataFrame(geometry=[box(0, 0, 10, 20), box(30, 30, 40, 40)])
    sdata["grid"] = ShapesModel.parse(squares)
    spots = read_spots(sdata, shapes_key="grid")
    np.testing.assert_allclose(spots.xy, [[5, 10], [35, 35]])
    assert list(spots.names) == ["0", "1"]


def test_points_are_spots_too(sdata):
    frame = pd.DataFrame({"x": XY[:, 0], "y": XY[:, 1]}, index=[f"s{i}" for i in range(12)])
    sdata["dots"] = PointsModel.parse(frame.sort_index())
    table = sdata["table"].copy()
    table.obs["region"] = pd.Categorical(["dots"] * 12)
    table.uns["spatialdata_attrs"]["region"] = "dots"
    sdata["table"] = table[::-1].copy()
    np.testing.assert_allclose(read_spots(sdata).xy, XY[::-1])
    assert read_spots(sdata).radius is None


def _cells(n_levels=1, *, dtype=np.uint32, first=1, chunks=None):
    """Twelve discs of different sizes, that touch blocks of the array in many ways."""
    yy, xx = np.mgrid[:200, :300]
    labels = np.zeros((200, 300), dtype)
    for i, (x, y) in enumerate((x, y) for y in (30, 95, 160) for x in (30, 110, 190, 270)):
        labels[np.hypot(xx - x - i / 3, yy - y) < 8 + i] = first + 7 * i
    return labels, Labels2DModel.parse(
        labels, dims=("y", "x"), scale_factors=[2] * (n_levels - 1) or None, chunks=chunks or (64, 80)
    )


@pytest.mark.parametrize("n_levels", [1, 3])
@pytest.mark.parametrize("first", [1, 10**7])
def test_centres_of_labels_are_their_centroids(sdata, n_levels, first):
    labels, sdata["cells"] = _cells(n_levels, first=first)
    table = sdata["table"]
    order = np.random.default_rng(0).permutation(12)
    table.obs["region"], table.obs["instance"] = pd.Categorical(["cells"] * 12), first + 7 * order
    table.uns["spatialdata_attrs"]["region"] = "cells"
    truth = np.array(ndimage.center_of_mass(labels > 0, labels, first + 7 * order))[:, ::-1] + 0.5
    np.testing.assert_allclose(read_spots(sdata).xy, truth, atol=1e-9)


def test_sparse_labels_are_renumbered():
    labels = np.zeros((30, 40), np.int64)
    labels[3:5, 6:10], labels[20:, 30:] = 2**33, 5
    names, xy = label_centres(Labels2DModel.parse(labels, dims=("y", "x")))
    assert list(names) == [5, 2**33]
    np.testing.assert_allclose(xy, [[35, 25], [8, 4]])


def test_labels_without_a_cell(sdata):
    sdata["cells"] = Labels2DModel.parse(np.zeros((40, 60), np.int32), dims=("y", "x"))
    table = sdata["table"]
    table.obs["region"] = pd.Categorical(["cells"] * 12)
    table.uns["spatialdata_attrs"]["region"] = "cells"
    with pytest.raises(ValueError, match="12 of 12 rows of the table are not in 'cells'"):
        read_spots(sdata)


def test_grid_is_row_and_column(sdata):
    obs = sdata["table"].obs
    obs["array_row"], obs["array_col"] = np.repeat([3, 4, 5], 4), np.tile([10, 11, 12, 13], 3)
    np.testing.assert_array_equal(read_spots(sdata).grid[[0, 5, 11]], [[3, 10], [4, 11], [5, 13]])
    obs["array_col"] = obs["array_col"].astype(float).where(obs["array_col"] < 13)
    assert read_spots(sdata).grid is None


def _drop_shape(sdata):
    sdata["spots"] = sdata["spots"].drop(index=["s3", "s8"])


def _empty_table(sdata):
    sdata.tables["table"]._inplace_subset_obs(np.zeros(12, bool))


def _repeat_name(sdata):
    sdata["table"].obs_names = ["s0", "s0", *[f"s{i}" for i in range(2, 12)]]


def _repeat_instance(sdata):
    sdata["table"].obs["instance"] = ["s0", "s0", *[f"s{i}" for i in range(2, 12)]]


def _nan(sdata):
    spots = sdata["spots"]
    spots.geometry = [Point(np.nan, 1), Point(1, np.inf), *spots.geometry[2:]]


def _not_annotating(sdata):
    del sdata["table"].uns["spatialdata_attrs"]


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not found:UserWarning")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_shape, "2 of 12 rows of the table are not in 'spots', the first are ['s3', 's8']"),
        (_empty_table, "Table 'table' has no rows in region 'spots'"),
        (_repeat_name, "obs_names of table 'table' must be unique, but 1 entries are repeated, the first are ['s0']"),
        (_repeat_instance, "Column 'instance' of table 'table' must be unique"),
        (_nan, "2 of 12 spots of 'spots' have coordinates that are not numbers, the first are ['s0', 's1']"),
        (_not_annotating, "Table 'table' does not say which shapes its rows are"),
    ],
)
def test_damage_is_named(sdata, damage, message):
    damage(sdata)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_spots(sdata)


def test_nothing_is_changed(sdata):
    before = sdata["table"].copy()
    read_spots(sdata)
    pd.testing.assert_frame_equal(sdata["table"].obs, before.obs)
    assert sdata["table"].uns.keys() == before.uns.keys()


def test_outside():
    xy = np.array([[0, 0], [599.9, 399.9], [600, 10], [10, 400], [-0.1, 5], [5, -0.1]])
    spots = Spots(names=pd.Index(list("abcdef")), xy=xy)
    assert spots_outside(spots, (400, 600)).tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("shapes", "image", "scale"),
    [
        (Scale([2, 2], axes=("x", "y")), Identity(), 2),
        (QUARTER_TURN, Scale([4, 4], axes=("x", "y")), 1 / 4),
        (MIRROR, Identity(), 1),
    ],
)
def test_radii_are_in_pixels_of_the_image(shapes, image, scale):
    sdata = _section(XY, shapes=shapes, image=image)
    sdata.shapes["spots"]["radius"] = np.arange(1.0, 13.0)
    sdata.tables["table"] = sdata.tables["table"][::-1].copy()
    np.testing.assert_allclose(read_spots(sdata).radius, scale * np.arange(12.0, 0, -1))
    np.testing.assert_allclose(read_spots(sdata, shapes_key="spots").radius, scale * np.arange(1.0, 13.0))


def test_polygons_have_no_radius():
    sdata = _section(XY)
    corners = [box(x, y, x + 2, y + 2) for x, y in XY]
    sdata.shapes["squares"] = ShapesModel.parse(gpd.GeoDataFrame({"radius": [3.0] * 12}, geometry=corners))
    assert read_spots(sdata, shapes_key="squares").radius is None


@pytest.mark.parametrize("scale", [[0.0, 0.0], [1.0, 0.0], [np.nan, 1.0], [np.inf, np.inf]])
@pytest.mark.parametrize("element", ["he", "spots"])
def test_a_transformation_that_cannot_be_inverted_is_named(sdata, element, scale):
    set_transformation(sdata[element], Scale(scale, axes=("x", "y")), "global")
    named = "the image" if element == "he" else "'spots'"
    with pytest.raises(
        InvalidValueError, match=f"transformation of {named} to 'global' cannot be inverted: its matrix"
    ):
        read_spots(sdata)


@pytest.mark.parametrize(
    ("places", "first"),
    [
        (["a"] * 12, "'a' of 's0'"),
        (["0", "1", "1_x"] + ["2"] * 9, "'1_x' of 's2'"),
        ([np.inf] * 12, "inf of 's0'"),
        ([1e300] * 12, "e.300.? of 's0'"),
        ([1.0, 2.5] + [3.0] * 10, "2.5.? of 's1'"),
    ],
)
def test_places_on_the_lattice_are_whole_numbers(sdata, places, first):
    sdata["table"].obs["array_row"] = 1
    sdata["table"].obs["array_col"] = places
    with pytest.raises(InvalidValueError, match=rf"\.obs\['array_col'\] must be whole numbers.*{first}"):
        read_spots(sdata)


@pytest.mark.parametrize("dtype", [float, str, "category", "Float64"])
def test_places_near_whole_numbers_are_rounded(sdata, dtype):
    measured = [0.97, 2.02, 2.98, 4.2] * 3
    sdata["table"].obs["array_row"] = pd.Series(np.repeat([-0.1, 1.1, 1.99], 4), index=sdata["table"].obs_names)
    sdata["table"].obs["array_col"] = pd.Series(measured, index=sdata["table"].obs_names).astype(dtype)
    np.testing.assert_array_equal(read_spots(sdata).grid, np.stack([np.repeat([0, 1, 2], 4), [1, 2, 3, 4] * 3], axis=1))


@pytest.mark.parametrize("arguments", [{"region": 0}, {"region": ["spots"]}, {"shapes_key": 3}])
def test_arguments_of_another_type_are_named(sdata, arguments):
    with pytest.raises(InvalidValueError, match=f"^{next(iter(arguments))} must be a string, got"):
        read_spots(sdata, table_key="table", **arguments)
    with pytest.raises(InvalidTypeError, match="sdata must be a SpatialData object, got an AnnData"):
        read_spots(sdata["table"])


def test_spots_outside_takes_spots_and_a_shape(sdata):
    spots = read_spots(sdata)
    assert spots_outside(spots, (np.int64(1), np.int64(1))).all()
    with pytest.raises(InvalidValueError, match="shape must be a valid tuple, got 3"):
        spots_outside(spots, 3)
    with pytest.raises(InvalidTypeError, match="spots must be Spots, got ndarray"):
        spots_outside(spots.xy, (1, 1))


@pytest.mark.parametrize("radius", [-1.0, 0.0, np.nan, np.inf])
def test_a_radius_that_is_no_size_is_refused_where_it_is_used(sdata, radius):
    """Where nothing reads the radius, it does not matter."""
    sdata["spots"].loc["s3", "radius"] = radius
    spots = read_spots(sdata)
    (section,) = open_sdata(sdata, Where(mpp=1.0)).sections
    with pytest.raises(InvalidValueError, match=r"1 of 12 spots of 'spots' have a radius .* the first is 's3', with "):
        spot_radius(section, None)
    np.testing.assert_array_equal(spot_radius(section, 5.0), np.full(12, 5.0))
    assert len(spots.xy) == 12
