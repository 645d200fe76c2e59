"""Maps of many spots as one image, compared with patches and with scikit-image."""

from __future__ import annotations

import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from PIL import Image
from skimage.draw import disk, polygon
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import st_predict as stp
from st_predict.pl import _paint
from st_predict.pl._raster import rasterise
from st_predict.specs import CropSpec, LevelSpec, ModelCard

SIDE, PITCH = 20, 40.0
GENES = ["a", "b", "c"]
RNG = np.random.default_rng(0)


@pytest.fixture(params=["circles", "squares", "turned", "cells"])
def bins(request) -> SpatialData:
    """400 bins of 40 px on 900 px of tissue; some have no prediction."""
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    xy = np.stack([column, row], axis=1) * PITCH + 60
    names = [f"b{i}" for i in range(len(xy))]
    shapes = gpd.GeoDataFrame({"radius": np.full(len(xy), PITCH / 2)}, geometry=shapely.points(xy), index=names)
    if request.param != "circles":
        shapes = gpd.GeoDataFrame(geometry=shapely.polygons(outlines(xy, request.param)), index=names)
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * len(xy)), "instance": names}, index=names)
    table = AnnData(RNG.poisson(20, (len(xy), 3)).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    values = (12 + np.sin(xy / 150).sum(axis=1))[:, None] + np.arange(3) / 9
    values[::17] = np.nan
    table.obsm["pred_x"] = values.astype(np.float32)
    card = ModelCard(model="m2ost", genes=tuple(GENES), crop=CropSpec(levels=(LevelSpec(size=224),)))
    table.uns["st_predict"] = {"pred_x": {"card": card.to_json(), "genes": np.array(GENES), "version": "0"}}
    tissue = np.repeat(np.repeat(RNG.integers(90, 220, (3, 30, 30)), 30, axis=1), 30, axis=2).astype(np.uint8)
    return SpatialData(
        images={"he": Image2DModel.parse(tissue, dims=("c", "y", "x"))},
        shapes={"bins": ShapesModel.parse(shapes)},
        tables={"table": TableModel.parse(table, region="bins", region_key="region", instance_key="instance")},
    )


def outlines(xy, kind):
    if kind == "cells":
        angle = np.linspace(0, 2 * np.pi, 10)[:-1]
        radius = PITCH * RNG.uniform(0.2, 0.5, (len(xy), 9))
        return xy[:, None] + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    angle = np.pi / 4 + np.arange(4) * np.pi / 2 + (0.1 if kind == "turned" else 0)
    return xy[:, None] + PITCH / np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def drawn(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [lambda s, **how: stp.pl.spatial(s, "a", **how), stp.pl.pca_map], ids=["one", "all"])
def test_an_image_looks_like_patches(bins, draw):
    options = {"return_fig": True, "spot_scale": 0.8, "figsize": (9, 3), "tissue": False}
    patches, image = (drawn(draw(bins, raster=raster, **options)) for raster in (False, True))
    difference = np.abs(patches - image)
    moved = 4 if tuple(map(int, mpl.__version__.split(".")[:2])) >= (3, 11) else 5  # 3.10 smooths edges more
    assert difference.mean() < moved  # of 255; edges of patches are moved to whole pixels
    assert np.quantile(difference, 0.9) < 16
    assert np.abs(patches.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 1.5
    # the comparison would notice a shift by a pixel
    assert np.abs(patches - np.roll(image, 1, axis=1)).mean() > 1.5 * difference.mean()


@pytest.mark.parametrize("bins", ["circles"], indirect=True)
def test_the_colour_bar_is_the_same(bins):
    first, second = (stp.pl.spatial(bins, "a", raster=raster, return_fig=True) for raster in (False, True))
    bars = [[one for one in figure.axes if one.get_label() == "<colorbar>"] for figure in (first, second)]
    assert len(bars[0]) == len(bars[1]) == 2
    for one, other in zip(*bars, strict=True):
        assert one.get_ylim() == other.get_ylim()
        assert one.get_ylabel() == other.get_ylabel()


@pytest.mark.parametrize("bins", ["cells"], indirect=True)
def test_many_spots_become_an_image(bins, monkeypatch, tmp_path):
    assert all(len(one.collections) == 1 for one in stp.pl.spatial(bins, "a")[0, 1:])
    sizes = []
    for many in (1000, 399):  # there are 400
        monkeypatch.setattr(_paint, "MANY", many)
        axes = stp.pl.spatial(bins, "a", save=tmp_path / "map.svg", dpi=50)
        sizes.append((tmp_path / "map.svg").read_text().count("<path"))
    assert not any(one.collections for one in axes[0, 1:])
    assert sizes[0] - sizes[1] > 100
    assert len(stp.pl.spatial(bins, "a", raster=False)[0, 1].collections) == 1
    with pytest.raises(ValueError, match="raster"):
        stp.pl.spatial(bins, "a", raster="yes")
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("bins", ["squares"], indirect=True)
def test_an_image_is_as_fine_as_the_figure(bins, tmp_path):
    """A border between two bins is no wider than on patches, at any resolution."""
    for dpi in (100, 300):
        widths = []
        for raster in (False, True):
            stp.pl.spatial(bins, "a", raster=raster, tissue=False, save=tmp_path / "map.png", dpi=dpi, figsize=(3, 1.5))
            with Image.open(tmp_path / "map.png") as picture:
                pixels = np.asarray(picture.convert("RGB")).astype(int)
            middle = pixels[pixels.shape[0] // 2]
            widths.append((np.abs(np.diff(middle, axis=0)).sum(axis=1) > 6).sum())
        assert widths[1] < 2 * widths[0]


def test_pixels_are_those_of_scikit_image():
    shape = (60, 80)
    corners = [RNG.uniform(0, 25, 2) + RNG.uniform(-9, 28, (n, 2)) for n in (3, 4, 7, 5)]
    xy = np.array([one.mean(axis=0) for one in corners])
    index = rasterise(xy, corners, shape=shape)
    expected = np.full(shape, -1)
    for number, one in enumerate(corners):
        expected[polygon(one[:, 1] - 0.5, one[:, 0] - 0.5, shape)] = number
    assert (index != expected).mean() < 0.002  # pixel centres on an edge
    assert len(set(np.unique(expected))) == 5
    radii = np.array([3.3, 8.0, 12.7])
    centres = np.array([(10.2, 10.9), (40.5, 30.1), (79.0, 2.0)])
    index = rasterise(centres, radii, shape=shape)
    expected = np.full(shape, -1)
    for number, ((x, y), radius) in enumerate(zip(centres, radii, strict=True)):
        expected[disk((y - 0.5, x - 0.5), radius, shape=shape)] = number
    assert (index != expected).mean() < 0.002


def test_blocks_do_not_matter(monkeypatch):
    xy = RNG.uniform(0, 50, (200, 2))
    whole = rasterise(xy, np.full(200, 3.0), shape=(50, 50))
    monkeypatch.setattr("st_predict.pl._raster.BLOCK", 500)
    np.testing.assert_array_equal(rasterise(xy, np.full(200, 3.0), shape=(50, 50)), whole)
    assert (rasterise(xy, np.full(200, 0.1), shape=(50, 50)) >= -1).all()


@pytest.mark.parametrize("bins", ["circles"], indirect=True)
def test_spots_without_a_value_hide_no_others(bins):
    bins["table"].obsm["pred_x"][::2] = np.nan
    options = {"return_fig": True, "spot_scale": 2.5, "figsize": (9, 3), "tissue": False}
    patches, image = (drawn(stp.pl.spatial(bins, "a", raster=raster, **options)) for raster in (False, True))
    assert (np.abs(patches - image).max(axis=2) > 60).mean() < 0.005
