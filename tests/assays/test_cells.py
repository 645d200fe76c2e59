"""MERSCOPE and CosMx sections as spatialdata_io reads them, with an H&E image that is added."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata_io
import tifffile
from PIL import Image
from shapely import MultiPolygon, Point
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine

import st_predict as stp

KEY = "pred_ridge"
MPP = 0.1
GENES = ["a", "b", "c"]


@pytest.fixture
def merscope_folder(tmp_path):
    """60 cells, 12 um apart; the mosaic is shifted and has 0.108 um per pixel."""
    path = tmp_path / "run" / "region_0"
    (path / "images").mkdir(parents=True)
    um = np.array([(c, r) for r in range(6) for c in range(10)]) * 12.0 + 20
    names = [f"{10**6 + i}" for i in range(len(um))]
    matrix = np.array([[1 / 0.108, 0, 40], [0, 1 / 0.108, 25], [0, 0, 1]])
    np.savetxt(path / "images" / "micron_to_mosaic_pixel_transform.csv", matrix)
    tifffile.imwrite(path / "images" / "mosaic_DAPI_z3.tif", np.zeros((900, 1500), np.uint16))
    counts = np.random.default_rng(0).poisson(4, (len(um), 3))
    pd.DataFrame(counts, columns=GENES, index=pd.Index(names, name="cell")).to_csv(path / "cell_by_gene.csv")
    obs = pd.DataFrame({"center_x": um[:, 0], "center_y": um[:, 1]}, index=pd.Index(names, name="EntityID"))
    obs.to_csv(path / "cell_metadata.csv")
    polygons = [MultiPolygon([Point(p).buffer(4)]) for p in um]
    frame = gpd.GeoDataFrame({"EntityID": names, "ZIndex": 0, "Geometry": polygons}, geometry="Geometry")
    frame.sample(frac=1, random_state=0).to_parquet(path / "cell_boundaries.parquet")
    return path, um @ matrix[:2, :2].T + matrix[:2, 2], names


@pytest.fixture
def cosmx_folder(tmp_path):
    """Two fields of view of 30 cells each."""
    path = tmp_path / "cosmx"
    (path / "CellComposite").mkdir(parents=True)
    (path / "CellLabels").mkdir()
    local = np.array([(c, r) for r in range(5) for c in range(6)]) * 100.0 + 80
    side, parts, yx = 700, [], np.mgrid[:700, :700] + 0.5
    for fov in (1, 2):
        labels = np.zeros((side, side), np.uint16)
        for i, (x, y) in enumerate(local):
            labels[np.hypot(yx[1] - x, yx[0] - y) < 30] = i + 1
        # the reader flips both, so that row 0 is at the bottom of the files
        tifffile.imwrite(path / "CellLabels" / f"CellLabels_F{fov:03d}.tif", labels[::-1])
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(
            path / "CellComposite" / f"CellComposite_F{fov:03d}.jpg"
        )
        part = pd.DataFrame({"fov": fov, "cell_ID": np.arange(1, 31)})
        part[["CenterX_local_px", "CenterY_local_px"]] = local
        part[["CenterX_global_px", "CenterY_global_px"]] = local + np.array([3000.0 * fov, 500.0])
        parts.append(part)
    obs = pd.concat(parts)
    obs.to_csv(path / "set_metadata_file.csv", index=False)
    counts = pd.DataFrame(np.random.default_rng(0).poisson(4, (60, 3)), columns=GENES)
    pd.concat([obs[["fov", "cell_ID"]].reset_index(drop=True), counts], axis=1).to_csv(
        path / "set_exprMat_file.csv", index=False
    )
    pd.DataFrame({"fov": [1, 2]}).to_csv(path / "set_fov_positions_file.csv", index=False)
    return path, obs[["CenterX_global_px", "CenterY_global_px"]].to_numpy()


@pytest.fixture
def aligned(codes):
    """Makes an H&E image with a square at each place, and the affine to the pixels of the places."""

    def make(xy, *, scale, degrees, side):
        angle = np.deg2rad(degrees)
        matrix = np.eye(3)
        matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        inside = xy @ np.linalg.inv(matrix[:2, :2]).T
        low = inside.min(axis=0) - 150
        matrix[:2, 2] = matrix[:2, :2] @ low
        inside = inside - low
        image = codes.paint(tuple(int(v) for v in np.ceil(inside.max(axis=0) + 150)[::-1]), inside, side)
        affine = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
        return Image2DModel.parse(image, dims=("y", "x", "c"), transformations={"global": affine}, scale_factors=[2])

    return make


def sections(table):
    return json.loads(table.uns["st_predict"][KEY]["params"])["sections"]


@pytest.mark.parametrize("degrees", [0, 25])
def test_merscope(merscope_folder, decoder, aligned, codes, quietly, degrees):
    path, xy, names = merscope_folder
    sdata = quietly(spatialdata_io.merscope, path, transcripts=False, backend="dask_image")
    with pytest.raises(ValueError, match="Expected an RGB image, got 1 channels"):
        stp.tl.predict(sdata, decoder(MPP))
    sdata["he"] = aligned(xy, scale=MPP / 0.108, degrees=degrees, side=80)
    stp.tl.predict(sdata, decoder(MPP))
    table = sdata.tables["table"]
    assert list(table.obs_names) == names
    assert (codes.decode(table.obsm[KEY]) == codes.colours(60)).all()
    (section,) = sections(table)
    assert section["image"] == "he"
    assert section["mpp"] == pytest.approx(MPP, rel=1e-6)
    assert "MERSCOPE" in section["mpp_source"]


@pytest.mark.parametrize("degrees", [0, 140])
def test_cosmx(cosmx_folder, decoder, aligned, codes, quietly, degrees):
    path, xy = cosmx_folder
    sdata = quietly(spatialdata_io.cosmx, path, transcripts=False)
    with pytest.raises(ValueError, match=r"No image of .* is a brightfield image"):
        stp.tl.predict(sdata, decoder(MPP), mpp=MPP)
    sdata["he"] = aligned(xy, scale=MPP / 0.12, degrees=degrees, side=80)
    with pytest.raises(ValueError, match="Nothing says how many micrometres a pixel of image 'he' has"):
        stp.tl.predict(sdata, decoder(MPP))
    stp.tl.predict(sdata, decoder(MPP), mpp=MPP)
    table = sdata.tables["table"]
    assert (codes.decode(table.obsm[KEY]) == codes.colours(60)).all()
    assert {section["image"] for section in sections(table)} == {"he"}
