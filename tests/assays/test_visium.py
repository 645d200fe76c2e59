"""Visium sections as spatialdata_io reads them: the call with two arguments finds image, table, mpp and coordinate system."""

from __future__ import annotations

import json

import numpy as np
import pytest
import spatialdata
import spatialdata_io
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, set_transformation

import st_predict as stp

KEY = "pred_ridge"


@pytest.fixture
def read(quietly):
    def of(folder, dataset_id="V1.sample.1", *, full="tissue.tif", **options):
        return quietly(spatialdata_io.visium, folder.path, dataset_id, fullres_image_file=full, **options)

    return of


def sections(table, key=KEY):
    return json.loads(table.uns["st_predict"][key]["params"])["sections"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("degrees", [0, 90, 37])
def test_two_arguments_suffice(visium_folder, decoder, read, version, degrees):
    folder = visium_folder(version=version, degrees=degrees)
    sdata = read(folder)
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert folder.right(table, table.obsm[KEY]) == 1
    (section,) = sections(table)
    assert section["image"] == "V1.sample.1_full_image"
    assert section["mpp"] == pytest.approx(folder.mpp, rel=1e-3)
    assert "visium: 100 um" in section["mpp_source"]


def test_the_released_model_runs_without_more(visium_folder, read):
    sdata = read(visium_folder())
    stp.tl.predict(sdata)
    assert np.isfinite(sdata.tables["table"].obsm["pred_m2ost"]).all()


def test_without_the_full_image_the_error_says_how_to_get_it(visium_folder, decoder, read):
    sdata = read(visium_folder(), full=None)
    with pytest.raises(
        ValueError, match=r"has 2\.\d+ um/px, the model needs 1 um/px or finer.*fullres_image_file="
    ) as caught:
        stp.tl.predict(sdata, decoder(1.0))
    assert "V1.sample.1_hires_image" in str(caught.value)


def test_the_hires_image_is_enough_for_a_coarse_model(visium_folder, decoder, read):
    folder = visium_folder(hires_width=1000)
    sdata = read(folder, full=None)
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert sections(table)[0]["image"] == "V1.sample.1_hires_image"
    assert folder.right(table, table.obsm[KEY]) == 1


def test_the_image_that_is_named_is_taken(visium_folder, decoder, read):
    sdata = read(visium_folder(hires_width=1000))
    stp.tl.predict(sdata, decoder(1.0), image_key="V1.sample.1_hires_image")
    assert sections(sdata.tables["table"])[0]["image"] == "V1.sample.1_hires_image"


def test_another_picture_of_the_section_is_ambiguous(visium_folder, decoder, read):
    sdata = read(visium_folder())
    part = sdata["V1.sample.1_hires_image"].data[:, :200, :300]
    sdata["registered"] = Image2DModel.parse(part, dims=("c", "y", "x"), transformations={"V1.sample.1": Identity()})
    with pytest.raises(ValueError, match=r"several images in sdata.*'registered'.*image_key="):
        stp.tl.predict(sdata, decoder(1.0))


def test_another_picture_that_shares_no_coordinate_system_does_not_matter(visium_folder, decoder, read):
    folder = visium_folder()
    sdata = read(folder)
    sdata["macro"] = sdata["V1.sample.1_hires_image"].copy()
    set_transformation(sdata["macro"], {"elsewhere": Identity()}, set_all=True)
    stp.tl.predict(sdata, decoder(1.0))
    assert folder.right(sdata.tables["table"], sdata.tables["table"].obsm[KEY]) == 1


def test_a_crop_of_a_section(visium_folder, decoder, read):
    folder = visium_folder()
    sdata = read(folder)
    height, width = folder.image.shape[:2]
    part = spatialdata.bounding_box_query(
        sdata,
        axes=("x", "y"),
        min_coordinate=[0.4 * width, 0.3 * height],
        max_coordinate=[0.9 * width, 0.9 * height],
        target_coordinate_system="V1.sample.1",
    )
    assert 10 < part.tables["table"].n_obs < sdata.tables["table"].n_obs
    stp.tl.predict(part, decoder(1.0))
    table = part.tables["table"]
    inside = _far_from_edge(part, table, 70)
    assert inside.sum() >= 10
    assert folder.right(table[inside], table.obsm[KEY][inside]) == 1
    assert sections(table)[0]["image"] == "V1.sample.1_full_image"


def _far_from_edge(part, table, margin):
    spots = stp.io.read_spots(part)
    height, width = stp.io.open_pyramid(part, stp.io.find_image(part, None, region="V1.sample.1")).level_shapes[0]
    return ((spots.xy > margin) & (spots.xy < np.array([width, height]) - margin)).all(axis=1)


def test_raw_counts_leave_out_what_is_not_tissue(visium_folder, decoder, read):
    folder = visium_folder()
    sdata = read(folder, counts_file="raw_feature_bc_matrix.h5")
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    on_tissue = table.obs["in_tissue"].to_numpy() == 1
    assert 0 < on_tissue.sum() < table.n_obs
    assert np.isnan(table.obsm[KEY][~on_tissue]).all()
    assert folder.right(table[on_tissue], table.obsm[KEY][on_tissue]) == 1


@pytest.mark.parametrize("join", [True, False])
def test_several_libraries_in_one_object(visium_folder, decoder, read, quietly, join):
    folders = {name: visium_folder(name, mpp=mpp, degrees=turn) for name, mpp, turn in (("A", 0.5, 0), ("B", 0.4, 90))}
    both = quietly(
        spatialdata.concatenate,
        {name: read(folder, "same") for name, folder in folders.items()},
        concatenate_tables=join,
    )
    stp.tl.predict(both, decoder(1.0))
    for name, folder in folders.items():
        table = both.tables["table" if join else f"table-{name}"]
        rows = (table.obs["region"] == f"same-{name}").to_numpy()
        suffix = f"-{name}" if join else ""
        assert folder.right(table[rows], table.obsm[KEY][rows], suffix=suffix) == 1
        (section,) = [s for s in sections(table) if s["region"] == f"same-{name}"]
        assert section["mpp"] == pytest.approx(folder.mpp, rel=1e-3)


def test_an_object_that_was_written_and_read(visium_folder, decoder, read, tmp_path, quietly):
    folder = visium_folder()
    quietly(read(folder).write, tmp_path / "section.zarr")
    sdata = quietly(spatialdata.read_zarr, tmp_path / "section.zarr")
    stp.tl.predict(sdata, decoder(1.0))
    assert folder.right(sdata.tables["table"], sdata.tables["table"].obsm[KEY]) == 1


def test_plots_find_the_image_as_well(visium_folder, decoder, read):
    sdata = read(visium_folder())
    stp.tl.predict(sdata, decoder(1.0))
    axes = stp.pl.spatial(sdata, ["red"], show=False)
    assert axes.size
    stp.pl.crops(sdata, stp.models.get_spec("ridge").crop, show=False)
