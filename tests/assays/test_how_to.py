"""The code of the pages about assays runs as it stands, on folders with the names that the pages use."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import scanpy
import spatialdata
import tifffile
from PIL import Image

import st_predict as stp

# The released network takes a fifth of a second a spot.
FEW = {"n_rows": 4, "n_cols": 8}

pytestmark = pytest.mark.filterwarnings("ignore")  # of readers


def finite(table, key="pred_m2ost"):
    return np.isfinite(table.obsm[key]).all()


def test_visium(visium_folder, run):
    for name in ("outs", "A", "B"):
        visium_folder(name, **FEW)
    known = run("visium.md")
    assert finite(known["sdata"].tables["table"])
    assert known["prediction"].n_vars == 250
    assert all(finite(section.tables["table"]) for section in known["sections"].values())


def test_anndata(visium_folder, run, tmp_path):
    import anndata

    for name in ("outs", "A", "B"):
        visium_folder(name, library=name, **FEW)
    visium_folder("slide", **FEW).path.joinpath("tissue.tif").rename(tmp_path / "slide.svs")
    tables = {name: scanpy.read_visium(tmp_path / name) for name in ("A", "B")}
    cells = tables["A"].copy()
    cells.obsm["centroids"] = cells.obsm["spatial"]
    del cells.uns["spatial"]
    joined = anndata.concat(tables, label="library_id", uns_merge="unique", index_unique="-")
    known = run("anndata.md", cells=cells, joined=joined)
    assert finite(known["adata"])
    assert sorted(known["sdata"].images) == ["A_full_image", "B_full_image"]


def test_several_sections(visium_folder, run):
    for name in ("A", "B"):
        visium_folder(name, **FEW)
    known = run("several-sections.md")
    assert finite(known["joined"].tables["table"], "pred_joined")
    assert known["joined"].tables["table"].n_obs == 18


def test_visium_hd(hd_folder, run):
    hd_folder("hd", n_bins=10)
    tables = run("visium-hd.md")["sdata"].tables
    assert finite(tables["square_008um"])
    assert finite(tables["square_016um"])
    assert "pred_m2ost" not in tables["square_002um"].obsm


def test_xenium(xenium_folder, run, tmp_path, monkeypatch):
    import spatialdata_io

    few = {"genes": ("EPCAM", "CD3E", "X", "Y"), "n_cells": 36, "pitch": 110}
    folder = xenium_folder("xenium", **few)
    for source, name in (("s_he_image.ome.tif", "he.ome.tif"), ("s_he_imagealignment.csv", "alignment.csv")):
        shutil.copy(folder.path / source, tmp_path / name)
    other = spatialdata_io.xenium(xenium_folder("other", mpp=0.12, **few).path)
    other.tables["table"].obs["patient"], other.tables["table"].obs["section"] = "B", "S2"
    reader = spatialdata_io.xenium

    def with_patient(path, **options):
        sdata = reader(path, **options)
        sdata.tables["table"].obs["patient"], sdata.tables["table"].obs["section"] = "A", "S1"
        return sdata

    monkeypatch.setattr(spatialdata_io, "xenium", with_patient)
    known = run("xenium.md", other=other)
    assert finite(known["sdata"].tables["table"])
    assert finite(other.tables["table"], "pred_ridge")
    assert set(known["evaluation"].genes["gene"]) == {"EPCAM", "CD3E"}


def test_own_slide(run, tmp_path, monkeypatch):
    predict = stp.tl.predict
    rng = np.random.default_rng(0)
    image = np.full((1600, 1600, 3), 245, np.uint8)
    image[400:1200, 400:1200] = rng.integers(60, 200, (800, 800, 1))
    pixels_per_cm = (10_000 / 0.5,) * 2
    tifffile.imwrite(
        tmp_path / "slide.svs",
        image,
        tile=(256, 256),
        photometric="rgb",
        resolution=pixels_per_cm,
        resolutionunit="CENTIMETER",
    )
    Image.fromarray(image).save(tmp_path / "scan.png")
    tifffile.imwrite(tmp_path / "slide.tif", image.astype(np.uint16) * 16, photometric="rgb")
    seen = []
    monkeypatch.setattr(stp.tl, "predict", lambda sdata, **options: seen.append(sdata) or predict(sdata, **options))
    known = run("own-slide.md")
    assert np.isfinite(known["prediction"].X).all()
    assert np.isfinite(seen[1].tables["pred_m2ost"].X).all()
    assert (seen[1].shapes["grid"]["radius"] * 2 * 0.5 == 100).all()
    np.testing.assert_allclose(known["sdata"]["he8"]["scale0"]["image"].values, image.transpose(2, 0, 1), atol=1)


def test_export(run, tmp_path):
    """Genes of a shipped checkpoint, on a simulated section."""
    (section,) = stp.datasets.simulate(1, 1, n_genes=6, shape=(960, 1120), mpp=0.688, seed=0).sections.values()
    stp.tl.predict(section, "m2ost", device="cpu")
    section.write(tmp_path / "section.zarr")
    known = run("export.md")
    assert known["sdata"]["predicted"].n_vars == 250
    assert "predicted" in spatialdata.read_zarr(tmp_path / "section.zarr")
    objects = json.loads((tmp_path / "section.geojson").read_text())["features"]
    assert len(objects) == known["prediction"].n_obs
    assert set(objects[0]["properties"]["measurements"]) == {"ERBB2", "GNAS"}
    assert tifffile.imread(tmp_path / "section.ome.tif").shape[0] == 2


def test_stain(run):
    known = run("stain.md")
    table = known["other"].tables["table"]
    assert np.isfinite(table.obsm["pred_ridge"]).any()
    assert known["trained"].card.training["stain"]["method"] == "macenko"
