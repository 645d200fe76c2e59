"""iStar against a plain writing of its formula, and against single fits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from st_predict.crops import Batch
from st_predict.models import get_spec
from st_predict.models.istar import SPEC, IStar, convert

N_GENES = 4


@pytest.fixture
def network() -> IStar:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = IStar(N_GENES, n_fits=3, hidden=16)
        for parameter in network.parameters():  # so that outputs are on both sides of 0
            parameter.data.mul_(2)
    return network.eval()


@pytest.fixture
def batch(network) -> Batch:
    """Three spots with 5, 2 and 1 cells."""
    x = np.random.default_rng(0).normal(size=(3, 5, network.n_features)).astype(np.float32)
    x[1, 2:], x[2, 1:] = np.nan, np.nan
    target = torch.from_numpy(np.random.default_rng(1).gamma(2, 1, (3, N_GENES)).astype(np.float32))
    return Batch(crops=(), index=torch.arange(3), features=torch.from_numpy(x), target=target)


def one_fit(network: IStar, fit: int, x: np.ndarray) -> np.ndarray:
    """A cell, in plain numpy: ``(n_features,)`` to ``(n_genes,)``."""
    for layer in network.layers:
        x = x @ layer.weight[fit].detach().numpy() + layer.bias[fit, 0].detach().numpy()
        x = np.where(x > 0, x, 0.1 * x)
    x = x @ network.head.weight[fit].detach().numpy() + network.head.bias[fit, 0].detach().numpy()
    return np.where(x > 0, x + 0.01, 0.01 * np.exp(np.minimum(x, 0)))


def of_cells(network: IStar, batch: Batch) -> list[np.ndarray]:
    """``(n_fits, n_cells, n_genes)`` for each spot."""
    cells = [x[~np.isnan(x[:, 0])] for x in batch.features.numpy().astype(np.float64)]
    return [np.array([[one_fit(network, fit, x) for x in of_spot] for fit in range(3)]) for of_spot in cells]


@torch.no_grad()
def test_a_spot_is_the_mean_over_cells_of_the_median_over_fits(network, batch):
    fits = of_cells(network, batch)
    assert min(f.min() for f in fits) < 0.01 < max(f.max() for f in fits)  # both sides of the bend are seen
    expected = [np.median(f, axis=0).mean(axis=0) for f in fits]
    np.testing.assert_allclose(network(batch), expected, rtol=1e-5)


@torch.no_grad()
def test_an_even_number_of_fits_has_a_median_between_two(network, batch):
    even = IStar(N_GENES, n_fits=4, hidden=16)
    y_EBKG, _ = even.cells(batch)
    np.testing.assert_allclose(even(batch)[2], np.median(y_EBKG[:, 2, 0], axis=0), rtol=1e-6)


@torch.no_grad()
def test_the_loss_is_that_of_each_fit_by_itself(network, batch):
    means = np.array([f.mean(axis=1) for f in of_cells(network, batch)])  # spots, fits, genes
    errors = (means - batch.target.numpy()[:, None]) ** 2
    assert float(network.loss(batch)) == pytest.approx(errors.mean(), rel=1e-5)


def test_a_fit_learns_as_it_would_alone(network, batch):
    network.loss(batch).backward()
    alone = IStar(N_GENES, n_fits=1, hidden=16)
    alone.load_state_dict({name: tensor[1:2] for name, tensor in network.state_dict().items()})
    alone.loss(batch).backward()
    for ours, theirs in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(3 * ours.grad[1:2], theirs.grad)


@torch.no_grad()
def test_a_sample_is_one_of_the_fits(network, batch):
    each = np.array([f.mean(axis=1) for f in of_cells(network, batch)]).transpose(1, 0, 2)
    found = set()
    for seed in range(20):
        sample = network.sample(batch, seed=seed).numpy()
        assert np.array_equal(sample, network.sample(batch, seed=seed))
        errors = np.abs(each - sample).max(axis=(1, 2))
        assert errors.min() < 1e-5
        found.add(int(errors.argmin()))
    assert found == {0, 1, 2}
    with pytest.raises(ValueError, match="n_fits above 1"):
        IStar(N_GENES, n_fits=1).sample(batch, seed=0)


@torch.no_grad()
def test_it_begins_with_the_mean_of_each_gene(network, batch):
    mean_G = torch.tensor([3.0, 0.5, 0.01, -0.5])
    network.head.weight.zero_()
    network.start_at(mean_G)
    torch.testing.assert_close(network(batch), mean_G.clamp_min(0.01).expand(3, -1))


def test_parameters_of_the_publication():
    with torch.device("meta"):
        network = SPEC.build(250, encoder="hipt", n_fits=1)
    assert network.n_features == 579
    assert sum(p.numel() for p in network.parameters()) == 410_106


def test_fits_begin_like_layers_of_torch():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        layer, torchs = IStar(N_GENES).layers[1], nn.Linear(256, 256)
    for ours, theirs in ((layer.weight.detach(), torchs.weight.detach()), (layer.bias.detach(), torchs.bias.detach())):
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.1)
        assert float(ours.abs().max()) <= 1 / 16
    assert not torch.equal(layer.weight[0], layer.weight[1])


@torch.no_grad()
def test_published_weights(batch):
    sizes = [IStar(1).n_features, 8, 8, 8, 8]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    out = nn.Linear(8, N_GENES)
    named = {f"net_lat.{i}.linear": layer for i, layer in enumerate(layers)} | {"net_out.linear": out}
    state = {f"{name}.{part}": getattr(layer, part) for name, layer in named.items() for part in ("weight", "bias")}
    network = IStar(N_GENES, n_fits=1, hidden=8)
    network.load_state_dict(convert(state))
    x = batch.features[0]
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
    torch.testing.assert_close(network(batch)[0], (F.elu(out(x), 0.01) + 0.01).mean(0))
    with pytest.raises(ValueError, match=r"missing \['net_out.linear.bias'\], unknown \['other'\]"):
        convert({**{k: v for k, v in state.items() if k != "net_out.linear.bias"}, "other": out.bias})


def test_what_is_unfit_is_named(network, batch):
    with pytest.raises(ValueError, match="n_fits, hidden and n_genes must be at least 1, got 0, 256 and 3"):
        IStar(3, n_fits=0)
    with pytest.raises(ValueError, match=r"cells, the batch has \(3, 70\)"):
        network(Batch(crops=(), index=torch.arange(3), features=batch.features[:, 0]))
    with pytest.raises(ValueError, match="'features' of each spot; the batch has none"):
        network(Batch(crops=(), index=torch.arange(3)))
    with pytest.raises(ValueError, match=r"'istar' has no hyper-parameters \['depth'\]; there are"):
        get_spec("istar").build_with(3, {"depth": 2})


def test_a_gene_with_a_mean_of_zero_can_learn(network, batch):
    """Residuals have such means. Where all outputs are on the flat side, no weight has a gradient."""
    network.start_at(torch.tensor([-0.5, 0.0, 1e-3, 2.0]))
    network.loss(batch).backward()
    size = network.head.bias.grad.abs().amax((0, 1))
    assert (size > 0.05).all()
    assert network.head.bias[:, 0, 3].tolist() == pytest.approx([1.99] * 3)
