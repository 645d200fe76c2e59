"""Xenium sections as spatialdata_io reads them: a spot is a cell, and the H&E image is aligned by an affine."""

from __future__ import annotations

import json

import numpy as np
import pytest
import spatialdata
import spatialdata_io

import st_predict as stp

KEY = "pred_ridge"
MPP = 0.11


@pytest.fixture
def read(quietly):
    return lambda folder, **options: quietly(spatialdata_io.xenium, folder.path, **options)


def sections(table, key=KEY):
    return json.loads(table.uns["st_predict"][key]["params"])["sections"]


def right(folder, table, values):
    """Cells are named by their number in a table of spatialdata_io, and by their identifier in a column."""
    named = table.obs.set_index("cell_id")
    return folder.right(type("Named", (), {"obs_names": named.index}), values)


TURNED = [(0, False), (17, False), (90, False), (200, True)]
OPTIONS = [
    {"cells_as_circles": True},
    {"cells_labels": False, "nucleus_labels": False, "cells_as_circles": True, "transcripts": False},
    {"nucleus_boundaries": False, "morphology_focus": False},
]


@pytest.mark.parametrize(
    ("degrees", "mirrored", "options"), [*((*pose, {}) for pose in TURNED), *((17, False, one) for one in OPTIONS)]
)
def test_two_arguments_suffice(xenium_folder, decoder, read, degrees, mirrored, options):
    folder = xenium_folder(degrees=degrees, mirrored=mirrored, mpp=MPP)
    sdata = read(folder, **options)
    before = sdata.tables["table"].obs.copy()
    stp.tl.predict(sdata, decoder(MPP))
    table = sdata.tables["table"]
    assert right(folder, table, table.obsm[KEY]) == 1
    (section,) = sections(table)
    assert section["image"] == "he_image"
    assert section["mpp"] == pytest.approx(MPP, rel=1e-3)
    assert "micrometres of 'cell_" in section["mpp_source"]
    assert "Xenium" in section["mpp_source"]
    assert table.obs.equals(before)


@pytest.mark.parametrize("version", ["xenium-2.0.0.10", "xenium-4.0.0.1"])
def test_versions(xenium_folder, decoder, read, version):
    folder = xenium_folder(version=version, mpp=MPP)
    sdata = read(folder)
    stp.tl.predict(sdata, decoder(MPP))
    assert right(folder, sdata.tables["table"], sdata.tables["table"].obsm[KEY]) == 1


def test_polygons(xenium_folder, decoder, read):
    folder = xenium_folder(mpp=MPP)
    sdata = read(folder)
    sdata.tables["table"].obs["region"] = "cell_boundaries"
    sdata.tables["table"].obs["region"] = sdata.tables["table"].obs["region"].astype("category")
    sdata.set_table_annotates_spatialelement("table", "cell_boundaries", region_key="region", instance_key="cell_id")
    stp.tl.predict(sdata, decoder(MPP))
    assert right(folder, sdata.tables["table"], sdata.tables["table"].obsm[KEY]) == 1


def test_fluorescence_is_no_candidate(xenium_folder, decoder, read):
    sdata = read(xenium_folder(he=False))
    with pytest.raises(ValueError, match=r"'morphology_focus' has 1 channels of uint16.*xenium_aligned_image"):
        stp.tl.predict(sdata, decoder(MPP))


def test_an_image_that_is_added_later(xenium_folder, decoder, read, quietly):
    folder = xenium_folder(mpp=MPP)
    sdata = read(folder, aligned_images=False)
    sdata["he"] = quietly(
        spatialdata_io.xenium_aligned_image,
        folder.path / "s_he_image.ome.tif",
        folder.path / "s_he_imagealignment.csv",
    )
    stp.tl.predict(sdata, decoder(MPP))
    assert right(folder, sdata.tables["table"], sdata.tables["table"].obsm[KEY]) == 1


def test_some_cells_in_another_order(xenium_folder, decoder, read):
    folder = xenium_folder(mpp=MPP)
    sdata = read(folder)
    table = sdata.tables["table"]
    sdata.tables["table"] = table[np.random.default_rng(0).permutation(table.n_obs)[:50]].copy()
    stp.tl.predict(sdata, decoder(MPP))
    assert right(folder, sdata.tables["table"], sdata.tables["table"].obsm[KEY]) == 1


@pytest.mark.parametrize("by_name", [True, False])
def test_two_sections(xenium_folder, decoder, read, quietly, by_name):
    folders = {"A": xenium_folder("A", mpp=MPP), "B": xenium_folder("B", mpp=0.1, degrees=100, n_cells=60)}
    both = quietly(
        spatialdata.concatenate,
        {name: read(folder) for name, folder in folders.items()},
        concatenate_tables=True,
        merge_coordinate_systems_on_name=by_name,
    )
    stp.tl.predict(both, decoder(MPP))
    table = both.tables["table"]
    for name, folder in folders.items():
        rows = (table.obs["region"] == f"cell_labels-{name}").to_numpy()
        assert right(folder, table[rows], table.obsm[KEY][rows]) == 1
    assert [s["mpp"] for s in sections(table)] == pytest.approx([MPP, 0.1], rel=1e-3)


@pytest.mark.slow
def test_training_on_cells(xenium_folder, read, quick, tmp_path):
    slides = {}
    for name in ("A", "B"):
        slides[name] = read(xenium_folder(name, mpp=MPP))
        slides[name].tables["table"].obs["patient"] = name
        slides[name].tables["table"].obs["section"] = name
    result = stp.tl.train(
        slides,
        "ridge",
        panel=["ENSG01", "ENSG02"],
        out=tmp_path / "run",
        mpp=MPP,
        validation=["B"],
        config=quick(),
    )
    stp.tl.predict(slides["B"], result)
    table = slides["B"].tables["table"]
    assert table.obsm["pred_ridge"].shape == (120, 2)
    assert np.isfinite(table.obsm["pred_ridge"]).all()


def test_plots(xenium_folder, decoder, read):
    sdata = read(xenium_folder(mpp=MPP))
    stp.tl.predict(sdata, decoder(MPP))
    assert stp.pl.spatial(sdata, ["red"]).size
