"""Tiles of LazySlide as spots, and predictions back in the tables that its plots read."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import tifffile
import wsidata
from geopandas import GeoDataFrame
from shapely import box
from spatialdata import SpatialData

import st_predict as stp
from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError

SIDE = 160  # of a tile, in pixels
KEY = "pred_ridge"


@pytest.fixture
def slide(tmp_path, coded):
    """A slide of 0.5 um per pixel with a coded square at each tile, in tissue; and the colour of each tile."""
    n = 8
    centres = np.array([((c + 1.5) * SIDE, (r + 1.5) * SIDE) for r in range(n) for c in range(n)])
    image = coded.paint(((n + 2) * SIDE, (n + 2) * SIDE), centres, SIDE)
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        per_cm = 10_000 / 0.5
        for level, pixels in enumerate((image, image[::2, ::2])):
            scale = 2**level
            file.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                resolution=(per_cm / scale, per_cm / scale),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
            )
    return path, centres, coded.colours(n * n)


@pytest.fixture
def wsi(slide):
    path, centres, _ = slide
    opened = wsidata.open_wsi(str(path))
    spec = wsidata.TileSpec(height=SIDE, width=SIDE, stride_height=SIDE, stride_width=SIDE, mpp=0.5)
    corners = (centres - SIDE / 2).astype(int)
    wsidata.io.add_tiles(opened, "tiles", corners, spec, np.zeros(len(corners), int))
    wsidata.io.add_shapes(
        opened, "tissues", GeoDataFrame({"tissue_id": [0], "geometry": [box(SIDE, SIDE, 9 * SIDE, 9 * SIDE)]})
    )
    return opened


def test_tiles_are_predicted_and_put_back(wsi, slide, decoder, coded):
    before = sorted(wsi.shapes), sorted(wsi.tables)
    sdata = stp.io.from_wsidata(wsi)
    assert stp.io.find_mpp(sdata).value == pytest.approx(0.5)
    stp.tl.predict(sdata, decoder(1.0), shapes_key="tiles")
    assert (sorted(wsi.shapes), sorted(wsi.tables)) == before
    prediction = stp.get.prediction(sdata)
    stp.io.to_wsidata(prediction, wsi)
    table = wsi.tables["st_predict_tiles"]
    np.testing.assert_array_equal(coded.decode(table.X), slide[2])
    assert table.obs["tile_id"].tolist() == list(range(64))
    assert list(table.var_names) == ["red", "green", "blue"]
    # what LazySlide itself makes of features has the same form
    wsidata.io.add_features(wsi, "theirs_tiles", "tiles", np.zeros((64, 3), np.float32))
    theirs = wsi.tables["theirs_tiles"]
    assert list(theirs.obs) == list(table.obs)
    assert theirs.uns["spatialdata_attrs"] == table.uns["spatialdata_attrs"]


@pytest.mark.filterwarnings("ignore")  # of the plots
def test_plots_of_lazyslide_draw_a_gene(wsi, decoder):
    lazyslide = pytest.importorskip("lazyslide")  # brings transformers: .ci/run installs it after the other tests
    mpl.use("agg")
    sdata = stp.io.from_wsidata(wsi)
    stp.tl.predict(sdata, decoder(1.0), shapes_key="tiles")
    stp.io.to_wsidata(stp.get.prediction(sdata), wsi, feature_key="genes")
    lazyslide.pl.tiles(wsi, feature_key="genes", color="red", style="scatter", show_contours=False)
    figure = mpl.pyplot.gcf()
    values = [c.get_array() for axes in figure.axes for c in axes.collections if c.get_array() is not None]
    expected = np.sort(wsi.tables["genes_tiles"][:, "red"].X.ravel())
    assert any(len(v) == 64 and np.allclose(np.sort(np.ravel(v)), expected) for v in values)
    mpl.pyplot.close("all")


def test_some_tiles_in_another_order(wsi, slide, decoder, coded):
    codes = slide[2]
    wsi.shapes["tiles"] = wsi.shapes["tiles"].iloc[::-1]
    sdata = stp.io.from_wsidata(wsi)
    stp.tl.predict(sdata, decoder(1.0), shapes_key="tiles")
    prediction = stp.get.prediction(sdata)
    stp.io.to_wsidata(prediction[::3], wsi)
    table = wsi.tables["st_predict_tiles"]
    assert table.obs["tile_id"].tolist() == list(range(63, -1, -1))
    known = ~np.isnan(table.X).any(axis=1)
    assert known.sum() == 22
    np.testing.assert_array_equal(coded.decode(table.X[known]), codes[::-1][known])


def test_what_cannot_be_is_said(wsi, slide, tmp_path):
    with pytest.raises(InvalidTypeError, match=r"must be an object of wsidata, .* got SpatialData"):
        stp.io.from_wsidata(SpatialData())
    with pytest.raises(
        NotFoundError, match=r"no tiles 'mine'; the shapes are \['tiles', 'tissues'\]. Name the tiles with tile_key="
    ):
        stp.io.from_wsidata(wsi, tile_key="mine")
    sdata = stp.io.from_wsidata(wsi, mpp=0.25)
    assert stp.io.find_mpp(sdata).value == 0.25
    wsi.properties.mpp = None
    with pytest.raises(
        InvalidValueError, match=r"knows no resolution of 'slide.tif'. Set it with wsi.set_mpp, or give"
    ):
        stp.io.from_wsidata(wsi)
    import anndata
    import pandas as pd

    table = anndata.AnnData(np.zeros((2, 1), np.float32), obs=pd.DataFrame(index=["0", "x"]))
    with pytest.raises(InvalidValueError, match=r"1 of 2 rows are none of the 64 tiles 'tiles', the first is 'x'"):
        stp.io.to_wsidata(table, wsi)
    stp.io.to_wsidata(table[:1], wsi)
    with pytest.raises(
        InvalidValueError, match=r"There is a table 'st_predict_tiles' already. .* or replace it with overwrite=True"
    ):
        stp.io.to_wsidata(table[:1], wsi)
    stp.io.to_wsidata(table[:1], wsi, overwrite=True)
    with pytest.raises(InvalidValueError, match="1 rows of the prediction have the name of another one, such as '0'"):
        stp.io.to_wsidata(table[[0, 0]], wsi, overwrite=True)
    height, width = wsi.properties.shape
    wsi.properties.shape = (height, width + 1)
    with pytest.raises(InvalidValueError, match="in wsidata, so that tiles would lie elsewhere"):
        stp.io.from_wsidata(wsi, mpp=0.5)
    slide[0].unlink()
    with pytest.raises(InvalidValueError, match="not a file on disk"):
        stp.io.from_wsidata(wsi, mpp=0.5)


@pytest.mark.filterwarnings("ignore")
def test_the_page(run, tmp_path):
    pytest.importorskip("lazyslide")
    mpl.use("agg")
    rng = np.random.default_rng(0)
    image = np.full((2000, 2000, 3), 245, np.uint8)
    image[400:1600, 400:1600] = rng.integers(90, 200, (1200, 1200, 1)) * np.array([0.9, 0.6, 0.9])
    tifffile.imwrite(
        tmp_path / "slide.svs",
        image,
        tile=(256, 256),
        photometric="rgb",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    known = run("docs/how-to/lazyslide.md")
    table = known["wsi"].tables["st_predict_tiles"]
    assert table.n_obs == len(known["wsi"].shapes["tiles"]) > 50
    assert np.isfinite(table.X).any()
    mpl.pyplot.close("all")
