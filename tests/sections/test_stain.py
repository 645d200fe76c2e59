"""Slides in the colours of others: as squidpy normalises them, in training and in every prediction."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

import st_predict as stp
from st_predict._errors import InvalidValueError
from st_predict._sections import open_sdata
from st_predict._stain import Stain, StainMap
from st_predict._where import Where
from st_predict.io import SpatialDataPyramid, open_pyramid
from st_predict.specs import ModelCard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its libraries
    from squidpy.experimental import im

METHODS = ("macenko", "reinhard")


@pytest.fixture(scope="module")
def patients():
    """Two patients, who differ in stain."""
    simulated = stp.datasets.simulate(2, 1, shape=(688, 688), mpp=1.0, n_genes=20)
    return list(simulated.sections.values())


def pixels_of(sdata):
    reader = open_pyramid(sdata)
    height, width = reader.level_shapes[0]
    return reader.read(0, 0, width, height, level=0)


@pytest.mark.parametrize("method", METHODS)
def test_pixels_are_those_of_squidpy(patients, method):
    slides = []
    for sdata in patients:
        pixels, tissue = pixels_of(sdata), stp.pp.find_tissue(sdata)
        image = Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"))
        mask = Labels2DModel.parse(tissue.mask.astype(np.uint8), dims=("y", "x"))
        slides.append((SpatialData(images={"he": image}, labels={"he_tissue": mask}), pixels))
    (target, _), (source, pixels) = slides
    reference = im.fit_stain_reference(target, "he", method=method)
    theirs = im.normalize_stains(source, "he", reference, inplace=False, preserve_background=False)
    expected = theirs.transpose("y", "x", "c").to_numpy()
    fitted = [stp.pp.fit_stain(sdata, method) for sdata in patients]
    found = StainMap.between(fitted[1], fitted[0])(pixels)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found != pixels) > 0.3  # something happens
    if method == "macenko":
        assert (found[(pixels == 255).all(axis=-1)] == 255).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_in_its_own_colours_is_the_same(patients, method):
    own = stp.pp.fit_stain(patients[0], method)
    pixels = pixels_of(patients[0])
    assert np.abs(StainMap.between(own, own)(pixels).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_stain_is_that_of_the_other_slide_afterwards(patients, method):
    target, source = (stp.pp.fit_stain(sdata, method) for sdata in patients)
    slide = open_sdata(patients[1], Where(stain=target))
    reader = slide.sections[0].reader
    height, width = reader.level_shapes[0]
    image = Image2DModel.parse(reader.read(0, 0, width, height, level=0).transpose(2, 0, 1), dims=("c", "y", "x"))
    after = stp.pp.fit_stain(SpatialData(images={"he": image}), method)

    def away(stain):
        names = ("matrix",) if method == "macenko" else ("mean", "sd")
        return sum(np.abs(np.array(getattr(stain, n)) - np.array(getattr(target, n))).sum() for n in names)

    assert away(after) < 0.25 * away(source)
    assert slide.describe()[0]["stain"] == source.to_dict()
    assert "stain" not in open_sdata(patients[1], Where()).describe()[0]


@pytest.mark.parametrize(("model", "method"), [("m2ost", "reinhard"), ("ridge", "macenko")])
def test_training_and_prediction_see_the_same_colours(patients, tmp_path, model, method, monkeypatch):
    spec = stp.models.get_spec(model)
    settings = {"hparams": spec.tiny, "mpp": 1.0} if model == "m2ost" else {"hparams": {"encoder": "rgb"}}
    config = {"epochs": 1} if model == "m2ost" else None
    panel = list(patients[0]["table"].var_names)[:5]
    trained = stp.tl.train(
        [patients[0]], model, panel=panel, out=tmp_path / "a", stain=method, config=config, **settings
    )
    note = ModelCard.of_file(trained.checkpoint).training["stain"]
    target = stp.pp.fit_stain(patients[0], method)
    assert json.loads(json.dumps(note)) == json.loads(json.dumps(Stain.average([target]).to_dict()))
    before = pixels_of(patients[1]).copy()
    stp.tl.predict(patients[1], trained, key_added="by_card")
    stp.tl.predict(patients[1], trained, key_added="as_it_is", stain=False)
    stp.tl.predict(patients[1], trained, key_added="named", stain=target)
    table = patients[1]["table"]
    assert not np.allclose(table.obsm["by_card"], table.obsm["as_it_is"], equal_nan=True)
    np.testing.assert_allclose(table.obsm["by_card"], table.obsm["named"], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(pixels_of(patients[1]), before)
    (section,) = json.loads(table.uns["st_predict"]["by_card"]["params"])["sections"]
    assert section["stain"]["method"] == method
    (section,) = json.loads(table.uns["st_predict"]["as_it_is"]["params"])["sections"]
    assert "stain" not in section

    # the same as an image that squidpy normalised
    reader = open_sdata(patients[1], Where(stain=target)).sections[0].reader
    height, width = reader.level_shapes[0]
    pixels = np.asarray(reader.read(0, 0, width, height, level=0)).transpose(2, 0, 1)
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=[2, 2, 2])
    image.attrs.update(patients[1].images["he"].attrs)
    normalised = SpatialData(
        images={"he": image}, shapes={"spots": patients[1].shapes["spots"]}, tables={"table": table.copy()}
    )
    stp.tl.predict(normalised, trained, key_added="checked", stain=False, mpp=1.0)
    known = ~np.isnan(table.obsm["by_card"]).any(axis=1)
    # levels are halved before colours are mapped here, and afterwards there
    near = np.corrcoef(normalised["table"].obsm["checked"][known].ravel(), table.obsm["by_card"][known].ravel())[0, 1]
    assert near > 0.99


def test_degenerate_slides_are_refused():
    rng = np.random.default_rng(0)
    grey = np.full((600, 600, 3), 250, np.uint8)
    empty = SpatialData(images={"he": Image2DModel.parse(grey.transpose(2, 0, 1), dims=("c", "y", "x"))})
    with pytest.raises(InvalidValueError, match=r"stain of image 'he' cannot be measured: \d+ pixels"):
        stp.pp.fit_stain(empty)
    one = grey.copy()  # a single stain, far from haematoxylin and eosin
    one[100:500, 100:500] = (rng.uniform(0.3, 0.9, (400, 400, 1)) * np.array([40, 250, 60])).astype(np.uint8)
    green = SpatialData(images={"he": Image2DModel.parse(one.transpose(2, 0, 1), dims=("c", "y", "x"))})
    with pytest.raises(InvalidValueError, match=r"The stain of image 'he' cannot be measured by 'macenko'"):
        stp.pp.fit_stain(green, "macenko")
    with pytest.raises(ValueError, match="method"):
        stp.pp.fit_stain(green, "vahadane")
    with pytest.raises(InvalidValueError, match="A stain by 'reinhard' needs mean and sd"):
        Stain(method="reinhard", mean=(1.0, 1.0, 1.0))
    with pytest.raises(InvalidValueError, match="sd must be positive"):
        Stain(method="reinhard", mean=(1.0, 1.0, 1.0), sd=(0.0, 1.0, 1.0))


def test_members_of_an_ensemble_see_the_same_colours(patients, tmp_path):
    panel = list(patients[0]["table"].var_names)[:5]
    settings = {"panel": panel, "hparams": {"encoder": "rgb"}}
    with_stain = stp.tl.train([patients[0]], "ridge", out=tmp_path / "a", stain="macenko", **settings)
    without = stp.tl.train([patients[0]], "ridge", out=tmp_path / "b", **settings)
    with pytest.raises(InvalidValueError, match=r"different reference stains. Name one for all with stain="):
        stp.tl.predict(patients[1], [with_stain, without])
    stp.tl.predict(patients[1], [with_stain, without], stain=False, key_added="both")
    assert "both" in patients[1]["table"].obsm


def test_a_stain_is_measured_in_few_reads(patients, monkeypatch):
    read, calls = SpatialDataPyramid.read, []

    def counted(self, *place, **level):
        calls.append(place)
        return read(self, *place, **level)

    monkeypatch.setattr(SpatialDataPyramid, "read", counted)
    stp.pp.fit_stain(patients[0], "reinhard")
    assert len(calls) <= 4  # once to find tissue, once for its colours
