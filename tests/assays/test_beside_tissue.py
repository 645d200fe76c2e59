"""Spots beside the tissue get no prediction, are not read, and are not counted."""

from __future__ import annotations

import logging

import dask.array as da
import numpy as np
import pytest
import spatialdata_io
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

import st_predict as stp
from st_predict.specs import ModelCard

CHUNK = 128


@pytest.fixture
def read(visium_folder, quietly):
    """A section with its raw counts: the first row and columns of spots lie beside the tissue."""

    def of(**options):
        folder = visium_folder(**options)
        sdata = quietly(
            spatialdata_io.visium,
            folder.path,
            dataset_id="V1",
            fullres_image_file="tissue.tif",
            counts_file="raw_feature_bc_matrix.h5",
        )
        return folder, sdata

    return of


@pytest.fixture
def section(read):
    return read(n_rows=8)


@pytest.fixture
def network(tmp_path):
    """Saves a small network with random weights, which reads crops of single spots."""
    spec = stp.models.get_spec("m2ost")
    card = ModelCard(model="m2ost", genes=("a", "b"), crop=spec.crop_for(dict(spec.tiny)), hparams=dict(spec.tiny))
    path = tmp_path / "network.safetensors"
    stp.checkpoints.save(path, stp.checkpoints.build(card), card)
    return path


def without_pixels(folder, forbidden):
    """Image of a section, of whose finest level the chunks at some places cannot be read."""
    pixels = np.moveaxis(folder.image, -1, 0)
    places = {tuple((xy[::-1] // CHUNK).astype(int)) for xy in forbidden}

    def read(block, block_info=None):
        if tuple(block_info[0]["chunk-location"][1:]) in places:
            raise RuntimeError("pixels beside the tissue were read")
        return block

    whole = da.from_array(pixels, chunks=(3, CHUNK, CHUNK))
    image = Image2DModel.parse(
        whole, dims=("c", "y", "x"), scale_factors=[2], c_coords=["r", "g", "b"], transformations={"V1": Identity()}
    )
    finest = image["scale0"]["image"]
    finest.data = whole.map_blocks(read, dtype=np.uint8)
    coarse = image["scale1"]["image"]
    coarse.data = da.from_array(coarse.data.compute(), chunks=(3, CHUNK, CHUNK))
    return image


def far_from(sdata, margin):
    """Spots beside the tissue none of whose chunks a spot on tissue needs."""
    table, xy = sdata.tables["table"], stp.io.read_spots(sdata).xy
    on = table.obs["in_tissue"].to_numpy() == 1
    needed = {
        tuple(((place[::-1] + shift) // CHUNK).astype(int))
        for place in xy[on]
        for shift in np.stack(np.meshgrid([-margin, 0, margin], [-margin, 0, margin]), -1).reshape(-1, 2)
    }
    return np.array([place for place in xy[~on] if tuple((place[::-1] // CHUNK).astype(int)) not in needed]), on


def test_they_are_not_read(read, decoder):
    folder, sdata = read(mpp=0.2)
    forbidden, on = far_from(sdata, 40)
    assert len(forbidden) > 5
    for name in list(sdata.images):
        del sdata.images[name]
    sdata.images["he"] = without_pixels(folder, forbidden)
    path = decoder(0.2)
    stp.tl.predict(sdata, path)
    table = sdata.tables["table"]
    assert folder.right(table[on], table.obsm["pred_ridge"][on]) == 1
    assert np.isnan(table.obsm["pred_ridge"][~on]).all()
    with pytest.raises(OSError, match="beside the tissue were read"):  # the check would notice
        stp.tl.predict(sdata, path, tissue_only=False)


@pytest.mark.parametrize("reads", ["crops", "features"])
def test_the_others_have_the_same_values(section, decoder, network, reads):
    _, sdata = section
    path = network if reads == "crops" else decoder(1.0)
    on = sdata.tables["table"].obs["in_tissue"].to_numpy() == 1
    stp.tl.predict(sdata, path, key_added="some")
    stp.tl.predict(sdata, path, key_added="all", tissue_only=False)
    some, whole = (sdata.tables["table"].obsm[key] for key in ("some", "all"))
    np.testing.assert_allclose(some[on], whole[on], rtol=1e-5, atol=1e-6)
    assert np.isnan(some[~on]).all()
    assert np.isfinite(whole).all()


def test_a_section_of_nothing_but_them_is_refused(section, decoder):
    folder, sdata = section
    table, xy = sdata.tables["table"], stp.io.read_spots(sdata).xy
    middle = int(np.median(xy[:, 0]))
    table.obs["in_tissue"] = (xy[:, 0] > middle).astype(int)
    cut = np.moveaxis(folder.image[:, : middle - 10], -1, 0)
    sdata.images["cut"] = Image2DModel.parse(cut, dims=("c", "y", "x"), transformations={"V1": Identity()})
    with pytest.raises(
        ValueError, match=r"No spot of 'V1' is both inside the image 'cut' and on tissue.*tissue_only=False"
    ):
        stp.tl.predict(sdata, decoder(1.0), image_key="cut")


@pytest.mark.parametrize("values", [[True, False], ["1", "0"], [1.0, 0.0], [1, 0]])
def test_they_are_not_expected_on_tissue(section, decoder, caplog, values):
    """Bare glass under spots that the table says to lie beside the tissue is no reason for a warning."""
    _, sdata = section
    tissue = np.random.default_rng(0).integers(90, 190, (200, 600, 3)).repeat(3, axis=0).repeat(3, axis=1)
    xy = stp.io.read_spots(sdata).xy
    top = xy[:, 1] < 600
    assert 0 < top.mean() < 0.4
    image = np.full((int(xy[:, 1].max()) + 200, 1800, 3), 245, np.uint8)
    image[:600] = tissue
    sdata.images["he"] = Image2DModel.parse(
        np.moveaxis(image, -1, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"V1": Identity()}
    )
    table = sdata.tables["table"]
    table.obs["in_tissue"] = [values[0] if here else values[1] for here in top]
    with caplog.at_level(logging.WARNING):
        stp.tl.predict(sdata, decoder(1.0), image_key="he", tissue_only=False)
    assert "bare glass" not in caplog.text
    table.obs["in_tissue"] = values[0]
    with caplog.at_level(logging.WARNING):
        stp.tl.predict(sdata, decoder(1.0), image_key="he", tissue_only=False)
    assert "bare glass" in caplog.text
