"""A perceptron on embeddings, worked out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf
from sklearn.preprocessing import StandardScaler

from st_predict.crops import Batch
from st_predict.models import get_spec
from st_predict.models.mlp import MLP

N, D, G = 30, 5, 4


@pytest.fixture
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) * 10.0 ** np.arange(-2, 3) + [0, 1000, -3, 0, 1]
    x[:, 3] = 7.5  # a feature that does not vary
    return x.astype(np.float32)


@pytest.fixture
def network() -> MLP:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return MLP(G, encoder="mine", n_features=D, hidden=6, depth=2, drop=0.5).eval()


def batches(x: np.ndarray, size: int = 7) -> list[Batch]:
    rows = [np.arange(start, min(start + size, len(x))) for start in range(0, len(x), size)]
    return [Batch(crops=(), index=torch.from_numpy(part), features=torch.from_numpy(x[part])) for part in rows]


def test_the_prediction_is_that_of_numpy(network, x):
    network.fit_inputs(batches(x))
    values = StandardScaler().fit_transform(x.astype(np.float64))
    for layer in network.layers:
        values = values @ layer[0].weight.detach().double().numpy().T + layer[0].bias.detach().double().numpy()
        values = values * (1 + erf(values / np.sqrt(2))) / 2
    expected = values @ network.head.weight.detach().double().numpy().T + network.head.bias.detach().double().numpy()
    np.testing.assert_allclose(network(batches(x, N)[0]).detach(), expected, rtol=1e-3, atol=1e-4)


def test_units_of_the_features_make_no_difference(network, x):
    network.fit_inputs(batches(x))
    expected = network(batches(x, N)[0])
    other = (3.0 * x.astype(np.float64) - [5, 0, 1, 2, 0]).astype(np.float32)
    assert not torch.allclose(network(batches(other, N)[0]), expected, atol=1e-2)
    network.fit_inputs(batches(other))
    torch.testing.assert_close(network(batches(other, N)[0]), expected, rtol=1e-3, atol=1e-3)


def test_statistics_are_part_of_the_weights(network, x):
    network.fit_inputs(batches(x))
    again = MLP(G, encoder="mine", n_features=D, hidden=6, depth=2)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(batches(x, N)[0]), network(batches(x, N)[0]))


def test_starts_at_the_mean(network, x):
    network.start_at(torch.arange(4.0))
    assert torch.equal(network.head.bias.detach(), torch.arange(4.0))


def test_parameters_of_the_default_size():
    spec = get_spec("mlp")
    n_params = sum(p.numel() for p in spec.build(250, **spec.hparams).parameters())
    assert n_params == 144 * 256 + 256 + 256 * 250 + 250


def test_other_features_are_refused(network, x):
    with pytest.raises(ValueError, match=r"reads 5 features of 'mine', the batch has \(4,\)"):
        network(batches(x[:, 1:], N)[0])


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"drop": 1.0}, "drop must be below 1"),
    ],
)
def test_unfit_hyper_parameters(hparams, message):
    with pytest.raises(ValueError, match=message):
        get_spec("mlp").build_with(G, hparams)
    if "drop" not in hparams:
        with pytest.raises(ValueError, match="depth and hidden must be at least 1"):
            MLP(G, **hparams)
