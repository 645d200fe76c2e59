"""AnnData objects of scanpy and squidpy, made SpatialData objects."""

from __future__ import annotations

import json
import re

import anndata
import numpy as np
import pytest
import scanpy
import tifffile
from anndata import AnnData

import st_predict as stp
from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError

KEY = "pred_ridge"


@pytest.fixture
def read(quietly):
    return lambda folder, reader=scanpy.read_visium: quietly(reader, folder.path)


def read_by_squidpy(path):
    import squidpy

    return squidpy.read.visium(path)


def sections(table, key=KEY):
    return json.loads(table.uns["st_predict"][key]["params"])["sections"]


@pytest.mark.parametrize(
    ("version", "reader"), [(1, scanpy.read_visium), (2, scanpy.read_visium), (2, read_by_squidpy)]
)
@pytest.mark.parametrize("form", ["path", "array", "tiled"])
def test_a_table_of_scanpy_with_the_full_image(visium_folder, decoder, read, version, reader, form):
    folder = visium_folder(version=version, degrees=20)
    adata = read(folder, reader)
    before = adata.copy()
    tifffile.imwrite(folder.path / "tiled.tif", folder.image, tile=(256, 256), photometric="rgb")
    image = {"path": folder.path / "tissue.tif", "array": folder.image, "tiled": folder.path / "tiled.tif"}[form]
    sdata = stp.io.from_anndata(adata, image)
    stp.tl.predict(sdata, decoder(1.0))
    result = stp.get.to_anndata(sdata)
    assert folder.right(result, result.obsm[KEY]) == 1
    assert sections(result)[0]["mpp"] == pytest.approx(folder.mpp, rel=1e-3)
    assert "visium: 100 um" in sections(result)[0]["mpp_source"]
    assert list(result.obs) == list(adata.obs) == list(before.obs)
    assert set(adata.obsm) == {"spatial"}
    assert "st_predict" not in adata.uns
    assert (result.obs_names == adata.obs_names).all()
    assert "spatialdata_attrs" not in result.uns


def test_without_an_image_the_hires_image_is_refused_by_a_fine_model(visium_folder, decoder, read):
    sdata = stp.io.from_anndata(read(visium_folder()))
    with pytest.raises(ValueError, match=r"'lib_hires_image', mpp .*: The image has .* um/px, the model needs 1 um/px"):
        stp.tl.predict(sdata, decoder(1.0))


def test_scale_factors_are_honoured(visium_folder, decoder, read):
    folder = visium_folder(hires_width=1000)
    sdata = stp.io.from_anndata(read(folder))
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert folder.right(table, table.obsm[KEY]) == 1
    assert sections(table)[0]["image"] == "lib_hires_image"
    assert sections(table)[0]["mpp"] == pytest.approx(folder.mpp * folder.image.shape[1] / 1000, rel=2e-3)


def test_a_plain_table(visium_folder, decoder, read):
    folder = visium_folder()
    adata = read(folder)
    plain = AnnData(adata.X, obs=adata.obs[[]], var=adata.var, obsm={"centres": adata.obsm["spatial"]})
    sdata = stp.io.from_anndata(plain, folder.image, spatial_key="centres", library_id="my section", mpp=folder.mpp)
    assert list(sdata.images) == ["my_section_full_image"]
    stp.tl.predict(sdata, decoder(1.0))
    table = sdata.tables["table"]
    assert folder.right(table, table.obsm[KEY]) == 1
    assert sections(table)[0]["mpp_source"] == "coordinate system 'um'"
    stp.pl.spatial(sdata, ["red"])
    del sdata.images["my_section_full_image"]
    sdata = stp.io.from_anndata(plain, folder.image, spatial_key="centres")
    with pytest.raises(ValueError, match="Nothing says how many micrometres"):
        stp.tl.predict(sdata, decoder(1.0))


