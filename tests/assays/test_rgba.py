"""H&E images with an alpha channel, as readers give them of some files."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata_io
import tifffile
from PIL import Image
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

import st_predict as stp

KEY = "pred_ridge"


def with_alpha(image):
    """Return the image with a fourth channel: transparent where it is white."""
    alpha = np.where((image == 255).all(axis=2), 0, 255).astype(np.uint8)
    return np.dstack([np.where(alpha[..., None] == 0, 0, image), alpha]).astype(np.uint8)


def test_visium(visium_folder, decoder, quietly):
    folder = visium_folder()
    Image.fromarray(with_alpha(folder.image)).save(folder.path / "tissue.png")
    options = {"dataset_id": "V1", "fullres_image_file": "tissue.png"}
    sdata = quietly(spatialdata_io.visium, folder.path, **options)
    image = sdata["V1_full_image"]
    channels = image["scale0"]["image"].sizes["c"] if "scale0" in getattr(image, "children", {}) else image.sizes["c"]
    assert channels == 4
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert folder.right(table, table.obsm[KEY]) == 1
    assert stp.pl.spatial(sdata, ["red"]).size


def test_xenium(xenium_folder, decoder, quietly):
    folder = xenium_folder(mpp=0.11)
    pixels = np.moveaxis(with_alpha(folder.image), -1, 0)
    tifffile.imwrite(folder.path / "s_he_image.ome.tif", pixels, photometric="minisblack", metadata={"axes": "CYX"})
    sdata = quietly(spatialdata_io.xenium, folder.path)
    stp.tl.predict(sdata, decoder(0.11))
    table = sdata.tables["table"]
    named = table.obs.set_index("cell_id")
    assert folder.right(type("Named", (), {"obs_names": named.index}), table.obsm[KEY]) == 1


@pytest.mark.parametrize("levels", [None, [2]])
def test_pixels_are_put_on_white(levels):
    rgba = np.zeros((4, 64, 64), np.uint8)
    rgba[0], rgba[3, :, 32:] = 200, 255
    rgba[3, :32, :32] = 51  # a fifth
    image = Image2DModel.parse(
        rgba,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b", "a"],
        scale_factors=levels,
        transformations={"global": Identity()},
    )
    pixels = stp.io.SpatialDataPyramid(image).read(0, 0, 64, 64, level=0)
    np.testing.assert_array_equal(pixels[0, 40], [200, 0, 0])
    np.testing.assert_array_equal(pixels[40, 0], [255, 255, 255])
    np.testing.assert_array_equal(pixels[0, 0], [244, 204, 204])


def test_four_stains_are_no_rgba(visium_folder, decoder, quietly):
    folder = visium_folder()
    sdata = quietly(spatialdata_io.visium, folder.path, dataset_id="V1", fullres_image_file="tissue.tif")
    stains = np.moveaxis(with_alpha(folder.image), -1, 0)
    for name in list(sdata.images):
        del sdata.images[name]
    sdata["stains"] = Image2DModel.parse(
        stains, dims=("c", "y", "x"), c_coords=["DAPI", "a", "b", "c"], transformations={"V1": Identity()}
    )
    with pytest.raises(ValueError, match=r"Expected an RGB image, got 4 channels.*to_rgb8"):
        stp.tl.predict(sdata, decoder(1.0))
    sdata["other"] = sdata["stains"].copy()
    with pytest.raises(ValueError, match=r"No image of \['other', 'stains'\].*4 channels of uint8.*to_rgb8"):
        stp.tl.predict(sdata, decoder(1.0))
