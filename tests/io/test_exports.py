"""Files for other programs, opened by readers that are not ours, and compared with geometry worked out by hand."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
import zarr
from anndata import AnnData
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from shapely import Point, Polygon
from spatialdata import SpatialData, rasterize
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, set_transformation

import st_predict as stp

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RADIUS = 20.0  # of the spots of the fixture, in level-0 pixels
XY = np.array([(x, y) for y in (50, 200, 390) for x in (10, 150, 300, 590)], float)
SHAPE = (400, 600)
MPP = 0.5


@pytest.fixture
def predicted(measured: SpatialData, checkpoint: Callable[..., Path]) -> SpatialData:
    """Spots that are stored at half the resolution of the image, with a prediction."""
    stp.tl.predict(measured, checkpoint(), mpp=MPP, device="cpu")
    set_transformation(measured["he"], Affine(np.diag([MPP, MPP, 1]), ("x", "y"), ("x", "y")), "um")
    return measured


@pytest.fixture
def prediction(predicted: SpatialData) -> AnnData:
    """What ``get.prediction`` returns, with other values: gene a is 0, 1, 2...; s3 was not predicted."""
    adata = stp.get.prediction(predicted)
    assert np.isfinite(adata.X).all()
    adata.X = (np.arange(12)[:, None] + 100 * np.arange(4)).astype(np.float32)
    adata.X[3] = np.nan
    return adata


def link(prediction: AnnData, element: Any, image: SpatialData, instances: Any) -> tuple[AnnData, SpatialData]:
    """Give the rows of a prediction other shapes, points or labels."""
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * len(instances)), "instance": instances})
    obs.index = prediction.obs_names[: len(instances)]
    adata = AnnData(prediction.X[: len(instances)], obs=obs, var=prediction.var)
    adata = TableModel.parse(adata, region="cells", region_key="region", instance_key="instance")
    return adata, SpatialData.init_from_elements({"he": image["he"], "cells": element})


def read(path: Path) -> list[dict[str, Any]]:
    """Features of strict JSON, which has no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["type"] == "FeatureCollection"
    return found["features"]


def opened(path: Path) -> gpd.GeoDataFrame:
    """Objects in pixels; GDAL takes all GeoJSON for degrees."""
    return gpd.read_file(path).set_crs(None, allow_override=True)


# GeoJSON


