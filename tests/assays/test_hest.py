"""Samples of HEST: AnnData with a slide, and what ``HESTData.to_spatial_data`` makes of them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import scanpy
import tifffile
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import st_predict as stp

KEY = "pred_ridge"
MPP = 0.5


def shrink(image, width):
    """Return the image at another width, and the scale factor."""
    factor = width / image.shape[1]
    small = Image.fromarray(image).resize((width, round(image.shape[0] * factor)), Image.Resampling.BOX)
    return np.asarray(small), factor


@pytest.fixture
def sample(visium_folder, quietly):
    """Folder, and AnnData as HEST stores it in ``st/ID.h5ad``: one library "ST", with a thumbnail that is called by its own name."""
    folder = visium_folder(mpp=MPP)
    adata = quietly(scanpy.read_visium, folder.path)
    (stored,) = adata.uns["spatial"].values()
    small, factor = shrink(folder.image, 300)
    adata.uns["spatial"] = {
        "ST": {
            "images": {"downscaled_fullres": small},
            "scalefactors": {
                "tissue_downscaled_fullres_scalef": factor,
                "spot_diameter_fullres": stored["scalefactors"]["spot_diameter_fullres"],
            },
        }
    }
    return folder, adata


def as_spatial_data(folder, adata, *, fullres, declared=np.uint8):
    """Elements and coordinate systems that HEST documents: each image has a system of its own, and the spots have all of them."""
    images, systems = {}, {}
    (stored,) = adata.uns["spatial"].values()
    pictures = {
        "ST_downscaled_hires": (*shrink(folder.image, 600), declared),
        "ST_downscaled_lowres": (
            stored["images"]["downscaled_fullres"],
            stored["scalefactors"]["tissue_downscaled_fullres_scalef"],
            np.uint8,
        ),
    }
    if fullres:
        pictures["ST_fullres"] = (folder.image, 1.0, declared)
    for name, (pixels, factor, dtype) in pictures.items():
        lazy = da.from_array(np.moveaxis(pixels, -1, 0), chunks=(3, 512, 512))
        lazy = lazy.map_blocks(lambda block: block, dtype=dtype, meta=np.empty((0, 0, 0), dtype))
        images[f"{name}_image"] = Image2DModel.parse(lazy, dims=("c", "y", "x"), transformations={name: Identity()})
        systems[name] = Scale([factor, factor], axes=("x", "y"))
    radius = stored["scalefactors"]["spot_diameter_fullres"] / 2
    spots = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=radius, transformations=systems)
    table = adata.copy()
    table.obs["region"] = "locations"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["instance_id"] = spots.index.to_numpy()
    table = TableModel.parse(table, region="locations", region_key="region", instance_key="instance_id")
    return SpatialData(images=images, shapes={"locations": spots}, tables={"table": table})


def test_a_sample_and_its_slide(sample, decoder, tmp_path):
    folder, adata = sample
    tifffile.imwrite(tmp_path / "TENX95.tif", folder.image, tile=(256, 256), photometric="rgb")
    before = adata.copy()
    sdata = stp.io.from_anndata(adata, tmp_path / "TENX95.tif", mpp=MPP)
    stp.tl.predict(sdata, decoder(1.0))
    found = stp.get.to_anndata(sdata)
    assert folder.right(found, found.obsm[KEY]) == 1
    assert found.obs_names.equals(before.obs_names)
    assert list(adata.obsm) == list(before.obsm)


def test_the_finest_image_is_found_through_the_spots(sample, decoder):
    sdata = as_spatial_data(*sample, fullres=True)
    stp.tl.predict(sdata, decoder(1.0), mpp=MPP)
    table = sdata.tables["table"]
    assert sample[0].right(table, table.obsm[KEY]) == 1
    assert stp.io.find_image(sdata, None, region="locations") == "ST_fullres_image"


def test_a_coarse_image_alone(sample, decoder):
    folder, _ = sample
    sdata = as_spatial_data(*sample, fullres=False)
    assert stp.io.find_image(sdata, None, region="locations") == "ST_downscaled_hires_image"
    with pytest.raises(ValueError, match=r"ST_downscaled_hires_image.*fullres_image_file="):
        stp.tl.predict(sdata, decoder(1.0), mpp=MPP * folder.image.shape[1] / 600)


@pytest.mark.parametrize("fullres", [True, False])
def test_the_slide_as_it_is_declared(sample, decoder, fullres, tmp_path):
    """HEST declares lazy pixels as int8; the thumbnail must not stand in for them, and the line of the message works."""
    folder, _ = sample
    sdata = as_spatial_data(*sample, fullres=fullres, declared=np.int8)
    with pytest.raises(
        ValueError, match=r"got int8.*st_predict\.io\.from_anndata\(sdata\.tables\[\.\.\.\], image=\.\.\., mpp="
    ):
        stp.tl.predict(sdata, decoder(1.0), mpp=MPP)
    again = stp.io.from_anndata(sdata.tables["table"], image=folder.image, mpp=MPP)
    stp.tl.predict(again, decoder(1.0))
    table = again.tables["table"]
    assert folder.right(table, table.obsm[KEY]) == 1
