"""Predictions of real assays in files for other programs: outlines lie on what was painted at their spots."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata_io
import tifffile

import st_predict as stp

pytestmark = pytest.mark.filterwarnings("ignore")  # of readers


def export(sdata, tmp_path, **options):
    """Objects of a GeoJSON by their names, and the table."""
    prediction = stp.get.prediction(sdata)
    path = stp.io.write_geojson(prediction, tmp_path / "a.geojson", sdata=sdata, **options)
    objects = gpd.read_file(path).set_crs(None, allow_override=True)
    table = pd.read_csv(stp.io.write_table(prediction, tmp_path / "a.csv", sdata=sdata))
    return objects.set_index("name"), table.set_index("spot")


def painted(image, objects, coded):
    """Colour of the image at the centre of each object."""
    x, y = (np.floor(values).astype(int) for values in (objects.centroid.x, objects.centroid.y))
    return coded.decode(image[y, x] / 255)


@pytest.mark.parametrize("degrees", [0, 37])
def test_visium(visium_folder, decoder, coded, tmp_path, degrees):
    folder = visium_folder(degrees=degrees)
    sdata = spatialdata_io.visium(folder.path, "V1", fullres_image_file="tissue.tif")
    stp.tl.predict(sdata, decoder(1.0))
    objects, table = export(sdata, tmp_path)
    np.testing.assert_array_equal(painted(folder.image, objects, coded), folder.colours.loc[objects.index])
    np.testing.assert_allclose(np.sqrt(objects.area / np.pi) * folder.mpp, 27.5, rtol=0.01)  # um
    np.testing.assert_allclose(table["x_um"], table["x_px"] * folder.mpp, rtol=1e-3)
    # the convention of scanpy needs no shapes
    alone = pd.read_csv(stp.io.write_table(stp.get.prediction(sdata), tmp_path / "b.csv"))
    np.testing.assert_allclose(alone[["x_px", "y_px"]], table[["x_px", "y_px"]], atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 31])
@pytest.mark.parametrize("squares", [True, False])
def test_visium_hd(hd_folder, decoder, coded, tmp_path, degrees, squares):
    folder = hd_folder(degrees=degrees, mpp=0.2, n_bins=12, sizes=(8, 16))
    sdata = spatialdata_io.visium_hd(folder.path, "run", load_segmentations_only=False, bins_as_squares=squares)
    stp.tl.predict(sdata, decoder(0.2))
    objects, _ = export(sdata, tmp_path, outline=None if squares else "square")
    np.testing.assert_array_equal(painted(folder.image, objects, coded), folder.colours.loc[objects.index])
    corners = objects.geometry.map(lambda outline: len(outline.exterior.coords) - 1)
    assert set(corners) == {4}
    np.testing.assert_allclose(objects.area * 0.2**2, 64, rtol=0.02)  # um2
    if squares and degrees == 0:  # side by side; the reader does not turn squares, which then overlap
        labels = stp.io.write_raster(
            stp.get.prediction(sdata), tmp_path / "a.ome.tif", sdata=sdata, labels=True, downsample=2
        )
        found = tifffile.imread(labels)
        row, column = (objects.centroid.y / 2).astype(int), (objects.centroid.x / 2).astype(int)
        np.testing.assert_array_equal(found[row, column], np.arange(len(objects)) + 1)
        np.testing.assert_allclose(np.bincount(found.ravel())[1:] * 0.4**2, 64, rtol=0.1)


@pytest.mark.parametrize("circles", [True, False])
@pytest.mark.parametrize(("degrees", "mirrored"), [(17, False), (200, True)])
def test_xenium(xenium_folder, decoder, coded, tmp_path, circles, degrees, mirrored):
    folder = xenium_folder(degrees=degrees, mirrored=mirrored, n_cells=40)
    sdata = spatialdata_io.xenium(folder.path, cells_as_circles=circles)
    stp.tl.predict(sdata, decoder(0.11))
    objects, table = export(sdata, tmp_path)
    expected = folder.colours.loc[table["cell_id"]]
    np.testing.assert_array_equal(painted(folder.image, objects, coded), expected)
    radius = 14 * 0.2125  # um, of the labels
    assert objects.geometry.is_valid.all()
    if not circles:
        np.testing.assert_allclose(np.sqrt(objects.area / np.pi) * 0.11, radius, rtol=0.05)
    # centres in the table are micrometres, and not pixels of the H&E image
    assert json.loads((tmp_path / "a.geojson").read_text())["features"][0]["geometry"]["type"] == "Polygon"
    with pytest.raises(ValueError, match="Xenium is in micrometres"):
        stp.io.write_geojson(stp.get.prediction(sdata), tmp_path / "b.geojson")