@pytest.mark.parametrize("form", ["paths", "hires"])
def test_several_libraries_in_one_table(visium_folder, decoder, read, form):
    folders = {
        name: visium_folder(name, library=name, mpp=mpp, degrees=turn, hires_width=1000)
        for name, mpp, turn in (("A", 0.5, 0), ("B", 0.4, 90))
    }
    adatas = {name: read(folder) for name, folder in folders.items()}
    both = anndata.concat(adatas, label="library_id", uns_merge="unique", index_unique="-")
    both = both[np.random.default_rng(0).permutation(both.n_obs)].copy()
    image = {name: folder.path / "tissue.tif" for name, folder in folders.items()} if form == "paths" else None
    sdata = stp.io.from_anndata(both, image, library_key="library_id")
    stp.tl.predict(sdata, decoder(1.0))
    result = stp.get.to_anndata(sdata)
    for name, folder in folders.items():
        rows = (result.obs["library_id"] == name).to_numpy()
        assert folder.right(result[rows], result.obsm[KEY][rows], suffix=f"-{name}") == 1
        (section,) = [s for s in sections(result) if s["region"] == name]
        scale = 1 if form == "paths" else folder.image.shape[1] / 1000
        assert section["mpp"] == pytest.approx(folder.mpp * scale, rel=2e-3)
    one = stp.io.from_anndata(both, image and image["B"], library_key="library_id", library_id="B")
    stp.tl.predict(one, decoder(1.0))
    table = one.tables["table"]
    assert set(table.obs["library_id"]) == {"B"}
    assert folders["B"].right(table, table.obsm[KEY], suffix="-B") == 1
    with pytest.raises(
        InvalidValueError, match=r"several libraries .*\['A', 'B'\].*\['library_id'\]. Name that column with"
    ):
        stp.io.from_anndata(both)


def test_the_result_is_written_and_read(visium_folder, decoder, read, quietly, tmp_path):
    folder = visium_folder()
    sdata = stp.io.from_anndata(read(folder), folder.path / "tissue.tif")
    stp.tl.predict(sdata, decoder(1.0))
    quietly(stp.get.to_anndata(sdata).write_h5ad, tmp_path / "result.h5ad")
    result = anndata.read_h5ad(tmp_path / "result.h5ad")
    assert folder.right(result, stp.get.prediction(result, units="model").X) == 1


def test_an_argument_that_is_anndata_says_the_way(visium_folder, decoder, read):
    adata = read(visium_folder())
    for verb in (stp.tl.predict, stp.tl.embed, lambda data, path: stp.tl.train(data, "mean", panel=["a"], out=path)):
        with pytest.raises(InvalidTypeError, match=re.escape("st_predict.io.from_anndata(adata, image=...)")):
            verb(adata, decoder(1.0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spatial_key": "xy"}, NotFoundError, r"no 'xy' in .obsm; there are \['spatial'\]. Name .* with spatial_key="),
        ({"library_id": "x"}, NotFoundError, r"no library 'x' in .uns\['spatial'\]; there are \['lib'\]"),
        ({"library_key": "x"}, NotFoundError, "no column 'x' in .obs"),
        ({"library_key": "in_tissue"}, NotFoundError, r"Column 'in_tissue' names \['1'\], which are not"),
        ({"image": "nothing.tif"}, FileNotFoundError, "no file nothing.tif"),
        ({"image": 3}, InvalidTypeError, "image must be a file, an array or an image element, got int"),
        ({"image": np.zeros((5, 5), np.uint8)}, InvalidValueError, r"image must be \(height, width, 3\) of uint8"),
        (
            {"image": {"x": "a.tif"}},
            NotFoundError,
            r"mapping from library to image has \['x'\]; the libraries are \['lib'\]",
        ),
        ({"mpp": -1}, InvalidValueError, "mpp must be above 0, got -1"),
    ],
)
def test_unfit_arguments(visium_folder, read, options, error, message):
    adata = read(visium_folder())
    with pytest.raises(error, match=message):
        stp.io.from_anndata(adata, **options)


def test_unfit_tables(visium_folder, read):
    adata = read(visium_folder())
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
    adata.obsm["spatial"][3] = np.nan
    with pytest.raises(InvalidValueError, match="1 of 30 spots have no coordinates"):
        stp.io.from_anndata(adata)
    plain = AnnData(np.ones((2, 1), np.float32), obsm={"spatial": np.ones((2, 2))})
    with pytest.raises(InvalidValueError, match=r"has no image in .* Give the image .* with image="):
        stp.io.from_anndata(plain)
    with pytest.raises(InvalidTypeError, match="must be AnnData"):
        stp.io.from_anndata("a.h5ad")


def test_no_table_to_take_out():
    import spatialdata

    with pytest.raises(NotFoundError, match="no table of spots"):
        stp.get.to_anndata(spatialdata.SpatialData())
