"""Visium HD sections as spatialdata_io reads them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scanpy
import spatialdata
import spatialdata_io

import st_predict as stp

KEY = "pred_ridge"


@pytest.fixture
def read(quietly):
    def of(folder, dataset_id="run.1", **options):
        options = {"load_segmentations_only": False, **options}
        return quietly(spatialdata_io.visium_hd, folder.path, dataset_id, **options)

    return of


def sections(table, key=KEY):
    return json.loads(table.uns["st_predict"][key]["params"])["sections"]


@pytest.mark.parametrize("degrees", [0, 90, 31])
@pytest.mark.parametrize("squares", [True, False])
def test_two_arguments_suffice(hd_folder, decoder, read, degrees, squares):
    mpp = 0.08
    folder = hd_folder(degrees=degrees, mpp=mpp)
    sdata = read(folder, bins_as_squares=squares)
    assert sorted(sdata.tables) == ["square_002um", "square_008um", "square_016um"]
    stp.tl.predict(sdata, decoder(mpp))
    table = sdata.tables["square_008um"]
    assert folder.right(table, table.obsm[KEY]) == 1
    (section,) = sections(table)
    assert section["image"] == "run.1_full_image"
    assert section["mpp"] == pytest.approx(mpp, rel=1e-3)
    assert "visium_hd: 8 um" in section["mpp_source"]
    assert not any(KEY in sdata.tables[name].obsm for name in ("square_002um", "square_016um"))


@pytest.mark.parametrize("size", [2, 16])
def test_other_bins_by_the_name_of_their_table(hd_folder, decoder, read, size):
    sdata = read(hd_folder())
    name = f"square_{size:03d}um"
    stp.tl.predict(sdata, decoder(0.1), table_key=name)
    assert sections(sdata.tables[name])[0]["mpp"] == pytest.approx(0.1, rel=1e-3)
    assert KEY not in sdata.tables["square_008um"].obsm


def test_one_size_of_bins(hd_folder, decoder, read):
    folder = hd_folder()
    sdata = read(folder, bin_size=16)
    stp.tl.predict(sdata, decoder(0.1))
    assert "visium_hd: 16 um" in sections(sdata.tables["square_016um"])[0]["mpp_source"]


def test_labels_of_bins(hd_folder, decoder, read):
    folder = hd_folder()
    sdata = read(folder, bin_size=8, annotate_table_by_labels=True)
    stp.tl.predict(sdata, decoder(0.1))
    table = sdata.tables["square_008um"]
    assert folder.right(table, table.obsm[KEY]) == 1


def test_bins_beside_the_tissue_are_left_out(hd_folder, decoder, read):
    folder = hd_folder()
    sdata = read(folder, filtered_counts_file=False, bin_size=8)
    stp.tl.predict(sdata, decoder(0.1))
    table = sdata.tables["square_008um"]
    on_tissue = table.obs["in_tissue"].to_numpy() == 1
    assert 0 < on_tissue.sum() < table.n_obs
    assert np.isnan(table.obsm[KEY][~on_tissue]).all()
    assert folder.right(table[on_tissue], table.obsm[KEY][on_tissue]) == 1


def test_a_crop(hd_folder, decoder, read):
    folder = hd_folder()
    part = spatialdata.bounding_box_query(
        read(folder),
        axes=("x", "y"),
        min_coordinate=[500, 700],
        max_coordinate=[1500, 1600],
        target_coordinate_system="run.1",
    )
    stp.tl.predict(part, decoder(0.1))
    table = part.tables["square_008um"]
    spots = stp.io.read_spots(part)
    inside = ((spots.xy > 60) & (spots.xy < np.array([1000, 900]) - 60)).all(axis=1)
    assert inside.sum() > 60
    assert folder.right(table[inside], table.obsm[KEY][inside]) == 1


def test_two_sections(hd_folder, decoder, read, quietly):
    folders = {"A": hd_folder("A"), "B": hd_folder("B", mpp=0.08, degrees=90)}
    both = quietly(
        spatialdata.concatenate, {name: read(folder) for name, folder in folders.items()}, concatenate_tables=True
    )
    stp.tl.predict(both, decoder(0.1))
    table = both.tables["square_008um"]
    for name, folder in folders.items():
        rows = (table.obs["region"] == f"run.1_square_008um-{name}").to_numpy()
        assert folder.right(table[rows], table.obsm[KEY][rows], suffix=f"-{name}") == 1
    assert [s["mpp"] for s in sections(table)] == pytest.approx([0.1, 0.08], rel=1e-3)


def test_without_the_full_image(hd_folder, decoder, read):
    folder = hd_folder()
    (folder.path / "microscope_image" / "tissue.tif").unlink()
    sdata = read(folder)
    with pytest.raises(ValueError, match=r"'run.1_hires_image'.*fullres_image_file="):
        stp.tl.predict(sdata, decoder(0.1))


def test_bins_in_anndata(hd_folder, decoder, quietly):
    """Scale factors of Space Ranger say the pixel size."""
    folder = hd_folder()
    bins = folder.path / "binned_outputs" / "square_008um"
    adata = quietly(scanpy.read_10x_h5, bins / "filtered_feature_bc_matrix.h5")
    places = pd.read_parquet(bins / "spatial" / "tissue_positions.parquet").set_index("barcode").loc[adata.obs_names]
    adata.obs = places[["in_tissue", "array_row", "array_col"]]
    adata.obsm["spatial"] = places[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    factors = json.loads((bins / "spatial" / "scalefactors_json.json").read_text())
    adata.uns["spatial"] = {"lib": {"scalefactors": factors}}
    sdata = stp.io.from_anndata(adata, folder.image)
    stp.tl.predict(sdata, decoder(0.1))
    table = sdata.tables["table"]
    assert folder.right(table, table.obsm[KEY]) == 1
    assert sections(table)[0]["mpp"] == pytest.approx(0.1)
    assert stp.io.find_mpp(sdata, mpp="spots").value == pytest.approx(0.1)


@pytest.mark.parametrize("nuclei", [False, True])
def test_cells_beside_the_bins(hd_folder, decoder, read, nuclei):
    """Segmentations of Space Ranger 4: the bins stay the default, cells and nuclei are taken by name."""
    folder = hd_folder(cells=True)
    if nuclei:
        _write_mapping(folder)
    sdata = read(folder, load_nucleus_segmentations=nuclei)
    segmented = ["cell_segmentations", *(["nucleus_segmentations"] if nuclei else [])]
    assert sorted(sdata.tables) == [*segmented, "square_002um", "square_008um", "square_016um"]
    stp.tl.predict(sdata, decoder(0.1))
    assert [name for name in sdata.tables if KEY in sdata.tables[name].obsm] == ["square_008um"]
    for name in segmented:
        stp.tl.predict(sdata, decoder(0.1), table_key=name)
        table = sdata.tables[name]
        assert folder.right(table, table.obsm[KEY]) == 1
        (section,) = sections(table)
        assert section["mpp"] == pytest.approx(0.1, rel=1e-3)
        assert "visium_hd: 16 um" in section["mpp_source"]


def _write_mapping(folder):
    """Say that each 2 um bin of the first rows lies in the nucleus of some cell."""
    places = pd.read_parquet(folder.path / "binned_outputs" / "square_002um" / "spatial" / "tissue_positions.parquet")
    squares = places["barcode"][places["in_tissue"] == 1].tolist()
    cells = [f"cellid_{i % 40 + 1:09d}-1" for i in range(len(squares))]
    mapping = {"square_002um": squares, "cell_id": cells, "in_nucleus": [True] * len(squares)}
    pd.DataFrame(mapping).to_parquet(folder.path / "barcode_mappings.parquet")


def test_cells_alone(hd_folder, decoder, read):
    """What the reader will give by default: cells, and no bins that tell the pixel size."""
    folder = hd_folder(cells=True)
    sdata = read(folder, load_segmentations_only=True)
    assert list(sdata.tables) == ["cell_segmentations"]
    with pytest.raises(ValueError, match=r"how many micrometres.*mpp=.*load_segmentations_only=False"):
        stp.tl.predict(sdata, decoder(0.1))
    stp.tl.predict(sdata, decoder(0.1), mpp=0.1)
    table = sdata.tables["cell_segmentations"]
    assert folder.right(table, table.obsm[KEY]) == 1


def test_the_cytassist_image_is_not_the_he_image(hd_folder, decoder, read):
    folder = hd_folder()
    sdata = read(folder, load_all_images=True)
    assert "run.1_cytassist_image" in sdata.images
    stp.tl.predict(sdata, decoder(0.1))
    table = sdata.tables["square_008um"]
    assert folder.right(table, table.obsm[KEY]) == 1
    assert sections(table)[0]["image"] == "run.1_full_image"
    for name in ("run.1_full_image", "run.1_hires_image", "run.1_lowres_image"):
        del sdata.images[name]
    with pytest.raises(
        ValueError, match=r"No image of .*cytassist.* is a brightfield image of the tissue.*CytAssist.*fullres"
    ):
        stp.tl.predict(sdata, decoder(0.1))
