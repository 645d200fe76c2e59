"""Slides that look unlike those of training: predicted, with a warning that has numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale

from st_predict import datasets, tl
from st_predict._sections._familiar import warn_of_unfamiliar
from st_predict._sections._section import open_sdata
from st_predict._training import describe_pixels
from st_predict._where import Where
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

MPP = 1.2
MLP = {"encoder": "rgb", "neighbours": 6, "hidden": 8}
WARNED = "differs from the sections that"


@pytest.fixture(scope="module")
def sections() -> dict[str, SpatialData]:
    return datasets.simulate(2, 1, n_genes=15, shape=(752, 752), mpp=MPP, seed=3).sections


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def train(sdata: SpatialData, out: Path, **options: Any) -> Any:
    return tl.train(sdata, options.pop("model", "ridge"), panel=genes(sdata), out=out, **options)


@pytest.fixture(scope="module")
def trained(sections: dict[str, SpatialData], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ridge on features, trained on the section of the first patient."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ST_PREDICT_CACHE", str(home / "cache"))
        return train(sections["P1S1"], home / "m")


def genes(sdata: SpatialData) -> list[str]:
    return sdata["table"].var_names[:13].tolist()


def changed(sdata: SpatialData, change: Any, *, mpp: float = MPP) -> SpatialData:
    """The section with other pixels, or other places of spots."""
    pixels = sdata["he"]["scale0"]["image"].data.compute()
    image = Image2DModel.parse(
        da.from_array(change(pixels)),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"global": Identity(), "um": Scale([mpp, mpp], axes=("x", "y"))},
    )
    copy = type(sdata)(images={"he": image}, shapes=dict(sdata.shapes))
    copy.tables["table"] = sdata["table"].copy()
    return copy


def test_the_card_has_colours_stain_pixels_and_distances(sections: dict[str, SpatialData], trained: Any) -> None:
    card = trained.card
    (section,) = card.training["sections"]
    xy = sections["P1S1"]["table"].obsm["spatial"] * MPP
    far = np.sqrt(np.square(xy[:, None] - xy).sum(-1)) + 1e9 * np.eye(len(xy))
    assert section["spot_distance_um"] == pytest.approx(np.median(far.min(axis=1)), abs=0.01)
    assert section["mpp"] == MPP
    assert card.training["colours"].keys() == {"mean", "sd", "stain", "n_crops", "mpp"}


def test_the_amount_of_a_stain_is_what_was_mixed() -> None:
    """Pixels of known optical density: 0.6 of haematoxylin and 0.3 of eosin."""
    density = 0.6 * np.array([0.65, 0.70, 0.29]) + 0.3 * np.array([0.07, 0.99, 0.11])
    colour = np.rint(256 * np.exp(-density) - 1).astype(np.uint8)
    crop = np.broadcast_to(colour[None, :, None, None], (2, 3, 4, 4))
    measured = describe_pixels((crop, crop))
    np.testing.assert_allclose(measured["stain"], [0.6, 0.3], atol=0.02)
    np.testing.assert_allclose(measured["mean"], colour / 255)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x, None),
        (lambda x: x[:, ::-1, ::-1].copy(), None),
        (lambda x: 255 - x, "its mean colour"),
        (lambda x: x[[2, 0, 1]], "its mean colour"),
        (
            lambda x: (235 - 0.2 * (235 - x.astype(float))).clip(0, 255).astype(np.uint8),
            "the standard deviation of its colours",
        ),
        (lambda x: (x.astype(float) * 0.45).astype(np.uint8), "its optical density of haematoxylin and eosin"),
    ],
)
@pytest.mark.usefixtures("home")
def test_colours_are_compared(
    sections: dict[str, SpatialData], trained: Any, caplog: pytest.LogCaptureFixture, change: Any, words: str | None
) -> None:
    tl.predict(changed(sections["P1S1"], change), trained)
    assert (WARNED in caplog.text) == (words is not None)
    assert words is None or words in caplog.text
    assert np.isfinite(sections["P1S1"]["table"].X.toarray()).all()


def test_distances_are_compared_where_neighbours_are_read(
    sections: dict[str, SpatialData], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sdata = sections["P1S1"]
    dense = type(sdata)(images=dict(sdata.images), shapes=dict(sdata.shapes))
    near = sdata["table"].obsm["spatial"]
    dense.tables["table"] = sdata["table"].copy()
    shapes = sdata["spots"].copy()
    centre = near.mean(axis=0)
    shapes["geometry"] = shapes.geometry.affine_transform([0.5, 0, 0, 0.5, *(centre / 2)])
    dense.shapes["spots"] = shapes
    dense["spots"].attrs = sdata["spots"].attrs
    config = {"epochs": 1, "device": "cpu", "precision": "float32"}
    one = train(sdata, home / "n", model="mlp", hparams=MLP, config=config)
    other = train(sdata, home / "o", model="mlp", hparams={**MLP, "neighbours": 0}, config=config)
    for model, differs in ((one, True), (other, False)):
        caplog.clear()
        tl.predict(dense, model)
        assert ("um apart, not" in caplog.text) == differs
        caplog.clear()
        tl.predict(sdata, model)
        assert WARNED not in caplog.text


def test_pixels_are_compared_where_they_are_read_as_they_are(
    sections: dict[str, SpatialData], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"epochs": 1, "batch_size": 32, "device": "cpu", "precision": "float32"}
    hparams = {"dim": 16, "depth": 1, "head_dim": 8, "size": 32, "heads": 2, "mlp_dim": 16}
    model = train(sections["P1S1"], home / "m", model="m2ost", hparams=hparams, config=config, preset="paper")
    assert model.card.crop.mpp is None
    caplog.clear()
    tl.predict(sections["P1S1"], model)
    assert WARNED not in caplog.text
    tl.predict(sections["P1S1"], model, mpp=0.6)
    assert "its pixels are 0.6 um wide, not 1.2 um, and are not resampled" in caplog.text


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"colours": None, "sections": "C2"},
        {"colours": {"mean": "red", "sd": [1, 2]}, "sections": [3, {"mpp": "x", "spot_distance_um": True}]},
        {"colours": {"mean": [0.5, float("nan"), 0.5], "sd": [0.1, 0.1, 0.1]}},
        {"colours": {"mean": [0.5, 0.5, 0.5], "sd": [0, 0, 0]}},
        {"colours": [1, 2, 3]},
    ],
)
def test_cards_without_these_notes_or_with_odd_ones_are_passed_over(
    sections: dict[str, SpatialData], trained: Any, caplog: pytest.LogCaptureFixture, training: dict
) -> None:
    text = json.loads(trained.card.to_json())
    text["training"] = training
    (section,) = open_sdata(sections["P2S1"], Where()).sections
    warn_of_unfamiliar(section, ModelCard.from_json(json.dumps(text)))
    assert caplog.text == ""
