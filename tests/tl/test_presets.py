"""Presets: one setting for all models, and each model's own."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict import checkpoints
from st_predict._training._config import configure, get_preset
from st_predict._training._fit import Adapter
from st_predict.models import Preset, get_spec
from st_predict.specs import TargetSpec
from st_predict.tl import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

GENES = ("a", "b", "c", "d")
QUICK = {"epochs": 1, "batch_size": 6, "device": "cpu", "precision": "float32"}


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """Give a tiny M2OST a setting of its own."""
    preset = Preset(
        training={"optimizer": "sgd", "momentum": 0.9, "lr": 1e-3, "measure_pixels": True},
        hparams=get_spec("m2ost").tiny,
        target=TargetSpec(transform="log_proportion", over="all"),
        panel="mean",
    )
    monkeypatch.setattr("st_predict.tl._train.get_preset", lambda spec, name: preset)
    return preset


def test_the_paper_trains_all_alike() -> None:
    for name in stp.models.list_models():
        spec = get_spec(name)
        assert configure(get_preset(spec, "paper"), None) == TrainConfig()
        assert spec.target == TargetSpec()


def test_what_is_recommended_is_the_target_and_panel_of_all_with_additions_of_a_model() -> None:
    common = Preset(target=TargetSpec(transform="pearson_residuals"), panel="spatial", min_counts=None)
    for name in stp.models.list_models():
        preset = get_preset(get_spec(name), "recommended")
        assert replace(preset, training={}, hparams={}) == common
    assert get_preset(get_spec("ridge"), "recommended").hparams == {"rank": 8}
    assert get_preset(get_spec("m2ort"), "recommended") == common
    assert get_preset(get_spec("m2ost"), "recommended").training == {"loss": "standardized"}


@pytest.mark.parametrize(("preset", "rank"), [("recommended", 1), ("paper", None), ("original", None)])
def test_ridge_has_the_rank_of_its_preset(
    measured: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, rank: int | None
) -> None:
    spec = get_spec("ridge")
    assert spec.recommended.hparams == {"rank": 8}
    lower = replace(spec, recommended=replace(spec.recommended, hparams={"rank": 1}))  # there are four genes
    monkeypatch.setattr("st_predict.tl._train.get_spec", lambda name: lower)
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
    set_transformation(measured["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")
    result = stp.tl.train(measured, "ridge", panel=GENES, out=tmp_path / "out", preset=preset, min_counts=0)
    network, card = checkpoints.load(result.checkpoint)
    assert card.hparams.get("rank") == rank
    assert np.linalg.matrix_rank(network.weight_DG.numpy(), rtol=1e-4) == (rank or 4)


def test_config_changes_fields_of_the_preset() -> None:
    preset = Preset(training={"lr": 0.5, "epochs": 7})
    assert configure(preset, None) == TrainConfig(lr=0.5, epochs=7)
    assert configure(preset, {"epochs": 3}) == TrainConfig(lr=0.5, epochs=3)
    assert configure(preset, TrainConfig(seed=4)) == TrainConfig(seed=4)


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"config is invalid\. TrainConfig has no fields \['epoch'\]; there are \['epochs'"
    ):
        configure(Preset(), {"epoch": 3})


def test_a_preset_that_does_not_exist_is_refused(measured: SpatialData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset must be one of \['recommended', 'paper', 'original'\], got 'mine'"):
        stp.tl.train(measured, panel=GENES, out=tmp_path / "out", preset="mine")
    assert not (tmp_path / "out").exists()


def test_original_sets_target_panel_pixels_and_optimiser(
    measured: SpatialData, original: Preset, tmp_path: Path
) -> None:
    measured.tables["table"].X[:, 2] += 50
    result = stp.tl.train(measured, panel=2, out=tmp_path / "out", preset="original", config=QUICK)
    _, card = checkpoints.load(result.checkpoint)
    counts = np.asarray(measured.tables["table"].X)
    assert card.genes == tuple(np.array(GENES)[np.argsort(-counts.mean(0))][:2])
    assert card.target == original.target
    assert card.hparams == {**get_spec("m2ost").hparams, **get_spec("m2ost").tiny}
    assert card.training["preset"] == "original"
    used = card.training["config"]
    assert used == {**asdict(TrainConfig()), **original.training, **QUICK}


def test_pixels_are_measured_on_the_crops(measured: SpatialData, original: Preset, tmp_path: Path) -> None:
    result = stp.tl.train(measured, panel=2, out=tmp_path / "out", preset="original", config=QUICK)
    network, card = checkpoints.load(result.checkpoint)
    seen = []
    hook = torch.nn.Module.__call__
    assert network.pixel_spec == card.pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(network), "__call__", lambda self, batch: seen.append(batch) or hook(self, batch))
        stp.tl.predict(measured, result.checkpoint, device="cpu")
    pixels = [torch.cat([b.crops[level] for b in seen]).double() / 255 for level in range(3)]
    flat = torch.cat([p.permute(1, 0, 2, 3).flatten(1) for p in pixels], dim=1)
    np.testing.assert_allclose(card.pixels.mean, flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(card.pixels.std, flat.std(1, correction=0).clamp_min(1 / 255), rtol=1e-5)


@pytest.mark.parametrize("model", ["bleep", "deepspace"])
def test_original_trains_without_validation(measured: SpatialData, tmp_path: Path, model: str) -> None:
    untrained = {"bleep": {"weights": None}, "deepspace": {"weights": None, "field": None}}
    hparams = {**get_spec(model).tiny, **untrained[model]}
    result = stp.tl.train(
        measured, model, panel=GENES, out=tmp_path / "out", preset="original", hparams=hparams, config=QUICK
    )
    assert result.card.training["config"]["monitor"] == "loss"
    assert result.card.training["kept"] == "last epoch"


def test_momentum(measured: SpatialData) -> None:
    adapter = Adapter(torch.nn.Linear(2, 2), TrainConfig(optimizer="sgd", momentum=0.9, lr=0.5, weight_decay=0.1))
    optimizer = adapter.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.SGD
    assert [optimizer.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [0.5, 0.9, 0.1]


def test_frozen_weights_are_not_optimised() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    network[0].requires_grad_(requires_grad=False)
    optimizer = Adapter(network, TrainConfig()).configure_optimizers()["optimizer"]
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [(3, 2), (3,)]


@pytest.fixture
def minmax(monkeypatch: pytest.MonkeyPatch) -> TargetSpec:
    target = TargetSpec(transform="log1p_total", total=1e4, over="all", scale="minmax")
    preset = Preset(hparams=get_spec("m2ost").tiny, target=target)
    monkeypatch.setattr("st_predict.tl._train.get_preset", lambda spec, name: preset)
    return target


def test_limits_come_from_the_training_spots_alone(
    measured: SpatialData, other: Callable[..., SpatialData], minmax: TargetSpec, tmp_path: Path
) -> None:
    wide = other("P2")
    wide.tables["table"].X[0] = [900, 1, 1, 0]
    result = stp.tl.train(measured, panel=GENES, out=tmp_path / "out", validation=[wide], config=QUICK)
    _, card = checkpoints.load(result.checkpoint)
    counts = np.asarray(measured.tables["table"].X, dtype=float)
    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    assert card.target.limits is not None
    np.testing.assert_allclose(card.target.limits, [values.min(0), values.max(0)], rtol=1e-6)
    trained = stp.pp.make_target(measured.tables["table"], GENES, card.target).values
    np.testing.assert_allclose([trained.min(0), trained.max(0)], [[0] * 4, [1] * 4], atol=1e-6)
    assert stp.pp.make_target(wide.tables["table"], GENES, card.target).values.max() > 1


def test_the_mean_is_the_mean(measured: SpatialData, other: Callable[..., SpatialData], tmp_path: Path) -> None:
    held_out = other("P2")
    result = stp.tl.train(
        measured, "mean", panel=GENES, out=tmp_path / "out", validation=[held_out], config=QUICK, preset="paper"
    )
    stp.tl.predict(held_out, result.checkpoint)
    expected = stp.pp.make_target(measured.tables["table"], GENES, TargetSpec()).values.mean(0)
    predicted = held_out.tables["table"].obsm["pred_mean"]
    np.testing.assert_allclose(predicted, np.tile(expected, (12, 1)), rtol=1e-6)
    assert result.history["val_pearson"].tolist() == [-1]
    with pytest.raises(FileExistsError, match="already holds a training: name another folder"):
        stp.tl.train(measured, "mean", panel=GENES, out=tmp_path / "out")
    target = stp.pp.make_target(held_out.tables["table"], GENES, TargetSpec()).values
    assert result.history["val_mse"][0] == pytest.approx(((expected - target) ** 2).mean(), rel=1e-5)


def test_a_given_target_replaces_that_of_the_preset(measured: SpatialData, tmp_path: Path) -> None:
    given = TargetSpec(transform="log1p")
    result = stp.tl.train(measured, "mean", panel=GENES, min_counts=0, target=given, out=tmp_path / "run")
    assert result.card.target == given
    assert result.card.training["preset"] == "recommended"
    residuals = TargetSpec(transform="pearson_residuals", theta=10.0)
    fitted = stp.tl.train(measured, "mean", panel=GENES, preset="paper", target=residuals, out=tmp_path / "other")
    assert fitted.card.target.is_complete
    assert fitted.card.target.theta == 10
    mapped = stp.tl.train(
        measured, "mean", panel=GENES, min_counts=0, target={"transform": "log1p"}, out=tmp_path / "third"
    )
    assert mapped.card.target == given
    with pytest.raises(ValueError, match=r"target must be a dictionary or an instance of TargetSpec, got 'log1p'"):
        stp.tl.train(measured, "mean", panel=GENES, target="log1p", out=tmp_path / "fourth")
