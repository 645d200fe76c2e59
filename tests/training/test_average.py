"""Averages of weights, against a recursion in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict._training._fit import Adapter, update_average
from st_predict.models import get_spec
from st_predict.tl import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

    Config = Callable[..., TrainConfig]
    Make = Callable[..., SpatialData]

GENES = ("a", "b", "c", "d")


class Stop(Exception):  # noqa: N818  # not an error of ours
    """Something breaks."""


@pytest.fixture
def train(measured: SpatialData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., stp.tl.TrainResult]:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    set_transformation(measured["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")

    def run(model: str, config: TrainConfig, out: str = "out", **options: Any) -> stp.tl.TrainResult:
        known = {"panel": GENES, "preset": "paper", "hparams": dict(get_spec(model).tiny)}
        return stp.tl.train(measured, model, out=tmp_path / out, config=config, **{**known, **options})

    return run


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """Weights of the optimiser before the first step and after each."""
    seen: list[dict[str, np.ndarray]] = []

    def record(adapter: Adapter) -> None:
        seen.append({name: p.detach().double().numpy().copy() for name, p in adapter.network.named_parameters()})

    start, update = Adapter.on_train_start, Adapter.on_train_batch_end
    monkeypatch.setattr(Adapter, "on_train_start", lambda self: (record(self), start(self))[1])
    monkeypatch.setattr(Adapter, "on_train_batch_end", lambda self, *a: (record(self), update(self, *a))[1])
    return seen


def test_kept_weights_are_the_average_of_all_steps(
    train: Callable[..., stp.tl.TrainResult], quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = recorded(monkeypatch)
    result = train("mlp", quick(epochs=5, batch_size=4, lr=1e-2, average=0.3))
    assert len(seen) == 1 + 5 * 3
    expected = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, then 0.3
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in expected}
    kept = load_file(result.checkpoint)
    for name, values in expected.items():
        np.testing.assert_allclose(kept[name], values, rtol=1e-4, atol=1e-6)
    assert not np.allclose(kept["head.weight"], seen[-1]["head.weight"], atol=1e-3)


def test_the_average_does_not_change_the_training(
    train: Callable[..., stp.tl.TrainResult], quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plain = recorded(patch)
        result = train("mlp", quick(epochs=3), "plain")
    averaged = recorded(monkeypatch)
    train("mlp", quick(epochs=3, average=0.9), "averaged")
    for one, other in zip(plain, averaged, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    kept = load_file(result.checkpoint)
    assert all(np.array_equal(kept[name], values.astype(np.float32)) for name, values in plain[-1].items())


def test_validated_weights_are_the_average(
    train: Callable[..., stp.tl.TrainResult], other: Make, quick: Config
) -> None:
    held_out = other("P2")
    config = quick(epochs=6, lr=3e-2, average=0.8)
    result = train("mlp", config, validation=[held_out])
    stp.tl.predict(held_out, result.checkpoint, precision="float32")
    predicted = stp.get.frame(held_out)
    counts = np.asarray(held_out.tables["table"].X, float)
    target = np.log1p(1e6 * counts / counts.sum(axis=1, keepdims=True))
    expected = np.mean([pearsonr(predicted[gene], target[:, i]).statistic for i, gene in enumerate(GENES)])
    assert expected == pytest.approx(result.history["val_pearson"].max(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "m2ost", "bleep", "stnet"])  # buffers: features, none, a bank, running means
def test_resumed_is_as_uninterrupted(
    train: Callable[..., stp.tl.TrainResult],
    other: Make,
    quick: Config,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, options = quick(epochs=4, lr=1e-2, average=0.7), {"validation": [other("P2")]}
    whole = train(model, config, "whole", **options)
    step = Adapter.training_step

    def stopping(self: Adapter, *args: Any) -> Any:
        if self.current_epoch == 2:
            raise Stop
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "training_step", stopping)
        with pytest.raises(Stop):
            train(model, config, **options)
    resumed = train(model, config, resume=True, **options)
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    one, same = load_file(resumed.checkpoint), load_file(whole.checkpoint)
    assert one.keys() == same.keys()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert resumed.card == whole.card


class Norm(torch.nn.Module):
    """A batch norm, an index, and a bank that one side has filled."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("index", torch.arange(100))
        self.register_buffer("bank", torch.full((n, 2), float(n)))


def test_running_means_are_averaged_and_indices_stay() -> None:
    average, network = Norm(3), Norm(0)
    network.norm.running_mean.fill_(4.0)
    network.norm.weight.data.fill_(3.0)
    update_average(average, network, decay=0.9)
    np.testing.assert_allclose(average.norm.running_mean, [0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(average.norm.weight.detach(), [1.2, 1.2], rtol=1e-6)
    assert torch.equal(average.index, torch.arange(100))  # a tenth of an index is no index
    assert torch.equal(average.bank, torch.full((3, 2), 3.0))


def test_no_average_by_default() -> None:
    network = torch.nn.Linear(2, 2)
    assert TrainConfig().average == 0
    assert Adapter(network, TrainConfig()).kept is network
    assert Adapter(network, TrainConfig(average=0.9)).kept is not network
