"""HisToGene against its published size, an independent computation, and its own promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from st_predict._training import get_preset
from st_predict.crops import Batch
from st_predict.models.histogene import SPEC, HisToGene, convert
from st_predict.pp import to_target

TINY = dict(SPEC.tiny)


def make_batch(n: int = 6, *, size: int = 32, section: list[int] | None = None) -> Batch:
    rng = np.random.default_rng(0)
    crop = torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))
    grid = torch.stack([torch.arange(n) // 3, torch.arange(n) % 3 + 5], dim=1)
    target = torch.from_numpy(rng.normal(0, 1, (n, 5)).astype(np.float32))
    told = None if section is None else torch.tensor(section)
    return Batch(crops=(crop,), index=torch.arange(n), grid=grid, target=target, section=told)


def take(batch: Batch, rows: list[int]) -> Batch:
    return replace(batch, crops=(batch.crops[0][rows],), index=batch.index[rows], grid=batch.grid[rows], section=None)


def make_net(**hparams: Any) -> HisToGene:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        net = HisToGene(5, **TINY | hparams).eval()
    net.pixel_spec = SPEC.pixels
    return net


@pytest.mark.parametrize(
    ("n_genes", "hparams", "n_params"),
    [(250, {"size": 224}, 188_118_266), (785, {}, 73_061_137), (785, SPEC.original.hparams, 106_648_337)],
)
def test_number_of_parameters(n_genes, hparams, n_params):
    with torch.device("meta"):
        assert sum(p.numel() for p in HisToGene(n_genes, **hparams).parameters()) == n_params


def test_size_of_the_paper_s_table_is_that_of_its_preset():
    with torch.device("meta"):
        net = SPEC.build_with(250, {**SPEC.hparams, **SPEC.paper.hparams})
    assert sum(p.numel() for p in net.parameters()) == 188_118_266
    assert get_preset(SPEC, "paper") is SPEC.paper


def test_original_target_is_the_logarithm_of_base_10():
    counts = np.array([[3, 0, 7, 90], [0, 5, 1, 14]])
    expected = np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(to_target(counts, SPEC.original.target, panel_index=[0, 1, 2, 3]), expected, rtol=1e-6)


def test_pixels_are_grey_values():
    grey = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)
    assert torch.equal(make_net().pixels(grey), grey.float())


# The network, written once more in numpy from its formula, with the names and the order of pixels of the published weights


def published_state(rng: np.random.Generator, *, size: int = 4, depth: int = 2, dim: int = 6) -> dict[str, np.ndarray]:
    shapes = {"patch_embedding.weight": (dim, 3 * size**2), "patch_embedding.bias": (dim,)}
    shapes |= {"x_embed.weight": (20, dim), "y_embed.weight": (20, dim)}
    for i in range(depth):
        attn, ff = (f"vit.transformer.layers.{i}.{n}" for n in (0, 1))
        shapes |= {f"{part}.norm.{name}": (dim,) for part in (attn, ff) for name in ("weight", "bias")}
        shapes |= {f"{attn}.fn.to_qkv.weight": (3 * 16, dim)}
        shapes |= {f"{attn}.fn.to_out.0.weight": (dim, 16), f"{attn}.fn.to_out.0.bias": (dim,)}
        shapes |= {f"{ff}.fn.net.0.weight": (2 * dim, dim), f"{ff}.fn.net.0.bias": (2 * dim,)}
        shapes |= {f"{ff}.fn.net.3.weight": (dim, 2 * dim), f"{ff}.fn.net.3.bias": (dim,)}
    shapes |= {"gene_head.0.weight": (dim,), "gene_head.0.bias": (dim,)}
    shapes |= {"gene_head.1.weight": (5, dim), "gene_head.1.bias": (5,)}
    state = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    state["patch_embedding.weight"] *= 0.01
    return state


def published_forward(state: dict[str, np.ndarray], batch: Batch, *, depth: int = 2, heads: int = 2) -> np.ndarray:
    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    pixels = batch.crops[0].numpy().astype(np.float64).transpose(0, 3, 2, 1).reshape(len(batch), -1)  # x, y, colour
    row, column = batch.grid.numpy().T
    x = linear(pixels, "patch_embedding") + state["x_embed.weight"][column] + state["y_embed.weight"][row]
    for i in range(depth):
        attn, ff = (f"vit.transformer.layers.{i}.{n}" for n in (0, 1))
        qkv = linear(norm(x, f"{attn}.norm"), f"{attn}.fn.to_qkv").reshape(len(x), 3, heads, -1)
        q, k, v = qkv.transpose(1, 2, 0, 3)
        read = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]), -1) @ v
        x = x + linear(read.transpose(1, 0, 2).reshape(len(x), -1), f"{attn}.fn.to_out.0")
        hidden = linear(norm(x, f"{ff}.norm"), f"{ff}.fn.net.0")
        x = x + linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, f"{ff}.fn.net.3")
    return linear(norm(x, "gene_head.0"), "gene_head.1")


def as_tensors(state: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in state.items()}


@torch.no_grad()
def test_published_weights_predict_what_the_formula_says():
    state = published_state(np.random.default_rng(1))
    net = make_net(size=4, n_pos=20, dim=6, depth=2, heads=2, head_dim=8, mlp_dim=12)
    net.load_state_dict(convert(as_tensors(state)))
    batch = make_batch(size=4)
    expected = published_forward(state, batch)
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_allclose(net(batch).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_convert_refuses_other_weights():
    state = as_tensors(published_state(np.random.default_rng(1)))
    del state["y_embed.weight"]
    with pytest.raises(ValueError, match=r"HisToGene: missing \['y_embed.weight'\], unknown \['more'\]"):
        convert(state | {"more": torch.zeros(1)})


# Places


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 64), r"64 \(n_pos\) rows .* 0 to 63; .* have 0 to 64\. .*n_pos of at least 65"),
        ((77, 127), r"64 \(n_pos\) rows .* have 0 to 127\. .*n_pos of at least 128"),
        ((-1, 2), r"64 \(n_pos\) rows .* have -1 to 7\. .*count rows and columns from 0"),
    ],
)
def test_places_that_are_not_known_are_named(training, place, message):
    batch = make_batch()
    batch.grid[4] = torch.tensor(place)
    with pytest.raises(ValueError, match=message):
        make_net().train(training).loss(batch)


@torch.no_grad()
def test_the_last_place_is_known():
    batch = make_batch()
    batch.grid[4] = torch.tensor([77, 127])
    assert bool(make_net(n_pos=128)(batch).isfinite().all())


@torch.no_grad()
def test_rows_are_not_columns():
    net, batch = make_net(), make_batch()
    assert float((net(batch) - net(replace(batch, grid=batch.grid.flip(1)))).abs().max()) > 1e-3


@torch.no_grad()
def test_white_crops_differ_by_their_place_alone():
    batch = make_batch()
    white = replace(batch, crops=(torch.full_like(batch.crops[0], 255),), grid=batch.grid[[0, 1, 0, 3, 4, 5]])
    prediction = make_net()(white)
    torch.testing.assert_close(prediction[0], prediction[2])
    assert float((prediction[0] - prediction[1]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("without", "message"),
    [({"grid": None}, "'grid'"), ({"crops": (torch.zeros(6, 3, 16, 16, dtype=torch.uint8),)}, "32, 32")],
)
def test_what_a_batch_lacks_is_named(without, message):
    with pytest.raises(ValueError, match=message):
        make_net()(replace(make_batch(), **without))


# Sections


@torch.no_grad()
def test_spots_see_those_of_their_section_alone():
    net, section = make_net(), [7, 2, 7, 7, 2, 7]
    batch = make_batch(section=section)
    together = net(batch)
    for name in (2, 7):
        rows = [i for i, of in enumerate(section) if of == name]
        torch.testing.assert_close(together[rows], net(take(batch, rows)))
    assert float((together - net(replace(batch, section=None))).abs().max()) > 1e-4


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        made = [x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]
        self.numel = max(self.numel, *made, 0)
        return out


def test_no_table_of_all_pairs_of_spots():
    n, net = 1500, make_net(size=4, drop=0.0)
    batch = replace(make_batch(n, size=4), grid=torch.stack([torch.arange(n) // 40, torch.arange(n) % 40], dim=1))
    with Largest() as largest:
        net.train().loss(batch).backward()
    assert largest.numel < n**2 / 10


# What else it promises


def test_pixels_of_a_section_are_not_floats_at_once(monkeypatch):
    net, batch = make_net(), make_batch()
    whole, seen = net(batch), []
    monkeypatch.setattr("st_predict.models.histogene._BLOCK", 4)
    net.embed.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    torch.testing.assert_close(net(batch), whole)
    assert seen == [4, 2]


@torch.no_grad()
def test_dropout_is_where_it_was_published():
    net, dropped = make_net(depth=3, mlp_dim=24), []
    for module in net.modules():
        if isinstance(module, nn.Dropout) and module.p == SPEC.hparams["drop"]:
            module.register_forward_hook(lambda _, args, __: dropped.append(args[0].shape[1:]))
    net(make_batch())
    assert dropped == [(16,)] + 3 * [(16,), (24,), (16,)]  # the tokens; then after attention, and in and after the MLP


@torch.no_grad()
def test_samples_depend_on_the_seed_alone():
    net, batch = make_net(), make_batch()
    first, again, other = (net.sample(batch, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 1e-3


@pytest.mark.parametrize("hparams", [{"size": 0}, {"depth": 1.5}, {"drop": 1.0}])
def test_unfit_hyper_parameters_are_named(hparams):
    (name,) = hparams
    with pytest.raises(ValueError, match=f"hyper-parameter of 'histogene' is invalid. {name} must be"):
        SPEC.build_with(5, TINY | hparams)
