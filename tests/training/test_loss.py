"""Objectives that weigh genes alike, against numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from st_predict._training import TrainConfig
from st_predict._training._loss import correlation, objective
from st_predict.crops import Batch
from st_predict.models import SpotModel
from st_predict.tl import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

RNG = np.random.default_rng(0)
TARGET = (RNG.normal(size=(40, 6)) * [1, 10, 100, 1, 1, 0]).astype(np.float32)
PREDICTED = RNG.normal(size=(12, 6)).astype(np.float32)


class Fixed(SpotModel):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.from_numpy(PREDICTED.copy()))

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.out


class Own(Fixed):
    def loss(self, batch: Batch) -> torch.Tensor:
        return self(batch).sum()


BATCH = Batch(crops=(), index=torch.arange(12), target=torch.from_numpy(TARGET[:12]))


def found(name: str, network: SpotModel) -> torch.Tensor:
    return objective(TrainConfig(loss=name), TARGET)(network, BATCH)


def test_standardized_errors_are_relative_to_the_spread_of_training() -> None:
    scale = np.where(TARGET.std(0) > 0, TARGET.std(0), 1)
    expected = np.mean(((PREDICTED - TARGET[:12]) / scale) ** 2)
    assert found("standardized", Fixed()).item() == pytest.approx(expected, rel=1e-5)


def test_correlation_is_that_of_numpy() -> None:
    each = [np.corrcoef(PREDICTED[:, g], TARGET[:12, g])[0, 1] for g in range(5)]  # the sixth gene is constant
    assert correlation(torch.from_numpy(PREDICTED), BATCH.target).item() == pytest.approx(sum(each) / 6, abs=1e-5)
    difference = found("correlation", Fixed()) - found("standardized", Fixed())
    assert difference.item() == pytest.approx(1 - sum(each) / 6, abs=1e-4)
    network = Fixed()
    found("correlation", network).backward()
    assert network.out.grad.isfinite().all()


def test_the_objective_of_the_model_is_the_default() -> None:
    assert found("model", Own()).item() == pytest.approx(PREDICTED.sum(), rel=1e-5)


def test_it_is_what_training_minimises(measured: SpatialData, tmp_path: Path, quick: Callable[..., Any]) -> None:
    options = {"panel": list("abcd"), "preset": "paper", "hparams": {"size": 32, "dim": 24, "depth": 1}}
    losses = {
        name: train(measured, "m2ost", out=tmp_path / name, config=quick(epochs=1, loss=name), **options).history
        for name in ("model", "standardized")
    }
    first, second = (history["train_loss"].iloc[0] for history in losses.values())
    assert second != pytest.approx(first, rel=0.05)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("bleep", {"loss": "correlation"}, "'bleep' has its own objective.*Leave out 'loss' in config="),
        ("mean", {"loss": "standardized"}, "'mean' has its own objective"),
        ("mean", {"average": 0.9}, "'mean' is trained in closed form.*Leave out 'average' in config="),
        ("mean", {"measure_pixels": True}, "'mean' reads nothing, so pixels.*Leave out 'measure_pixels' in config="),
        (
            "mean",
            {"stain_jitter": 0.1},
            "'mean' reads nothing, and stain jitter needs crops.*Leave out 'stain_jitter' in config=",
        ),
    ],
)
def test_settings_without_effect_are_refused_before_any_work(
    measured: SpatialData, tmp_path: Path, quick: Callable[..., Any], model: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(measured, model, panel=list("abcd"), out=tmp_path / "out", preset="paper", config=quick(**config))
    assert not (tmp_path / "out").exists()


def test_stain_jitter_changes_what_is_learned(measured: SpatialData, tmp_path: Path, quick: Callable[..., Any]) -> None:
    options = {"panel": list("abcd"), "preset": "paper", "hparams": {"size": 32, "dim": 24, "depth": 1}}
    losses = [
        train(measured, "m2ost", out=tmp_path / str(s), config=quick(stain_jitter=s), **options).history["train_loss"]
        for s in (0.0, 0.3)
    ]
    assert not np.allclose(*losses)


def test_colours_are_not_measured_for_frozen_layers(
    measured: SpatialData, tmp_path: Path, quick: Callable[..., Any]
) -> None:
    options = {"out": tmp_path / "out", "panel": list("abcd"), "preset": "paper", "config": quick(measure_pixels=True)}
    hparams = {"tokens": "efficientnet_lite0", "size": 64, "dim": 24, "depth": 1}
    with pytest.raises(ValueError, match=r"'m2ost' has frozen layers.*Leave out 'measure_pixels' in config="):
        train(measured, "m2ost", hparams=hparams, **options)
    assert not (tmp_path / "out").exists()


def test_a_gene_that_is_constant_does_not_swamp_the_others() -> None:
    target = np.full((2000, 1), 0.1, np.float32)  # its standard deviation is 1e-6 in float32, by rounding
    batch = Batch(crops=(), index=torch.arange(12), target=torch.from_numpy(target[:12]))
    network = Fixed()
    network.out = nn.Parameter(torch.full((12, 1), 0.2))
    loss = objective(TrainConfig(loss="standardized"), target)(network, batch)
    assert loss.item() == pytest.approx(0.01, rel=1e-4)
