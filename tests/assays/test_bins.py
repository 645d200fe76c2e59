"""Bins of Visium HD by their size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import spatialdata
import spatialdata_io

import st_predict as stp
from st_predict.io import find_table

KEY = "pred_ridge"


@pytest.fixture
def read(quietly):
    def of(folder, **options):
        return quietly(spatialdata_io.visium_hd, folder.path, "run.1", load_segmentations_only=False, **options)

    return of


def tables_with(sdata, key=KEY):
    return [name for name, table in sdata.tables.items() if key in table.obsm]


@pytest.mark.parametrize("size", [2, 8, 16])
def test_every_verb_takes_the_size(hd_folder, decoder, read, quick, tmp_path, size):
    sdata, name = read(hd_folder()), f"square_{size:03d}um"
    stp.tl.predict(sdata, decoder(0.1), bin_um=size)
    assert tables_with(sdata) == [name]
    (section,) = json.loads(sdata.tables[name].uns["st_predict"][KEY]["params"])["sections"]
    assert f"visium_hd: {size} um" in section["mpp_source"]
    assert stp.get.prediction(sdata, bin_um=size).n_obs == sdata.tables[name].n_obs
    assert stp.get.frame(sdata, bin_um=size).shape == sdata.tables[name].obsm[KEY].shape
    assert stp.get.to_anndata(sdata, bin_um=size).n_obs == sdata.tables[name].n_obs
    stp.tl.embed(sdata, "rgb", bin_um=size, at_mpp=0.5, cache=False)
    assert tables_with(sdata, "X_rgb") == [name]
    assert stp.pl.spatial(sdata, ["red"], bin_um=size).size


@pytest.mark.slow
def test_the_size_in_training_and_evaluation(hd_folder, read, quick, tmp_path):
    slides = {}
    for name in ("A", "B"):
        slides[name] = read(hd_folder(name))
        for table in slides[name].tables.values():
            table.obs["patient"] = name
            table.obs["section"] = name
    size = {"bin_um": 16}
    panel = stp.pp.select_panel(list(slides.values()), n_genes=2, method="mean", **size)
    result = stp.tl.train(
        slides, "ridge", panel=panel, out=tmp_path / "run", mpp=0.1, validation=["B"], config=quick(), **size
    )
    trained = result.card.training["sections"][0]
    assert trained["n_spots"] <= slides["A"].tables["square_016um"].n_obs
    stp.tl.predict(slides, result)  # bins of 8 um, under the same key
    stp.tl.predict(slides, result, **size)
    with pytest.raises(ValueError, match=r"Several tables have a prediction.*bin_um="):
        stp.tl.evaluate(slides["B"], min_counts=1)
    scored = stp.tl.evaluate(slides["B"], min_counts=1, train=slides["A"], **size)
    assert set(scored.summary["n_spots"]) <= set(range(slides["B"].tables["square_016um"].n_obs + 1))
    assert any(column.startswith("pred_ridge_") for column in slides["B"].tables["square_016um"].var)
    assert not any(column.startswith("pred_ridge_") for column in slides["B"].tables["square_008um"].var)
    calibration = stp.tl.calibrate(slides["B"], coverage=0.5, min_counts=1, train=slides["A"], **size)
    calibration.apply(slides["A"], **size)
    assert tables_with(slides["A"], "pred_ridge_lower") == ["square_016um"]


@pytest.mark.parametrize("join", [True, False])
def test_the_size_of_joined_sections(hd_folder, decoder, read, quietly, join):
    slides = {"A": read(hd_folder("A")), "B": read(hd_folder("B", mpp=0.08))}
    both = quietly(spatialdata.concatenate, slides, concatenate_tables=join)
    stp.tl.predict(both, decoder(0.1), bin_um=16)
    assert tables_with(both) == (["square_016um"] if join else ["square_016um-A", "square_016um-B"])


def test_the_size_that_anndata_notes(hd_folder, read):
    sdata = read(hd_folder())
    bins = sdata.tables["square_016um"]
    adata = bins.copy()
    del adata.uns["spatialdata_attrs"]
    adata.obs = adata.obs.drop(columns=["location_id", "region"])
    adata.uns.update(assay="visium_hd", bin_um=16)
    other = stp.io.from_anndata(adata, np.full((2000, 2000, 3), 255, np.uint8), mpp=0.1)
    assert find_table(other, bin_um=16) == "table"
    with pytest.raises(KeyError, match=r"no bins of 8 um.*16 um \(table 'table'\)"):
        find_table(other, bin_um=8)


def test_sizes_that_are_not_there(hd_folder, decoder, read):
    sdata = read(hd_folder(), bin_size=[8, 16])
    expected = r"no bins of 2 um in sdata; there are bins of 8 um \(table 'square_008um'\), 16 um .*bin_um=.*bin_size=2"
    with pytest.raises(KeyError, match=expected):
        stp.tl.predict(sdata, decoder(0.1), bin_um=2)
    with pytest.raises(ValueError, match=r"'square_008um' and bins of 16.* are both named.*table_key=.*bin_um="):
        stp.tl.predict(sdata, decoder(0.1), bin_um=16, table_key="square_008um")
    with pytest.raises(ValueError, match=r"bins of 16 um are the spots, or the shapes.*Leave out bin_um="):
        stp.tl.predict(sdata, decoder(0.1), bin_um=16, shapes_key="run.1_square_008um")
    with pytest.raises(ValueError, match="bin_um must be"):
        stp.tl.predict(sdata, decoder(0.1), bin_um="16")
    with pytest.raises(ValueError, match=r"AnnData has no tables.*bin_um="):
        stp.get.prediction(sdata.tables["square_008um"], bin_um=8)


def test_no_bins_at_all(visium_folder, decoder, quietly):
    sdata = quietly(spatialdata_io.visium, visium_folder().path, dataset_id="V1", fullres_image_file="tissue.tif")
    with pytest.raises(KeyError, match=r"no bins of 8 um: no table of \['table'\].*Leave out bin_um="):
        stp.tl.predict(sdata, decoder(1.0), bin_um=8)
