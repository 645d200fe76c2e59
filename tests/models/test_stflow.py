"""STFlow against an independent computation, its published size, and its own promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from scipy.special import erf, expit, softmax

from st_predict.crops import Batch
from st_predict.models import stflow
from st_predict.models.stflow import SPEC, STFlow, STFlowConfig, convert, draw, flow, frames
from st_predict.specs import TargetSpec
from st_predict.tl import TrainConfig

TINY: dict[str, Any] = {"n_features": 6, "dim": 16, "edge_dim": 8, "depth": 2, "heads": 2, "neighbours": 4, "drop": 0.0}
N_GENES = 7


def wave(*shape: int, phase: int = 0) -> torch.Tensor:
    """Numbers that look random and are the same everywhere."""
    return torch.from_numpy(np.sin(np.arange(np.prod(shape)) ** 2.0 + phase).reshape(shape)).float()


def published_state(depth: int = 2) -> dict[str, torch.Tensor]:
    """Weights by the names of the published code, for :data:`TINY`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in), (n_out,)

    def norm(name: str, n: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (n,)

    def gated(name: str, n_in: int, hidden: int, n_out: int) -> None:
        linear(f"{name}.fc1", n_in, hidden)
        norm(f"{name}.norm", hidden // 2)
        linear(f"{name}.fc2", hidden // 2, n_out)

    linear("image_transform", 6, 16)
    linear("fourier_proj.mlp.0", 256, 16)
    linear("fourier_proj.mlp.2", 16, 16)
    for i in range(depth):
        block = f"backbone.blks.{i}"
        norm(f"{block}.attn.layernorm_qkv.0", 16)
        linear(f"{block}.attn.layernorm_qkv.1", 16, 48)
        gated(f"{block}.attn.mlp_attn", 8 + 8 + 4 + N_GENES, 16, 1)
        gated(f"{block}.attn.edge_trans", 3, 8, 8)
        gated(f"{block}.attn.W_output", 24, 16, 16)
        gated(f"{block}.mlp", 16, 64, 16)
        linear(f"{block}.gene_updater.output.0", 16, 16)
        norm(f"{block}.gene_updater.output.2", 16)
        linear(f"{block}.gene_updater.output.4", 16, N_GENES)
    scale = {name: 2 / shape[-1] ** 0.5 if len(shape) == 2 else 0.8 for name, shape in shapes.items()}
    return {name: scale[name] * wave(*shape, phase=i) for i, (name, shape) in enumerate(shapes.items())}


def make_net(**hparams: Any) -> STFlow:
    net = STFlow(N_GENES, **TINY | hparams).eval()
    net.load_state_dict(convert(published_state(net.config.depth)))
    return net


def make_batch(n: int = 12, *, seed: int = 0, **more: Any) -> Batch:
    """Spots at random places, whose lattice is about 100 um wide."""
    rng = np.random.default_rng(seed)
    parts = {
        "features": rng.normal(size=(n, 6)),
        "xy_um": rng.uniform(0, 100 * n**0.5, (n, 2)),
        "target": rng.gamma(2, 2, (n, N_GENES)),
    }
    tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in parts.items()}
    return Batch(crops=(), index=torch.arange(n), **tensors | more)


def joined(*batches: Batch) -> Batch:
    """One batch of several sections."""
    names = ("index", "features", "xy_um", "target")
    section = torch.cat([torch.full((len(b),), i) for i, b in enumerate(batches)])
    return Batch(crops=(), section=section, **{name: torch.cat([getattr(b, name) for b in batches]) for name in names})


# The published size.


@pytest.mark.parametrize(
    ("encoder", "n_genes", "n_params"), [("uni", 50, 1_147_724), ("uni", 250, 1_353_324), ("gigapath", 50, 1_213_260)]
)
def test_number_of_parameters(encoder, n_genes, n_params):
    with torch.device("meta"):
        net = SPEC.build(n_genes, **{**SPEC.hparams, "encoder": encoder})
    assert sum(p.numel() for p in net.parameters()) == n_params


# The published computation, spot by spot and edge by edge.


class Plain:
    """A plain writing of the formulas in double precision, from weights by their published names."""

    def __init__(self, state: dict[str, torch.Tensor], *, heads: int = 2, k: int = 4) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.heads, self.k = heads, k
        self.depth = len({name.split(".")[2] for name in state if name.startswith("backbone")})

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def gated(self, name: str, x: np.ndarray) -> np.ndarray:
        a, b = np.split(self.linear(f"{name}.fc1", x), 2, -1)
        return self.linear(f"{name}.fc2", self.norm(f"{name}.norm", a * expit(a) * b))

    def denoise(self, x: np.ndarray, t: float, features: np.ndarray, xy_px: np.ndarray) -> np.ndarray:
        angles = t * 10_000 ** (-np.arange(128) / 128)
        time = self.linear("fourier_proj.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)]))
        h = self.linear("image_transform", features) + self.linear("fourier_proj.mlp.2", time * expit(time))
        near = np.argsort(cdist(xy_px, xy_px) + np.diag(np.full(len(x), np.inf)), axis=1)[:, : min(self.k, len(x) - 1)]
        told = []
        for i in range(self.depth):
            name = f"backbone.blks.{i}"
            read = [self.attend(f"{name}.attn", spot, near[spot], h, x, xy_px) for spot in range(len(x))]
            h = h + np.stack(read)
            h = h + self.gated(f"{name}.mlp", h)
            hidden = self.linear(f"{name}.gene_updater.output.0", h)
            hidden = self.norm(f"{name}.gene_updater.output.2", hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
            x = self.linear(f"{name}.gene_updater.output.4", hidden)
            told.append(x)
        return np.mean(told, 0)

    def attend(
        self, name: str, spot: int, near: np.ndarray, h: np.ndarray, x: np.ndarray, xy: np.ndarray
    ) -> np.ndarray:
        qkv = self.linear(f"{name}.layernorm_qkv.1", self.norm(f"{name}.layernorm_qkv.0", h))
        q, k, v = (np.split(part, self.heads, -1) for part in np.split(qkv, 3, -1))
        edges = np.split(self.edges(f"{name}.edge_trans", xy[near] - xy[spot]), self.heads, -1)
        values, borders = [], []
        for head in range(self.heads):
            logits = [
                self.gated(
                    f"{name}.mlp_attn", np.concatenate([q[head][spot], k[head][j], edges[head][i], x[j] - x[spot]])
                )[0]
                for i, j in enumerate(near)
            ]
            weights = softmax(logits)
            values.append(weights @ v[head][near])
            borders.append(weights @ edges[head])
        return self.gated(f"{name}.W_output", np.concatenate(values + borders))

    def edges(self, name: str, offsets: np.ndarray) -> np.ndarray:
        centred = offsets - offsets.mean(0)
        axes = np.linalg.eigh(centred.T @ centred)[1]  # the least first
        length = np.linalg.norm(offsets, axis=1, keepdims=True)
        signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        framed = [np.concatenate([centred @ axes * sign, length], 1) for sign in signs]
        return np.mean([self.gated(name, each) for each in framed], 0)


def in_plain(batch: Batch, x: torch.Tensor, t: float, **settings: int) -> torch.Tensor:
    arrays = (tensor.double().numpy() for tensor in (batch.features, batch.xy_um * 2))  # pixels of 0.5 um
    return torch.from_numpy(Plain(published_state(), **settings).denoise(x.double().numpy(), t, *arrays)).float()


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("block", [5, 1000])
def test_denoises_as_written_plainly(monkeypatch, block, needs_grad):
    """With all spots at a time and a few, gradients or not."""
    monkeypatch.setattr(stflow, "_KEPT" if needs_grad else "_BLOCK", block)
    net, batch, x = make_net(), make_batch(), wave(12, N_GENES)
    with torch.set_grad_enabled(needs_grad):
        ours = net.denoise(x, torch.tensor([0.37]), net.look(batch))
    torch.testing.assert_close(ours, in_plain(batch, x, 0.37), rtol=1e-5, atol=1e-5)


def test_denoises_two_sections_of_different_size_at_different_times():
    """The second has fewer spots than there are neighbours."""
    net, a, b, x = make_net(), make_batch(9), make_batch(3, seed=1), wave(12, N_GENES)
    t_N = torch.tensor([0.2] * 9 + [0.9] * 3)
    with torch.no_grad():
        ours = net.denoise(x, t_N, net.look(joined(a, b)))
    torch.testing.assert_close(
        ours, torch.cat([in_plain(a, x[:9], 0.2), in_plain(b, x[9:], 0.9)]), rtol=1e-5, atol=1e-5
    )


def test_gradients_do_not_depend_on_the_blocks(monkeypatch):
    def gradients() -> list[torch.Tensor]:
        net = make_net().train()
        torch.random.default_generator.manual_seed(0)
        net.loss(make_batch()).backward()
        return [p.grad for p in net.parameters()]

    with torch.random.fork_rng(devices=[]):
        expected = gradients()
        monkeypatch.setattr(stflow, "_KEPT", 5)
        for ours, theirs in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_mean_over_frames_is_that_of_training():
    """In training it comes after the last layer, which drops, and in prediction before it."""
    net, batch = make_net(), make_batch()
    with torch.no_grad():
        at_prediction = net.look(batch).edges
        in_training = net.train().look(batch).edges
    for ours, theirs in zip(at_prediction, in_training, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_only_published_weights_are_converted(change):
    state = published_state()
    name = "backbone.blks.1.attn.mlp_attn.fc1.bias"
    state = {**state, "more": torch.zeros(1)} if change == "unknown" else {k: v for k, v in state.items() if k != name}
    with pytest.raises(ValueError, match=rf"{change} \['{'more' if change == 'unknown' else name}'\]"):
        convert(state)


# Where spots are.


@pytest.mark.parametrize("mirrored", [False, True])
def test_it_does_not_matter_how_a_section_lies(mirrored):
    net, batch = make_net(), make_batch(40)
    cos, sin = np.cos(0.7), np.sin(0.7)
    turn = torch.tensor([[cos, -sin], [sin, cos]]).float() @ torch.diag(torch.tensor([1.0, -1.0 if mirrored else 1.0]))
    moved = replace(batch, xy_um=batch.xy_um @ turn.T + torch.tensor([1234.0, -567.0]))
    stretched = replace(batch, xy_um=batch.xy_um * torch.tensor([1.0, 1.2]))
    with torch.no_grad():
        expected = net(batch)
        torch.testing.assert_close(net(moved), expected, rtol=1e-4, atol=1e-4)
        assert (net(stretched) - expected).abs().max() > 0.05


def test_a_lattice_has_no_axes_but_those_of_the_coordinates():
    """The neighbours of a spot inside vary equally along both, but for rounding, which must not choose a frame."""
    ring = torch.tensor([[x, y] for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0) if x or y])[None] * 200
    there = torch.ones(1, 8, dtype=torch.bool)
    exact = frames(ring, there)
    torch.testing.assert_close(exact[..., 0, :2], ring.flip(-1))
    for phase in range(5):
        torch.testing.assert_close(frames(ring + 0.02 * wave(1, 8, 2, phase=phase), there), exact, atol=0.05, rtol=0)
    longer = ring * torch.tensor([1.0, 1.05])  # but now it varies most along y
    torch.testing.assert_close(frames(longer, there)[..., 0, :2].abs(), longer.abs(), atol=0.05, rtol=0)


def test_frames_of_a_hand_worked_case():
    """Two neighbours at right angles vary along the line between them alone, and one alone does not vary."""
    offsets = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [0.0, 0.0]]])
    framed = frames(offsets, torch.tensor([[True, True], [True, False]]))
    assert framed.shape == (2, 2, 4, 3)
    torch.testing.assert_close(framed[0, :, :, 0], torch.zeros(2, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(framed[0, :, :, 1].sort().values, torch.tensor([[-1.0, -1, 1, 1]] * 2) * 2**0.5)
    torch.testing.assert_close(framed[0, 0, :, 1], -framed[0, 1, :, 1])  # they lie on different sides
    torch.testing.assert_close(framed[1], torch.tensor([[[0.0, 0.0, 5.0]] * 4, [[0.0] * 3] * 4]))


@pytest.mark.parametrize(
    "xy_um",
    [
        [[3.0, 4.0]],
        [[3.0, 4.0], [5.0, 6.0]],
        [[3.0, 4.0]] * 6,
        [[float(i), 2.0 * i] for i in range(6)],
        [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]],
    ],
    ids=["one", "two", "one place", "a line", "a place twice"],
)
@pytest.mark.parametrize("neighbours", [1, 4, 9])
def test_places_of_every_kind_are_fine(xy_um, neighbours):
    net, batch = make_net(neighbours=neighbours), make_batch(len(xy_um), xy_um=torch.tensor(xy_um))
    assert net(batch).isfinite().all()
    net.train().loss(batch).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_spot_alone_reads_nothing():
    net, read = make_net(), []
    net.blocks[0].attention.out.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        net(joined(make_batch(), make_batch(1, seed=1)))
    assert (read[0][:12] != 0).all()
    assert (read[0][12] == 0).all()


def test_no_spots():
    with torch.no_grad():
        assert make_net()(make_batch(0)).shape == (0, N_GENES)


def test_sections_do_not_see_each_other():
    """They lie at the same places."""
    net, a, b = make_net(), make_batch(), make_batch()
    b = replace(b, features=b.features.flip(0))
    with torch.no_grad():
        together = net(joined(a, b))
        torch.testing.assert_close(together[:12], net(a), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together[12:], net(b), rtol=1e-5, atol=1e-5)
    both = joined(a, b)
    both.features.requires_grad_()
    net(both)[:12].sum().backward()
    assert (both.features.grad[:12] != 0).all()
    assert (both.features.grad[12:] == 0).all()


def test_the_order_of_spots_does_not_matter():
    net, batch = make_net(), make_batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = {name: getattr(batch, name)[order] for name in ("index", "features", "xy_um")}
    with torch.no_grad():
        torch.testing.assert_close(net(Batch(crops=(), **shuffled)), net(batch)[order], rtol=1e-5, atol=1e-5)


# The way from the prior to the prediction.


def test_flow_of_a_network_that_always_tells_the_same_is_a_straight_line():
    """From 0 at t = 0.01 to 1 at t = 1; the last is not reached, but what is told at the one before it returned."""
    seen: list[tuple[float, float]] = []

    def denoise(x_NG: torch.Tensor, t: float) -> torch.Tensor:
        seen.append((t, float(x_NG)))
        return torch.ones(1, 1)

    assert flow(denoise, torch.zeros(1, 1), steps=5).item() == 1
    times = [0.01, 0.2575, 0.505, 0.7525]
    assert [t for t, _ in seen] == pytest.approx(times)
    assert [x for _, x in seen] == pytest.approx([1 - (1 - t) / 0.99 for t in times])


def test_flow_by_hand():
    """A network that tells a tenth more than it is given and the time; 3 steps are at 0.01 and 0.505."""
    told = flow(lambda x, t: 1.1 * x + t, torch.tensor([[2.0]]), steps=3)
    second = 2 + 0.495 / 0.99 * (2.2 + 0.01 - 2)
    assert told.item() == pytest.approx(1.1 * second + 0.505)
    assert flow(lambda x, t: x + t, torch.tensor([[2.0]]), steps=2).item() == pytest.approx(2.01)


@torch.no_grad()
def test_samples():
    net, batch = make_net(), make_batch()
    first, second = (net.sample(batch, seed=seed) for seed in (0, 1))
    assert torch.equal(net(batch), first)
    assert torch.equal(net.sample(batch, seed=1), second)
    assert not torch.allclose(first, second, atol=1e-3)
    x0 = draw(net.config, batch.index, N_GENES, seed=1)
    seen = net.look(batch)
    told = flow(lambda x, t: net.denoise(x, torch.tensor([t]), seen), x0, steps=5)
    torch.testing.assert_close(told, second)


# The prior.


def prior(n: int = 4000, *, seed: int = 0, **hparams: Any) -> np.ndarray:
    return draw(STFlowConfig(**TINY | hparams), torch.arange(n), 25, seed=seed).numpy()


@pytest.mark.parametrize(
    ("hparams", "theta", "mean", "zeros"),
    [({}, 1, 0.5526, 0.7375), ({"theta": 3.0, "logit": -0.5, "zero_logit": -1.0}, 3, None, None)],
)
def test_counts_of_the_prior_are_negative_binomial_with_more_zeros(hparams, theta, mean, zeros):
    counts = np.expm1(prior(**hparams))
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    p_zero = expit(hparams.get("zero_logit", 0.0))
    law = stats.nbinom(theta, expit(-hparams.get("logit", 0.1)))
    expected = (1 - p_zero) * law.pmf(np.arange(6)) + p_zero * (np.arange(6) == 0)
    found = np.bincount(counts.round().astype(int).ravel(), minlength=6)[:6] / counts.size
    np.testing.assert_allclose(found, expected, atol=0.006)
    assert counts.mean() == pytest.approx((1 - p_zero) * law.mean(), abs=0.02)
    if mean is not None:
        assert (counts.mean(), found[0]) == pytest.approx((mean, zeros), abs=0.01)


def test_normal_prior():
    values = prior(prior="gaussian", sd=2.5)
    assert (values.mean(), values.std()) == pytest.approx((0, 2.5), abs=0.03)
    assert stats.kstest(values.ravel() / 2.5, "norm").pvalue > 0.01


def test_what_is_drawn_for_a_spot_depends_on_its_row_alone():
    c = STFlowConfig(**TINY)
    rows = torch.tensor([0, 5, 255, 256, 700, 10**12])
    drawn = draw(c, rows, N_GENES, seed=3)
    assert torch.equal(draw(c, rows.flip(0), N_GENES, seed=3), drawn.flip(0))
    assert torch.equal(draw(c, torch.arange(1000), N_GENES, seed=3)[rows[:5]], drawn[:5])
    assert len(torch.unique(draw(c, torch.arange(1000), 50, seed=3), dim=0)) == 1000
    assert not torch.equal(draw(c, rows, N_GENES, seed=4), drawn)


# Training.


@pytest.fixture
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        yield


@pytest.mark.usefixtures("seeded")
def test_loss_is_that_of_mixtures(monkeypatch):
    """The denoiser that stands in for the network returns the mixture, which is ``(1 - t) x0 + t x1``."""
    net, batch = make_net(prior="zero"), joined(make_batch(), make_batch(20, seed=1))
    times: list[torch.Tensor] = []
    monkeypatch.setattr(net, "denoise", lambda x, t, _: times.append(t) or x)
    loss = net.loss(batch)
    (t_N,) = times
    assert len(t_N[:12].unique()) == len(t_N[12:].unique()) == 1
    assert t_N[0] != t_N[12]
    assert ((t_N > 0) & (t_N < 1)).all()
    torch.testing.assert_close(loss, ((1 - t_N[:, None]) * batch.target).square().mean())
    assert net.loss(batch) != loss  # drawn anew


@pytest.mark.usefixtures("seeded")
def test_overlapping_regions_begin_with_different_draws(monkeypatch):
    net, batch = make_net(), make_batch()
    mixed: list[torch.Tensor] = []
    monkeypatch.setattr(net, "denoise", lambda x, t, _: mixed.append(x) or x)
    net.loss(replace(joined(batch, batch), target=torch.zeros(24, N_GENES)))
    assert not torch.equal(mixed[0][:12] > 0, mixed[0][12:] > 0)


@pytest.mark.usefixtures("seeded")
def test_learns_what_is_seen():
    """Expression is a function of two features; a draw alone says nothing of it."""
    net = STFlow(N_GENES, **TINY | {"drop": 0.1})
    sections = [make_batch(30, seed=seed) for seed in range(4)]
    sections = [replace(b, target=(b.features[:, :2] @ wave(2, N_GENES) + 2).clamp_min(0)) for b in sections]
    net.start_at(torch.cat([b.target for b in sections]).mean(0))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        net.train().loss(sections[step % 3]).backward()
        optimizer.step()
    with torch.no_grad():
        error = (net.eval()(sections[3]) - sections[3].target).square().mean()
    assert error < 0.5 * sections[3].target.var(0).mean()


def test_starts_at_the_mean():
    net, mean_G = make_net(), torch.arange(1.0, N_GENES + 1)
    for block in net.blocks:
        torch.nn.init.zeros_(block.genes[4].weight)
    net.start_at(mean_G)
    torch.testing.assert_close(net(make_batch()), mean_G.expand(12, -1))


def test_bfloat16_changes_nothing():
    net, batch = make_net(), make_batch()
    with torch.no_grad():
        expected = net(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(net(batch), expected)


# Input that does not fit, and what the package knows of it.


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"depth": 1.5}, "depth must be a whole number, got 1.5"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"dim": 18}, "dim must be a multiple of 4, twice the heads, got 18"),
        ({"edge_dim": 6}, "edge_dim must be a multiple of 4"),
        ({"prior": "poisson"}, "prior must be 'zinb', 'gaussian' or 'zero', got 'poisson'"),
        ({"sd": 0}, "sd must be above 0, got 0"),
        ({"drop": 1.0}, "drop must be below 1, got 1.0"),
    ],
)
def test_hyper_parameters_that_do_not_fit(hparams, message):
    with pytest.raises(ValueError, match=message):
        STFlow(N_GENES, **TINY | hparams)


