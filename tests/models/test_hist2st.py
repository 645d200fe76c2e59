"""Hist2ST against its published size, an independent computation, scipy, torchvision, and its own promises."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from scipy.special import erf, expit, softmax
from scipy.stats import nbinom
from torch import nn
from torchvision.transforms.functional import InterpolationMode, rotate

from st_predict.crops import Batch
from st_predict.models import hist2st
from st_predict.models.hist2st import (
    SPEC,
    Counts,
    Hist2ST,
    altered,
    convert,
    neighbours,
    size_factors,
    turned,
    zinb_loss,
)
from st_predict.pp import to_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

TINY = dict(SPEC.tiny)
State = dict[str, np.ndarray]
# Of the spots of make_batch: 0 1 2 above 3 4 5, and 6 far away. Two places are left out that are as far as the last.
NEAREST = [[1, 3, 4, 2], [0, 2, 4, 3], [1, 5, 4, 0], [0, 4, 1, 5], [1, 3, 5, 0], [2, 4, 1, 3], [6]]


def make_batch(n: int = 7, *, size: int = 32, section: list[int] | None = None) -> Batch:
    """Spots on a lattice of three columns; the last one is far from all others."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    waves = 128 + 90 * np.sin(rng.uniform(3, 30, (n, 3, 1, 1)) * x + rng.uniform(3, 30, (n, 1, 1, 1)) * y)
    grid = torch.stack([torch.arange(n) // 3, torch.arange(n) % 3 + 5], dim=1)
    grid[-1] = 15
    counts = torch.from_numpy(rng.poisson(2, (n, 5)).astype(np.float32))
    target = torch.from_numpy(rng.normal(2, 1, (n, 5)).astype(np.float32))
    return Batch(
        crops=(torch.from_numpy(waves.astype(np.uint8)),),
        index=torch.arange(n),
        grid=grid,
        target=target,
        counts=counts,
        section=None if section is None else torch.tensor(section),
    )


def take(batch: Batch, rows: list[int]) -> Batch:
    parts = {name: getattr(batch, name)[rows] for name in ("index", "grid", "target", "counts")}
    return replace(batch, crops=(batch.crops[0][rows],), section=None, **parts)


def make_net(**hparams: Any) -> Hist2ST:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        net = Hist2ST(5, **TINY | hparams).eval()
    net.pixel_spec = SPEC.pixels
    return net


def seeded_loss(net: Hist2ST, batch: Batch, seed: int = 0) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return net.loss(batch).detach()


@pytest.mark.parametrize(
    ("n_genes", "size", "n_params"), [(250, 112, 73_596_333), (785, 112, 75_789_833), (250, 224, 759_917_997)]
)
def test_number_of_parameters(n_genes, size, n_params):
    with torch.device("meta"):
        assert sum(p.numel() for p in Hist2ST(n_genes, size=size).parameters()) == n_params


# The network, written once more in numpy from its formula, with the names and the transposed crops of the published weights


def published_state(rng: np.random.Generator, *, channels: int = 16, dim: int = 8, n_genes: int = 5) -> State:
    trunk, c = "vit.transformer", channels
    layers = {"patch_embedding": (c, 3, 7, 7), f"{trunk}.down.0": (c // 8, c, 1, 1), "gene_head.1": (n_genes, dim)}
    layers |= {f"{head}.0": (n_genes, dim) for head in ("mean", "disp", "pi")}
    layers |= {"coef.0": (dim, dim), "coef.2": (1, dim)}
    norms = {"gene_head.0": dim}
    for i in range(2):
        mixer, block = f"{trunk}.layer1.{i}", f"{trunk}.layer2.{i}"
        layers |= {f"{mixer}.dw.0": (c, 1, 3, 3), f"{mixer}.dw.3": (c, 1, 3, 3), f"{mixer}.pw.0": (c, c, 1, 1)}
        norms |= {f"{mixer}.dw.1": c, f"{mixer}.dw.4": c, f"{mixer}.pw.2": c}
        norms |= {f"{block}.attn.norm": dim, f"{block}.ff.norm": dim}
        layers |= {f"{block}.attn.fn.to_out.0": (dim, 16)}
        layers |= {f"{block}.ff.fn.net.0": (dim, dim), f"{block}.ff.fn.net.3": (dim, dim)}
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes |= {f"{name}.{part}": (n,) for name, n in norms.items() for part in ("weight", "bias")}
    shapes |= {f"{name}.running_{part}": (c,) for name in norms if "layer1" in name for part in ("mean", "var")}
    shapes |= {"x_embed.weight": (20, dim), "y_embed.weight": (20, dim)}
    shapes |= {f"{trunk}.layer2.{i}.attn.fn.to_qkv.weight": (48, dim) for i in range(2)}
    shapes |= {f"{trunk}.layer3.{i}.weight": (dim, dim) for i in range(3)}
    for i in range(2):
        shapes |= {f"{trunk}.jknet.0.weight_{kind}_l{i}": (4 * dim, dim) for kind in ("ih", "hh")}
        shapes |= {f"{trunk}.jknet.0.bias_{kind}_l{i}": (4 * dim,) for kind in ("ih", "hh")}
    state = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    state |= {name: np.abs(value) + 0.5 for name, value in state.items() if name.endswith("running_var")}
    state["patch_embedding.weight"] *= 0.01
    for name in state:
        state[name] *= 4 if "jknet" in name else 1  # else the mean over layers is nearly the same for all spots
    return state


class Published:
    """The formula of the prediction."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __call__(self, batch: Batch, adjacency: NDArray[np.float64]) -> NDArray[np.float64]:
        crops = batch.crops[0].numpy().astype(np.float64).transpose(0, 1, 3, 2)
        x = np.stack([self.cells(crop) for crop in crops])
        row, column = batch.grid.numpy().T
        x = x + self.state["x_embed.weight"][column] + self.state["y_embed.weight"][row]
        for i in range(2):
            x = self.block(x, f"vit.transformer.layer2.{i}")
        layers = []
        for i in range(3):
            x = np.maximum(self.linear(adjacency @ x, f"vit.transformer.layer3.{i}"), 0)
            layers.append(x := x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
        for i in range(2):
            layers = self.lstm(layers, i)
        return self.linear(self.layer_norm(np.mean(layers, axis=0), "gene_head.0"), "gene_head.1")

    def cells(self, crop: NDArray[np.float64]) -> NDArray[np.float64]:
        kernel, n = self.state["patch_embedding.weight"], crop.shape[1] // 7
        patches = crop.reshape(3, n, 7, n, 7)
        x = np.einsum("ocij,cminj->omn", kernel, patches) + self.state["patch_embedding.bias"][:, None, None]
        for i in range(2):
            mixer, inner = f"vit.transformer.layer1.{i}", x
            for first in (0, 3):
                inner = gelu(self.batch_norm(self.depthwise(inner, f"{mixer}.dw.{first}"), f"{mixer}.dw.{first + 1}"))
            x = self.batch_norm(gelu(self.pointwise(x + inner, f"{mixer}.pw.0")), f"{mixer}.pw.2")
        return self.pointwise(x, "vit.transformer.down.0").ravel()

    def depthwise(self, x, name):
        kernels, biases = self.state[f"{name}.weight"][:, 0], self.state[f"{name}.bias"]
        return np.stack([correlate(a, k, mode="same") + b for a, k, b in zip(x, kernels, biases, strict=True)])

    def pointwise(self, x, name):
        kernel, bias = self.state[f"{name}.weight"][:, :, 0, 0], self.state[f"{name}.bias"]
        return np.einsum("oc,cij->oij", kernel, x) + bias[:, None, None]

    def batch_norm(self, x, name):
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def block(self, x, name):
        qkv = self.linear(self.layer_norm(x, f"{name}.attn.norm"), f"{name}.attn.fn.to_qkv").reshape(len(x), 3, 2, -1)
        q, k, v = qkv.transpose(1, 2, 0, 3)
        read = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]), -1) @ v
        x = x + self.linear(read.transpose(1, 0, 2).reshape(len(x), -1), f"{name}.attn.fn.to_out.0")
        hidden = gelu(self.linear(self.layer_norm(x, f"{name}.ff.norm"), f"{name}.ff.fn.net.0"))
        return x + self.linear(hidden, f"{name}.ff.fn.net.3")

    def lstm(self, steps, layer):
        name, out = "vit.transformer.jknet.0", []
        h = c = np.zeros_like(steps[0])
        for x in steps:
            gates = sum(
                value @ self.state[f"{name}.weight_{kind}_l{layer}"].T + self.state[f"{name}.bias_{kind}_l{layer}"]
                for value, kind in ((x, "ih"), (h, "hh"))
            )
            i, f, g, o = np.split(gates, 4, axis=1)
            c = expit(f) * c + expit(i) * np.tanh(g)
            out.append(h := expit(o) * np.tanh(c))
        return out

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0)

    def layer_norm(self, x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def as_tensors(state: State) -> dict[str, torch.Tensor]:
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.int64(3)
        for name in state
        if name.endswith("running_mean")
    }
    return {name: torch.as_tensor(value) for name, value in (state | counters).items()}


@torch.no_grad()
def test_published_weights_predict_what_the_formula_says():
    state = published_state(np.random.default_rng(1))
    net = make_net(size=14, patch=7, channels=16, mixers=2, n_pos=20, depth=2, graph=3)
    net.load_state_dict(convert(as_tensors(state)))
    batch = make_batch(size=14)
    adjacency = np.zeros((7, 7))
    for spot, read in enumerate(NEAREST):
        adjacency[spot, read] = 1 / len(read)
    expected = Published(state)(batch, adjacency)
    assert np.ptp(expected, axis=0).min() > 0.01
    np.testing.assert_allclose(net(batch).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_convert_refuses_other_weights():
    state = as_tensors(published_state(np.random.default_rng(1)))
    del state["coef.2.bias"]
    with pytest.raises(ValueError, match=r"Hist2ST: missing \['coef.2.bias'\], unknown \['hr.0.bias'\]"):
        convert(state | {"hr.0.bias": torch.zeros(1)})


# The graph


def as_sets(nearest: torch.Tensor, share: torch.Tensor) -> list[dict[int, float]]:
    read: list[dict[int, float]] = [{} for _ in nearest]
    for spot, (rows, parts) in enumerate(zip(nearest.tolist(), share.tolist(), strict=True)):
        for row, part in zip(rows, parts, strict=True):
            if part:
                read[spot][row] = read[spot].get(row, 0) + part
    return read


def test_spots_read_the_nearest_of_the_lattice():
    read = as_sets(*neighbours(make_batch().grid, None, k=4, max_distance=2.0))
    assert read == [{row: pytest.approx(1 / len(rows)) for row in rows} for rows in NEAREST]


def test_neighbours_may_be_two_steps_away_and_no_more():
    grid = torch.tensor([[0, 0], [0, 2], [0, 4], [2, 1], [9, 9]])
    near = as_sets(*neighbours(grid, None, k=4, max_distance=2.0))
    assert near == [{1: 1.0}, {0: 0.5, 2: 0.5}, {1: 1.0}, {3: 1.0}, {4: 1.0}]
    assert as_sets(*neighbours(grid, None, k=2, max_distance=None))[4] == {2: 0.5, 3: 0.5}


def test_neighbours_are_of_the_same_section():
    grid = torch.tensor([[0, 0], [0, 1], [0, 0], [0, 1], [0, 2], [5, 5]])
    read = as_sets(*neighbours(grid, torch.tensor([0, 1, 1, 0, 0, 3]), k=4, max_distance=2.0))
    assert read == [{3: 0.5, 4: 0.5}, {2: 1.0}, {1: 1.0}, {0: 0.5, 4: 0.5}, {0: 0.5, 3: 0.5}, {5: 1.0}]


@torch.no_grad()
def test_how_far_neighbours_may_be_matters():
    batch, near, far = make_batch(), make_net(), make_net(max_distance=None)
    difference = (near(batch) - far(batch)).abs().amax(1)
    assert float(difference[6]) > 1e-6  # reads itself, or the others
    assert float(difference[:6].max()) == 0


# Places and sections


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 64), r"64 \(n_pos\) rows .* 0 to 63; .* have 0 to 64\. .*n_pos of at least 65"),
        ((77, 127), r"64 \(n_pos\) rows .* have 0 to 127\. .*n_pos of at least 128"),
        ((-1, 2), r"64 \(n_pos\) rows .* have -1 to 15\. .*count rows and columns from 0"),
    ],
)
def test_places_that_are_not_known_are_named(training, place, message):
    batch = make_batch()
    batch.grid[4] = torch.tensor(place)
    with pytest.raises(ValueError, match=message):
        make_net().train(training).loss(batch)


@pytest.mark.parametrize("name", ["grid", "counts", "target"])
def test_what_a_batch_lacks_is_named(name):
    with pytest.raises(ValueError, match=f"'{name}'"):
        make_net().loss(replace(make_batch(), **{name: None}))


SECTION = [7, 2, 7, 7, 2, 7, 3]


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_spots_see_those_of_their_section_alone(training):
    batch = make_batch(section=SECTION)
    together = make_net(drop=0.0).train(training)(batch)
    for name in (2, 3, 7):
        rows = [i for i, of in enumerate(SECTION) if of == name]
        alone = make_net(drop=0.0).train(training)(take(batch, rows))
        torch.testing.assert_close(together[rows], alone)


@torch.no_grad()
def test_the_order_of_spots_does_not_matter():
    net, batch, order = make_net(), make_batch(), [6, 2, 0, 5, 3, 1, 4]
    torch.testing.assert_close(net(take(batch, order)), net(batch)[order])


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_blocks_of_spots_are_no_matter(training, monkeypatch):
    net, batch = make_net(drop=0.0).train(training), make_batch()
    whole = net(batch)
    monkeypatch.setattr(hist2st, "_BLOCK", 3)
    torch.testing.assert_close(net(batch), whole)


@pytest.mark.parametrize("training", [False, True])
def test_a_white_section_of_a_single_spot_without_counts_is_no_trouble(training):
    batch = take(make_batch(), [3])
    batch.crops[0].fill_(255)
    batch.counts.zero_()
    net = make_net().train(training)
    loss = net.loss(batch)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@torch.no_grad()
def test_spots_differ_in_bfloat16_as_in_float32():
    net, batch = make_net(patch=4, graph=4), make_batch()
    exact = net(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(batch)
    assert float((exact - rough).std(0).mean()) < 0.05 * float(exact.std(0).mean())


# The counts


@pytest.mark.parametrize("zero", [-30.0, -1.0, 0.5])
def test_likelihood_is_that_of_scipy(zero):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (40, 6)).astype(float)
    mean, dispersion = rng.gamma(1, 4, (40, 6)), rng.gamma(1, 2, (40, 6)) + 0.1
    likelihood = (1 - expit(zero)) * nbinom.pmf(counts, dispersion, dispersion / (dispersion + mean))
    likelihood += expit(zero) * (counts == 0)
    tensors = [torch.from_numpy(x) for x in (counts, mean, dispersion, np.full_like(mean, zero))]
    assert float(zinb_loss(*tensors)) == pytest.approx(-np.log(likelihood).mean(), rel=1e-10)
    assert float(zinb_loss(*(x.float() for x in tensors))) == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)


def test_size_factors_by_hand():
    counts = torch.tensor([[1.0, 1], [3, 1], [0, 0], [4, 4]])
    assert size_factors(counts).tolist() == pytest.approx([2 / 3, 4 / 3, 0, 8 / 3])
    assert size_factors(torch.tensor([[0.0], [0], [5]])).tolist() == [0, 0, 5]


def test_heads_of_the_counts_stay_in_their_bounds():
    layer, h_BD = Counts(1, 5), torch.ones(3, 1)
    values = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4])
    for head in (layer.mean, layer.dispersion):
        nn.init.zeros_(head.weight)
        head.start_at(values)
    mean, dispersion, _ = layer(h_BD, torch.tensor([1.0, 2.0, 0.0]))
    e = np.exp(1)
    np.testing.assert_allclose(mean[0].detach(), [1e-5, 1 / e, 1, e, 1e6], rtol=1e-5)
    np.testing.assert_allclose(mean[1:].detach(), mean[:1].detach() * torch.tensor([[2.0], [0.0]]))
    np.testing.assert_allclose(dispersion[0].detach(), [1e-4, np.log1p(1 / e), np.log(2), np.log1p(e), 1e4], rtol=1e-5)
    zinb_loss(torch.full((3, 5), 2.0), *layer(h_BD, torch.tensor([1.0, 2.0, 0.0]))).backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


# The loss


@torch.no_grad()
def test_loss_without_training_is_that_of_prediction_and_counts():
    net, batch = make_net(zinb=0.7), make_batch(section=SECTION)
    h = net._embed(batch, net._layout(batch))
    size = torch.empty(7)
    for name in (2, 3, 7):
        size[batch.section == name] = size_factors(batch.counts[batch.section == name])
    expected = (net(batch) - batch.target).square().mean() + 0.7 * zinb_loss(batch.counts, *net.counts(h, size))
    torch.testing.assert_close(net.loss(batch), expected)
    assert torch.equal(net.loss(batch), net.loss(batch))


def test_original_loss_has_the_published_weights_on_the_published_target():
    hparams, target = SPEC.hparams | dict(SPEC.original.hparams), SPEC.original.target
    assert (hparams["zinb"], hparams["distill"]) == (0.25, 0.5)
    counts = np.array([[3, 0, 7, 90], [0, 5, 1, 14]])
    expected = np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(to_target(counts, target, panel_index=[0, 1, 2, 3]), expected, rtol=1e-6)


def test_size_of_the_paper_s_table_is_that_of_its_preset():
    with torch.device("meta"):
        net = SPEC.build_with(250, {**SPEC.hparams, **SPEC.paper.hparams})
    assert sum(p.numel() for p in net.parameters()) == 759_917_997
    assert SPEC.crop_for({**SPEC.hparams, **SPEC.paper.hparams}).levels[0].size == 224


@torch.no_grad()
def test_distillation_by_hand(monkeypatch):
    batch = make_batch()
    views = [255 - batch.crops[0], batch.crops[0].roll(5, dims=2), batch.crops[0] // 2]
    net = make_net(
        drop=0.0, views=3, distill=600.0
    ).train()  # statistics of the section do not depend on what was before
    net.weigh[2].weight.mul_(1e3)
    each = [net._embed(replace(batch, crops=(view,)), net._layout(batch)) for view in views]
    weights = softmax([net.weigh(h).numpy() for h in each], axis=0)
    assert np.ptp(weights) > 0.1
    taught = sum(w * net.head(net.norm(h)).numpy() for w, h in zip(weights, each, strict=True))
    expected = 600 * ((taught - net(batch).numpy()) ** 2).mean()
    drawn = iter(views)
    monkeypatch.setattr(hist2st, "altered", lambda _: next(drawn).float())
    got = net.loss(batch) - make_net(drop=0.0, views=0).train().loss(batch)
    assert float(got) == pytest.approx(float(expected), rel=1e-3)


def test_training_is_the_same_again_for_the_same_seed():
    batch, net = make_batch(section=SECTION), make_net(drop=0.0).train()
    assert torch.equal(seeded_loss(net, batch), seeded_loss(net, batch))
    assert not torch.equal(seeded_loss(net, batch), seeded_loss(net, batch, seed=1))


# How crops are altered


@pytest.mark.parametrize("degrees", [-90, -33.3, 12.5, 71, 90])
@pytest.mark.parametrize("size", [31, 32])
def test_turns_are_those_of_torchvision(degrees, size):
    crops = make_batch(size=size).crops[0].float()
    expected = rotate(crops, degrees, InterpolationMode.NEAREST, fill=[0.0])
    assert (
        float((turned(crops, degrees) == expected).float().mean()) > 0.999
    )  # but for those halfway between two pixels


def ramps() -> torch.Tensor:
    """Two spots; red rises to the right, green downwards, and blue nowhere."""
    rising = torch.arange(21, dtype=torch.uint8) * 6
    planes = [rising.expand(21, 21), rising[:, None].expand(21, 21), torch.full((21, 21), 200, dtype=torch.uint8)]
    return torch.stack(planes).repeat(2, 1, 1, 1)


def slope(plane: torch.Tensor) -> tuple[float, float]:
    """To the right and downwards, around the centre."""
    return float(plane[10, 14] - plane[10, 6]), float(plane[14, 10] - plane[6, 10])


def test_what_is_drawn():
    n, grey, mirrored, degrees = 600, 0, 0, []
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        for _ in range(n):
            one, other = altered(ramps())
            assert torch.equal(one, other)  # one draw for all spots
            red, green, blue = one
            if torch.equal(red, green):
                grey += 1
                assert float(blue[10, 10]) == pytest.approx(0.299 * 60 + 0.587 * 60 + 0.114 * 200, abs=0.01)
                continue
            (x, y), (green_x, green_y) = slope(red), slope(green)
            upside_down = x * green_y < y * green_x
            mirrored += upside_down
            degrees.append(np.degrees(np.arctan2(y if upside_down else -y, x)))
    assert grey / n == pytest.approx(0.1, abs=0.03)
    assert mirrored / (n - grey) == pytest.approx(0.2, abs=0.04)
    np.testing.assert_allclose(np.percentile(degrees, [0, 25, 50, 75, 100]), [-90, -45, 0, 45, 90], atol=8)


# What else it promises


@torch.no_grad()
def test_dropout_is_where_it_was_published():
    net, dropped = make_net(depth=3), []
    for module in net.modules():
        if isinstance(module, nn.Dropout) and module.p == SPEC.hparams["drop"]:
            module.register_forward_hook(lambda _, args, __: dropped.append(args[0].shape[1:]))
    net(make_batch())
    assert dropped == [(8, 4, 4)] + 3 * [
        (16,),
        (16,),
        (16,),
    ]  # the cells; then after attention, and in and after the MLP


@torch.no_grad()
def test_samples_depend_on_the_seed_alone():
    net, batch = make_net(), make_batch()
    first, again, other = (net.sample(batch, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 1e-5


@pytest.mark.parametrize(
    "hparams",
    [{"depth": 0}, {"views": 0.5}, {"drop": 1.0}, {"channels": 12}, {"size": 15}, {"zinb": -1}, {"max_distance": 0}],
)
def test_unfit_hyper_parameters_are_named(hparams):
    (name,) = hparams
    with pytest.raises(ValueError, match=rf"\b{name}\b.* (must|should)|(must|should) .*\b{name}\b"):
        SPEC.build_with(5, TINY | hparams)