def test_circles_lie_on_the_pixels_of_the_image(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    path = stp.io.write_geojson(prediction, tmp_path / "spots.geojson", sdata=predicted)
    found = opened(path)
    np.testing.assert_allclose(found.centroid.x, XY[:, 0], atol=0.01)
    np.testing.assert_allclose(found.centroid.y, XY[:, 1], atol=0.01)
    assert found.geometry.is_valid.all()
    # corners lie on the circle
    for outline, centre in zip(found.geometry, XY, strict=True):
        radii = np.hypot(*(np.array(outline.exterior.coords) - centre).T)
        np.testing.assert_allclose(radii, RADIUS, atol=0.02)
    # the red and green of the image are its own coordinates
    image = predicted["he"]["scale0"]["image"].values
    x, y = found.centroid.x.astype(int), found.centroid.y.astype(int)
    assert (image[0, y, x] == x // 4).all()
    assert (image[1, y, x] == y // 4).all()


def test_objects_are_those_of_qupath(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    path = stp.io.write_geojson(prediction, tmp_path / "spots.geojson", sdata=predicted, genes=["c", "a"])
    features = read(path)
    assert {feature["type"] for feature in features} == {"Feature"}
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon"}
    about = [feature["properties"] for feature in features]
    assert [one["name"] for one in about] == list(prediction.obs_names)
    assert {one["objectType"] for one in about} == {"detection"}
    assert about[1]["measurements"] == {"c": 201.0, "a": 1.0}
    assert about[3]["measurements"] == {}
    assert "color" not in about[3]
    assert all(isinstance(part, int) and 0 <= part <= 255 for one in about if "color" in one for part in one["color"])
    annotations = stp.io.write_geojson(prediction, tmp_path / "a.json", sdata=predicted, object_type="annotation")
    assert read(annotations)[0]["properties"]["objectType"] == "annotation"


def test_measurements_keep_the_precision_of_float32(
    prediction: AnnData, predicted: SpatialData, tmp_path: Path
) -> None:
    prediction.X = np.random.default_rng(0).lognormal(size=prediction.shape).astype(np.float32)
    prediction.layers["std"] = prediction.X * 2
    for layer, factor in ((None, 1), ("std", 2)):
        path = tmp_path / f"{layer}.geojson"
        stp.io.write_geojson(prediction, path, sdata=predicted, layer=layer)
        found = pd.DataFrame([feature["properties"]["measurements"] for feature in read(path)])
        assert list(found) == list("abcd")
        np.testing.assert_allclose(found, prediction.X * factor, rtol=1e-5)


def test_colours_are_those_of_the_scale(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    def ramp(place: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([place, 0 * place, 1 - place], axis=1)

    path = tmp_path / "a.geojson"
    stp.io.write_geojson(prediction, path, sdata=predicted, genes="b", color="a", cmap=ramp, vmin=2, vmax=7)
    colours = [feature["properties"].get("color") for feature in read(path)]
    expected = [[round(255 * p), 0, round(255 * (1 - p))] for p in np.clip((np.arange(12) - 2) / 5, 0, 1)]
    expected[3] = None  # was not predicted
    assert colours == expected
    assert read(path)[0]["properties"]["measurements"] == {"b": 100.0}


def test_the_default_scale_is_viridis(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    prediction.X[3] = 3
    path = stp.io.write_geojson(prediction, tmp_path / "a.geojson", sdata=predicted)
    colours = np.array([feature["properties"]["color"] for feature in read(path)])
    low, high = np.percentile(np.arange(12), [2, 98])
    expected = mpl.colormaps["viridis"]((np.arange(12) - low) / (high - low))[:, :3] * 255
    np.testing.assert_allclose(colours, expected, atol=6)
    np.testing.assert_allclose(colours[[0, -1]], expected[[0, -1]], atol=1)
    # as matplotlib itself
    path = stp.io.write_geojson(prediction, tmp_path / "b.geojson", sdata=predicted, cmap=mpl.colormaps["viridis"])
    colours = np.array([feature["properties"]["color"] for feature in read(path)])
    np.testing.assert_allclose(colours, expected, atol=0.51)


def test_categories_are_classes(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    prediction.obs["domain"] = pd.Categorical(["tumour", "stroma", None] * 4, categories=["stroma", "tumour"])
    prediction.uns["domain_colors"] = ["#0a14ff", "#ff8000"]
    path = tmp_path / "a.geojson"
    stp.io.write_geojson(prediction, path, sdata=predicted, color="domain")
    classes = [feature["properties"].get("classification") for feature in read(path)]
    tumour, stroma = {"name": "tumour", "color": [255, 128, 0]}, {"name": "stroma", "color": [10, 20, 255]}
    assert classes == [tumour, stroma, None] * 4
    del prediction.uns["domain_colors"]
    stp.io.write_geojson(prediction, path, sdata=predicted, color="domain", overwrite=True)
    own = [feature["properties"].get("classification") for feature in read(path)]
    assert own[0]["color"] != own[1]["color"]


def test_without_shapes_the_centres_are_pixels(prediction: AnnData, tmp_path: Path) -> None:
    prediction.obsm["spatial"] = XY
    found = opened(stp.io.write_geojson(prediction, tmp_path / "a.geojson"))
    assert (found.geom_type == "Point").all()
    np.testing.assert_array_equal(found.get_coordinates(), XY)
    path = stp.io.write_geojson(prediction, tmp_path / "b.geojson", radius_px=7, outline="square")
    np.testing.assert_array_equal(opened(path).bounds, np.hstack([XY - 7, XY + 7]))
    path = stp.io.write_geojson(prediction, tmp_path / "o.geojson", origin=(10, 30.5))
    np.testing.assert_array_equal(opened(path).get_coordinates(), XY - [10, 30.5])
    path = stp.io.write_geojson(prediction, tmp_path / "c.geojson", radius_px=7)
    np.testing.assert_allclose(opened(path).area, np.pi * 49, rtol=0.01)


def test_centres_in_micrometres_are_refused(prediction: AnnData, tmp_path: Path) -> None:
    prediction.obs[["cell_id", "transcript_counts", "cell_area"]] = 1
    with pytest.raises(ValueError, match=r"Xenium is in micrometres.*sdata="):
        stp.io.write_geojson(prediction, tmp_path / "a.geojson")
    del prediction.obsm["spatial"]
    with pytest.raises(ValueError, match=r"no centres in .obsm\['spatial'\].*sdata="):
        stp.io.write_table(prediction, tmp_path / "a.csv")


def test_squares_turn_with_their_element(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    """Spots in a frame that is turned by 30 degrees, twice as fine as the image and shifted."""
    angle, scale = np.deg2rad(30), 0.5
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.array([[*turn[0], 40.0], [*turn[1], 7.0], [0, 0, 1]])
    centres = np.array([[10.0, 20.0], [50.0, 90.0]])
    spots = gpd.GeoDataFrame({"radius": 8.0}, geometry=[Point(c) for c in centres], index=[5, 9])
    element = ShapesModel.parse(spots, transformations={"global": Affine(matrix, ("x", "y"), ("x", "y"))})
    adata, sdata = link(prediction, element, predicted, [9, 5])
    path = stp.io.write_geojson(adata, tmp_path / "a.geojson", sdata=sdata, outline="square")
    for outline, centre in zip(opened(path).geometry, centres[::-1], strict=True):
        corners = centre + 8 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        expected = Polygon(corners @ turn.T + [40, 7])
        assert outline.symmetric_difference(expected).area < 0.5
        np.testing.assert_allclose(outline.area, (16 * scale) ** 2, rtol=0.01)
        assert outline.minimum_rotated_rectangle.area < 1.01 * outline.area


@pytest.mark.parametrize("kind", ["polygons", "labels", "points"])
def test_bins_and_cells_keep_their_outlines(
    prediction: AnnData, predicted: SpatialData, tmp_path: Path, kind: str
) -> None:
    bounds = np.array([[100, 40, 116, 56], [30, 8, 90, 28]])
    where = {"global": Identity()}
    if kind == "polygons":
        cells = gpd.GeoDataFrame(geometry=[shapely.box(*b) for b in bounds], index=[7, 3])
        element = ShapesModel.parse(cells, transformations=where)
    elif kind == "points":
        middle = (bounds[:, :2] + bounds[:, 2:]) / 2
        frame = pd.DataFrame(middle, columns=["x", "y"], index=[7, 3])
        element = PointsModel.parse(frame.sort_index(), transformations=where)
    else:
        pixels = np.zeros(SHAPE, np.int32)
        for label, (left, top, right, bottom) in zip((7, 3), bounds, strict=True):
            pixels[top:bottom, left:right] = label
        element = Labels2DModel.parse(pixels, dims=("y", "x"), transformations=where)
    adata, sdata = link(prediction, element, predicted, [3, 7])
    if kind == "points":
        path = stp.io.write_geojson(adata, tmp_path / "a.geojson", sdata=sdata)
        np.testing.assert_array_equal(opened(path).get_coordinates(), middle[::-1])
        return
    path = stp.io.write_geojson(adata, tmp_path / "a.geojson", sdata=sdata)
    np.testing.assert_array_equal(opened(path).bounds, bounds[::-1])
    with pytest.raises(ValueError, match=r"outlines of its own.*outline="):
        stp.io.write_geojson(adata, tmp_path / "b.geojson", sdata=sdata, outline="circle")
    path = stp.io.write_raster(adata, tmp_path / "a.ome.tif", sdata=sdata, labels=True, downsample=1)
    drawn = tifffile.imread(path)
    assert drawn.shape == SHAPE
    for row, (left, top, right, bottom) in enumerate(bounds[::-1], start=1):
        expected = np.zeros(SHAPE, bool)
        expected[top:bottom, left:right] = True
        # to_polygons cuts the corners of labels
        assert ((drawn == row) ^ expected).sum() <= (4 if kind == "labels" else 0)


# Tables


def test_tables_have_a_row_per_spot(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    parquet = stp.io.write_table(prediction, tmp_path / "a.parquet", sdata=predicted, genes=["b", "a"])
    csv = stp.io.write_table(prediction, tmp_path / "a.csv", sdata=predicted, genes=["b", "a"])
    arrow = pq.read_table(parquet)
    assert arrow.column_names == ["spot", *prediction.obs.columns, "x_px", "y_px", "x_um", "y_um", "b", "a"]
    assert str(arrow.schema.field("a").type) == "float"
    assert arrow.schema.metadata[b"PANDAS_ATTRS"]
    record = json.loads(arrow.schema.metadata[b"PANDAS_ATTRS"])["st_predict"]["pred_m2ost"]
    assert json.loads(record["card"])["model"] == "m2ost"
    for found in (arrow.to_pandas(), pd.read_csv(csv)):
        assert found["spot"].tolist() == list(prediction.obs_names)
        assert found["patient"].tolist() == ["P1"] * 12
        np.testing.assert_array_equal(found[["x_px", "y_px"]], XY)
        np.testing.assert_allclose(found[["x_um", "y_um"]], XY * MPP)
        np.testing.assert_array_equal(found[["b", "a"]], prediction[:, ["b", "a"]].X)


def test_micrometres_are_never_guessed(prediction: AnnData, tmp_path: Path) -> None:
    prediction.obsm["spatial"] = XY
    found = pd.read_csv(stp.io.write_table(prediction, tmp_path / "a.csv"))
    assert "x_um" not in found
    found = pd.read_csv(stp.io.write_table(prediction, tmp_path / "b.csv", mpp=2))
    np.testing.assert_array_equal(found[["x_um", "y_um"]], XY * 2)


def test_columns_of_one_name_are_refused(prediction: AnnData, tmp_path: Path) -> None:
    prediction.obs["a"] = 1
    with pytest.raises(ValueError, match=r"called 'a'.*genes="):
        stp.io.write_table(prediction, tmp_path / "a.csv")
    prediction.obs["mixed"] = ["x", 1] * 6
    with pytest.raises(ValueError, match="mixed"):
        stp.io.write_table(prediction, tmp_path / "a.parquet", genes="b")
    assert not list(tmp_path.glob("a.*"))


# Rasters


def brute(step: float, size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Row of the nearest spot plus 1 where a pixel's centre is well inside of it; and where it is well inside or outside."""
    y, x = (np.indices(size) + 0.5) * step
    distance = np.hypot(x[..., None] - XY[:, 0], y[..., None] - XY[:, 1])
    nearest = distance.min(axis=-1)
    inside = np.where(nearest < RADIUS, distance.argmin(axis=-1) + 1, 0)
    return inside, np.abs(nearest - RADIUS) > 0.01 * RADIUS


@pytest.mark.parametrize("step", [1, 2.5])
def test_rasters_lie_on_the_image(prediction: AnnData, predicted: SpatialData, tmp_path: Path, step: float) -> None:
    path = tmp_path / "a.ome.tif"
    stp.io.write_raster(prediction, path, sdata=predicted, genes=["b", "a"], downsample=step)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        assert series.axes == "CYX"
        assert series.dtype == np.float32
        ome = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [channel["Name"] for channel in ome["Channel"]] == ["b", "a"]
        assert (ome["PhysicalSizeX"], ome["PhysicalSizeXUnit"]) == (MPP * step, "µm")
        assert (ome["PhysicalSizeY"], ome["PhysicalSizeYUnit"]) == (MPP * step, "µm")
        levels = [level.asarray() for level in series.levels]
    assert max(levels[-1].shape[1:]) <= 256
    assert levels[0].shape[1:] == (400 / step, 600 / step)
    for number, level in enumerate(levels):
        rows, clear = brute(step * 2**number, level.shape[1:])
        expected = np.concatenate([[np.nan], prediction[:, "a"].X[:, 0]])[rows]
        np.testing.assert_array_equal(level[1][clear], expected[clear])
        np.testing.assert_array_equal(level[0], level[1] + 100)


def test_zarr_and_tiff_say_the_same(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    tiff = stp.io.write_raster(prediction, tmp_path / "a.ome.tif", sdata=predicted, downsample=1)
    folder = stp.io.write_raster(prediction, tmp_path / "a.ome.zarr", sdata=predicted, downsample=1)
    group = zarr.open_group(folder, mode="r")
    about = group.attrs["multiscales"][0]
    assert [(axis["name"], axis.get("unit")) for axis in about["axes"]] == [
        ("c", None),
        ("y", "micrometer"),
        ("x", "micrometer"),
    ]
    assert [channel["label"] for channel in group.attrs["omero"]["channels"]] == list("abcd")
    with tifffile.TiffFile(tiff) as file:
        for level, stored in zip(file.series[0].levels, about["datasets"], strict=True):
            np.testing.assert_array_equal(group[stored["path"]][:], level.asarray())
            scale, shift = (next(iter(set(t) - {"type"})) for t in stored["coordinateTransformations"])
            side, offset = (
                t[name][2] for t, name in zip(stored["coordinateTransformations"], (scale, shift), strict=True)
            )
            # the corner of each level is that of the image, half a pixel before the centre of its first pixel
            assert offset - side / 2 == -MPP / 2
    (node,) = Reader(parse_url(folder))()
    assert node.data[0].shape == (4, *SHAPE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of spatialdata
def test_rasters_agree_with_spatialdata(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    step = 2
    prediction.X[3] = 7
    prediction.X += 1
    ours = tifffile.imread(
        stp.io.write_raster(prediction, tmp_path / "a.ome.tif", sdata=predicted, genes="a", downsample=step)
    )
    spots = gpd.GeoDataFrame({"radius": RADIUS, "a": prediction[:, "a"].X[:, 0]}, geometry=[Point(c) for c in XY])
    theirs = rasterize(
        ShapesModel.parse(spots),
        ["x", "y"],
        min_coordinate=[0, 0],
        max_coordinate=list(SHAPE[::-1]),
        target_coordinate_system="global",
        target_unit_to_pixels=1 / step,
        value_key="a",
    ).values[0]
    assert theirs.shape == ours.shape
    # theirs is 0 where there is no spot; pixels at the edge of a spot may differ
    assert (np.nan_to_num(ours) == theirs).mean() > 0.998


def test_labels_number_the_rows(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    path = stp.io.write_raster(prediction, tmp_path / "a.ome.tif", sdata=predicted, labels=True, downsample=1)
    found = tifffile.imread(path)
    rows, clear = brute(1, SHAPE)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found[clear], rows[clear])
    assert set(np.unique(found)) == set(range(13))


def test_the_default_resolution_shows_the_spots(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    path = stp.io.write_raster(prediction, tmp_path / "a.ome.tif", sdata=predicted, genes="a")
    assert tifffile.imread(path).shape == (100, 150)  # 40 px wide: a quarter has 10 across, an eighth 5
    path = stp.io.write_raster(prediction, tmp_path / "b.ome.tif", sdata=predicted, genes="a", radius_px=4)
    assert tifffile.imread(path).shape == (400, 600)
    prediction.obsm["spatial"] = XY
    path = stp.io.write_raster(prediction, tmp_path / "c.ome.tif", genes="a", radius_px=16, outline="square")
    assert tifffile.imread(path).shape == (102, 152)  # as far as the spots reach: 406 x 606
    path = stp.io.write_raster(prediction, tmp_path / "d.ome.tif", genes="a", radius_px=16, shape=(80, 40))
    assert tifffile.imread(path).shape == (20, 10)


def test_points_have_no_raster(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"12 of 12 rows are points.*radius_px="):
        stp.io.write_raster(prediction, tmp_path / "a.ome.tif")
    with pytest.raises(ValueError, match=r"points"):
        stp.io.write_raster(prediction, tmp_path / "a.ome.tif", sdata=predicted, outline="point")
    with pytest.raises(ValueError, match=r"60000 x 40000 px.*downsample="):
        stp.io.write_raster(prediction, tmp_path / "a.ome.tif", sdata=predicted, downsample=0.01)


# All of them

WRITERS = [
    (stp.io.write_geojson, "a.geojson"),
    (stp.io.write_table, "a.parquet"),
    (stp.io.write_table, "a.csv"),
    (stp.io.write_raster, "a.ome.tif"),
    (stp.io.write_raster, "a.ome.zarr"),
]


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_existing_files_are_kept(
    prediction: AnnData, predicted: SpatialData, tmp_path: Path, write: Callable[..., Path], name: str
) -> None:
    before = prediction.copy()
    write(prediction, tmp_path / name, sdata=predicted)
    with pytest.raises(FileExistsError, match=name):
        write(prediction, tmp_path / name, sdata=predicted)
    if name.endswith("zarr"):
        with pytest.raises(FileExistsError, match="is a folder, which is never replaced"):
            write(prediction, tmp_path / name, sdata=predicted, overwrite=True)
    else:
        size = (tmp_path / name).stat().st_size
        write(prediction[:, :1].copy(), tmp_path / name, sdata=predicted, overwrite=True)
        assert (tmp_path / name).stat().st_size != size
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("a.")] == [name]
    np.testing.assert_array_equal(prediction.X, before.X)
    pd.testing.assert_frame_equal(prediction.obs, before.obs)


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_bad_input_is_named(
    prediction: AnnData, predicted: SpatialData, tmp_path: Path, write: Callable[..., Path], name: str
) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=r"path must end in one of \["):
        write(prediction, tmp_path / "a.docx", sdata=predicted)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        write(prediction, tmp_path / "nowhere" / name, sdata=predicted)
    with pytest.raises(KeyError, match=r"1 of 2 genes are not in adata, the first is 'z'"):
        write(prediction, path, sdata=predicted, genes=["a", "z"])
    with pytest.raises(KeyError, match="no layer 'std'"):
        write(prediction, path, sdata=predicted, layer="std")
    with pytest.raises(TypeError, match="adata must be AnnData, got a SpatialData"):
        write(predicted, path)
    with pytest.raises(ValueError, match=r"image_key names an element.*sdata="):
        write(prediction, path, image_key="he")
    with pytest.raises(ValueError, match="unique"):
        write(prediction, path, sdata=predicted, genes=["a", "a"])
    del prediction.uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="does not say which shapes"):
        write(prediction, path, sdata=predicted)
    assert not path.exists()


def test_colours_that_cannot_be_used(prediction: AnnData, predicted: SpatialData, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    with pytest.raises(KeyError, match="color 'z' is neither a gene nor a column"):
        stp.io.write_geojson(prediction, path, sdata=predicted, color="z")
    with pytest.raises(TypeError, match=r"cmap must be a function.*matplotlib.colormaps"):
        stp.io.write_geojson(prediction, path, sdata=predicted, cmap="magma")
    with pytest.raises(ValueError, match=r"\(n, 3\) or \(n, 4\)"):
        stp.io.write_geojson(prediction, path, sdata=predicted, cmap=lambda place: place)
    with pytest.raises(ValueError, match="vmin must be below vmax"):
        stp.io.write_geojson(prediction, path, sdata=predicted, vmin=2, vmax=1)
    with pytest.raises(ValueError, match="needs a radius"):
        stp.io.write_geojson(prediction, path, outline="square")
    assert not path.exists()


def test_a_file_that_fails_is_not_there(
    prediction: AnnData, predicted: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the middle")

    path = tmp_path / "a.geojson"
    path.write_text("old")
    monkeypatch.setattr("st_predict.io._geojson.json.dumps", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        stp.io.write_geojson(prediction, path, sdata=predicted, overwrite=True)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir() if one.is_dir()] == []


def test_one_section_of_several(two_regions: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    stp.tl.predict(two_regions, checkpoint(), image_key={"spots": "he", "more": "mirrored"}, mpp=MPP, device="cpu")
    prediction = stp.get.prediction(two_regions)
    with pytest.raises(ValueError, match=r"several regions.*region="):
        stp.io.write_table(prediction, tmp_path / "a.csv", sdata=two_regions)
    options = {"sdata": two_regions, "region": "more", "image_key": "mirrored"}
    found = pd.read_csv(stp.io.write_table(prediction, tmp_path / "a.csv", **options))
    assert found["spot"].tolist() == [f"n{i}" for i in range(1, 24, 2)]
    np.testing.assert_array_equal(found[["x_px", "y_px"]], XY)
    np.testing.assert_allclose(found[list("abcd")], prediction.X[1::2], rtol=1e-6)
    labels = stp.io.write_raster(prediction, tmp_path / "a.ome.tif", labels=True, downsample=1, **options)
    assert set(np.unique(tifffile.imread(labels))) == {0, *range(2, 25, 2)}


def test_a_grid_on_a_slide_without_a_table(sdata: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    del sdata.tables["table"], sdata.shapes["spots"]
    stp.pp.make_grid(sdata, pitch_um=40, diameter_um=30, mpp=MPP, tissue_only=False)
    stp.tl.predict(sdata, checkpoint(), mpp=MPP, device="cpu")
    prediction = stp.get.prediction(sdata)
    found = opened(stp.io.write_geojson(prediction, tmp_path / "a.geojson", sdata=sdata))
    assert found["name"].tolist() == list(sdata["grid"].index)
    np.testing.assert_allclose(
        found.get_coordinates().iloc[::33], np.add(sdata["grid"].get_coordinates(), [30, 0]), atol=0.01
    )
    table = pd.read_csv(stp.io.write_table(prediction, tmp_path / "a.csv", sdata=sdata))
    np.testing.assert_allclose(table[["x_px", "y_px"]], sdata["grid"].get_coordinates())
    assert stp.io.find_mpp(sdata) is None
    np.testing.assert_allclose(table["y_um"], table["y_px"] * MPP)  # was an argument of the prediction
    table = pd.read_csv(stp.io.write_table(prediction, tmp_path / "b.csv", sdata=sdata, mpp=2))
    np.testing.assert_allclose(table["y_um"], table["y_px"] * 2)
    del prediction.uns["st_predict"]
    assert "x_um" not in pd.read_csv(stp.io.write_table(prediction, tmp_path / "c.csv", sdata=sdata))


# A section as it was measured

CACHE = Path(os.environ.get("ST_PREDICT_CACHE", "nowhere"))


@cache
def her2st() -> tuple[SpatialData, AnnData]:
    """A part of a section with the prediction of a released network."""
    sdata = stp.datasets.her2st("C2")
    sdata.tables["table"] = sdata.tables["table"][::20].copy()
    stp.tl.predict(sdata, "ridge-effnet", device="cpu")
    return sdata, stp.get.prediction(sdata)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not CACHE.is_dir(), reason=f"The sections of her2st are not at {CACHE}.")
def test_a_real_section(tmp_path: Path) -> None:
    sdata, prediction = her2st()
    table = pq.read_table(stp.io.write_table(prediction, tmp_path / "a.parquet", sdata=sdata)).to_pandas()
    objects = opened(stp.io.write_geojson(prediction, tmp_path / "a.geojson", sdata=sdata, genes=["GNAS"]))
    raster = tifffile.imread(stp.io.write_raster(prediction, tmp_path / "a.ome.tif", sdata=sdata, genes=["GNAS"]))
    mpp = stp.io.find_mpp(sdata).value
    # centres that the spot file has, in pixels of the image
    np.testing.assert_allclose(table[["x_px", "y_px"]], sdata["table"].obsm["spatial"], atol=1e-6)
    np.testing.assert_allclose(table["x_um"], table["x_px"] * mpp)
    np.testing.assert_allclose(objects.centroid.x, table["x_px"], atol=0.02)
    np.testing.assert_allclose(2 * np.sqrt(objects.area / np.pi) * mpp, 100, rtol=0.01)  # um, as the array has them
    height, width = stp.io.open_pyramid(sdata).level_shapes[0]
    step = 2 ** round(np.log2(width / raster.shape[1]))
    assert raster.shape == (-(-height // step), -(-width // step))
    at = (table[["y_px", "x_px"]].to_numpy() / step).astype(int)
    np.testing.assert_array_equal(raster[tuple(at.T)], table["GNAS"].to_numpy())
    measured = [
        one["GNAS"] for one in objects["measurements"].map(lambda m: json.loads(m) if isinstance(m, str) else m)
    ]
    np.testing.assert_allclose(measured, table["GNAS"], rtol=1e-5)
    area = np.isfinite(raster).sum() * (step * mpp) ** 2 / len(table)
    np.testing.assert_allclose(area, np.pi * 50**2, rtol=0.02)