def test_an_encoder_that_does_not_say_how_many_features_it_has():
    assert STFlow(N_GENES, encoder="resnet50.a1_in1k", n_features=2048).image.in_features == 2048
    with pytest.raises(ValueError, match=r"features of 'resnet50\.a1_in1k' is unknown\. Give n_features in hparams="):
        SPEC.build_with(N_GENES, {"encoder": "resnet50.a1_in1k"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, "reads 'features' of each spot; the batch has none"),
        ({"xy_um": None}, "reads 'xy_um' of each spot; the batch has none"),
        ({"features": torch.zeros(12, 5)}, r"reads 6 features of 'rgb', the batch has \(5,\)"),
    ],
)
def test_batch_that_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        make_net()(replace(make_batch(), **change))


@torch.no_grad()
def test_without_a_prior_dropout_is_what_differs_between_samples():
    net, batch = make_net(prior="zero", drop=0.2), make_batch()
    first, second = (net.sample(batch, seed=seed) for seed in (0, 1))
    assert bool((first != second).any())
    assert torch.equal(first, net.sample(batch, seed=0))
    with pytest.raises(ValueError, match="has no dropout"):
        make_net(prior="zero", drop=0.0).sample(batch, seed=0)


def test_spec():
    assert STFlowConfig(**SPEC.hparams) == STFlowConfig()
    assert SPEC.hparams["encoder"] == "rgb"
    original = {**SPEC.hparams, **SPEC.original.hparams}
    assert STFlow(2, **original).image.in_features == 1024
    assert SPEC.crop_for(original).mpp == 0.5
    assert SPEC.original.target == TargetSpec(transform="log1p")
    config = TrainConfig(**SPEC.original.training)
    assert (config.regions, config.regions_per_step, config.lr, config.clip) == (10, 2, 5e-4, 1)
