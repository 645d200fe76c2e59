"""M2OST against its published size, an independent computation, and its own promises."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.special import erf, expit, softmax
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from st_predict.crops import Batch
from st_predict.models._attention import digest
from st_predict.models._layers import patches
from st_predict.models.m2ost import M2OST, SPEC, M2OSTConfig, convert
from st_predict.specs import LevelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

TINY = dict(SPEC.tiny)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"fusion": "omega"},
    {"pool": "mean"},
    {"ctmm": False},
    {"dpe": False},
    {"dpe": False, "itmm": "joint"},
    {"dpe": False, "ccmm": "ffn"},
    {"dpe": False, "itmm": "joint", "ctmm": False, "ccmm": "ffn"},
]


def make_batch(n: int = 3, *, n_levels: int = 3, size: int = 64, mask: list[list[bool]] | None = None) -> Batch:
    level_mask = None if mask is None else torch.tensor(mask)
    crops = tuple(torch.stack([stripes(spot, level, size) for spot in range(n)]) for level in range(n_levels))
    return Batch(crops=crops, index=torch.arange(n), level_mask=level_mask)


def stripes(spot: int, level: int, size: int) -> torch.Tensor:
    """Noisy waves; their direction, width and colours depend on spot and level, so that the mean over patches does."""
    rng = np.random.default_rng([spot, level])
    (fy, fx), phase = rng.uniform(0.1, 1, 2), rng.uniform(0, 6, (3, 1, 1))
    y, x = np.mgrid[:size, :size]
    values = 128 + 90 * np.sin(fy * y + fx * x + phase) + rng.normal(0, 10, (3, size, size))
    return torch.from_numpy(values.astype(np.uint8))


def make_net(n_genes: int = 5, **hparams: Any) -> M2OST:
    """A tiny network in evaluation mode, all weights from a wave."""
    net = M2OST(n_genes, **TINY | hparams).eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(wave(p.shape, i))
    return net


def wave(shape: tuple[int, ...], phase: int) -> torch.Tensor:
    """Numbers that look random and are the same everywhere."""
    values = np.sin(np.arange(np.prod(shape)) ** 2.0 + phase)  # squared: a plain wave gives matrices of rank 2
    return torch.from_numpy(values.reshape(shape) * (2 / np.sqrt(shape[-1]) if len(shape) == 2 else 0.8)).float()


def with_crop(batch: Batch, level: int, crop: torch.Tensor) -> Batch:
    crops = list(batch.crops)
    crops[level] = crop
    return Batch(crops=tuple(crops), index=batch.index, level_mask=batch.level_mask)


# The published size: Table 1 and 3 of the paper, and models rebuilt from the published code.


def count(**hparams: Any) -> tuple[int, int, int, int]:
    """Parameters, those of linear layers, multiplications of linear layers, and all, for one spot and 250 genes."""
    with torch.device("meta"):
        net = M2OST(250, **hparams).eval()
        crop = torch.empty(1, 3, net.config.size, net.config.size, dtype=torch.uint8)
        batch = Batch(crops=(crop,) * len(net.config.levels), index=torch.arange(1))
    linears = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    in_linears = 0

    def add(layer: nn.Linear, _: Any, out: torch.Tensor) -> None:
        nonlocal in_linears
        in_linears += out.numel() * layer.in_features

    for layer in linears:
        layer.register_forward_hook(add)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        net(batch)
    sizes = [sum(p.numel() for m in modules for p in m.parameters()) for modules in ([net], linears)]
    return sizes[0], sizes[1], in_linears, flops.get_total_flops() // 2


@pytest.mark.parametrize(
    ("hparams", "n_params"),
    [
        ({}, 7_038_858),
        ({"fusion": "omega"}, 7_041_198),
        ({"levels": (0, 1)}, 4_232_986),
        ({"depth": 6}, 10_028_170 - 6 * 2 * 576),  # the published code has an unused norm in each block
    ],
)
def test_number_of_parameters(hparams, n_params):
    assert count(**hparams)[0] == n_params


ALL_TOKENS = {"pool": "mean"}  # as published; with class tokens alone, the last block does less


def test_multiplications_of_a_spot():
    _, linear_params, in_linears, total = count(**ALL_TOKENS)
    assert linear_params == 6_801_066
    assert in_linears == pytest.approx(2.174e9, rel=5e-4)
    assert total == pytest.approx(4.309e9, rel=5e-4)
    assert count(**ALL_TOKENS, fusion="omega")[3] == pytest.approx(4.309e9, rel=5e-4)


def test_last_block_leaves_out_what_the_class_tokens_do_not_need():
    net, crop = M2OST(250).eval(), torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(Batch(crops=(crop,) * 3, index=torch.arange(1)))
    sizes = 197, 393, 589
    pairs = 2 * (sizes[0] * sizes[1] + sizes[0] * sizes[2] + sizes[1] * sizes[2])
    # Weights times values, and the projection of what was read, for two rows a level instead of all; these two of each
    # of three heads are a product, too.
    left_out = pairs * 192 + sum(sizes) * 384 * 192
    added = pairs * 2 * 3 + 2 * 2 * sum(sizes) * 192 + 3 * 2 * 384 * 192
    everything = count(**ALL_TOKENS)[3]
    assert everything - flops.get_total_flops() // 2 == left_out - added


@pytest.mark.parametrize(
    ("hparams", "linear_params", "giga_in_linears"),
    [
        ({"dpe": False}, 7_762_554, 1.228),
        ({"dpe": False, "itmm": "joint"}, 12_876_922, 2.157),
        ({"dpe": False, "itmm": "joint", "ctmm": False}, 10_662_778, 1.721),
        ({"dpe": False, "itmm": "joint", "ctmm": False, "ccmm": "ffn"}, 10_662_778, 2.068),
    ],
)
def test_ablations_have_the_size_of_table_1(hparams, linear_params, giga_in_linears):
    counted = count(**ALL_TOKENS, **hparams)
    assert counted[1] == linear_params
    assert round(counted[2] / 1e9, 3) == giga_in_linears


@pytest.mark.parametrize(
    ("hparams", "replaced"),
    [
        ({}, set()),
        ({"fusion": "omega"}, set()),
        ({"dpe": False}, {"embed"}),
        ({"ctmm": False}, {"blocks.0.ctmm"}),
        ({"dpe": False, "itmm": "joint"}, {"embed", "blocks.0.itmm", "blocks.0.mlp"}),
        ({"dpe": False, "ccmm": "ffn"}, {"embed", "blocks.0.ccmm"}),
    ],
)
def test_ablations_replace_their_part_only(hparams, replaced):
    modules = make_net(**hparams).named_modules()
    assert {name for name, module in modules if type(module).__module__.endswith("_m2ost_ablations")} == replaced


def test_token_counts():
    assert M2OSTConfig().n_tokens == [196, 392, 588]
    assert M2OSTConfig(dpe=False).n_tokens == [196, 196, 196]
    net = make_net(levels=(0, 2))
    sequences = net.embed([torch.rand(2, 3, 64, 64)] * 2)
    assert [s.shape for s in sequences] == [(2, 16 + 1, 24), (2, 3 * 16 + 1, 24)]


def test_fourth_level_has_patches_of_two_pixels():
    with torch.device("meta"):
        net = M2OST(250, levels=(0, 1, 2, 3))
    shapes = [(mlp[1].in_features, mlp[1].out_features) for mlp in net.embed.mlps]
    assert shapes == [(768, 576), (192, 288), (48, 144), (12, 72)]


# The published code, computed anew in numpy from its parameter names alone.


def published_state(dim: int, depth: int, genes: int, size: int = 64) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of the published code; ``dim`` is that of one level."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim)}

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in), (n_out,)

    def norm(name: str, n: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (n,)

    for i, (patch, hidden) in enumerate([(16, 3 * dim), (8, 3 * dim // 2), (4, 3 * dim // 4)], start=1):
        shapes[f"pos_embedding{i}"] = (1, i * (size // 16) ** 2 + 1, dim)
        norm(f"to_patch_embedding{i}.1", 3 * patch**2)
        linear(f"to_patch_embedding{i}.2", 3 * patch**2, hidden)
        linear(f"to_patch_embedding{i}.4", hidden, dim)
        norm(f"to_patch_embedding{i}.5", dim)
    for b in range(depth):
        layer = f"transformer.layers.{b}"
        norm(f"{layer}.0.norm", 3 * dim)
        for i in (1, 2, 3):
            shapes[f"{layer}.0.to_qkv{i}.weight"] = (3 * dim, dim)
            linear(f"{layer}.0.to_out{i}.0", dim, dim)
        norm(f"{layer}.1.split_mlp.0", dim)
        linear(f"{layer}.1.split_mlp.1", dim, 10)
        linear(f"{layer}.1.split_mlp.4", 10, dim)
        norm(f"{layer}.2.norm", dim)
        for i in (0, 1, 2):
            shapes |= {f"{layer}.2.to_{x}{i}.weight": (dim, dim) for x in "qkv"}
            linear(f"{layer}.2.to_out{i}.0", 2 * dim, dim)
        norm(f"{layer}.3.net.0", 3 * dim)
        linear(f"{layer}.3.net.1", 3 * dim, 30)
        linear(f"{layer}.3.net.4", 30, 3 * dim)
    norm("transformer.norm", dim)
    linear("mlp_head", 3 * dim, genes)
    return {name: wave(shape, i) + 0.5 * name.endswith("norm.weight") for i, (name, shape) in enumerate(shapes.items())}


class Published:
    """The published computation for one spot, in double precision."""

    def __init__(self, state: dict[str, torch.Tensor], heads: int) -> None:
        self.w = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.heads = heads

    def __call__(self, crops: list[np.ndarray]) -> np.ndarray:
        s = crops[0].shape[-1]
        half = np.s_[:, s // 4 : s - s // 4, s // 4 : s - s // 4]
        quarter = np.s_[:, s * 3 // 8 : s * 5 // 8, s * 3 // 8 : s * 5 // 8]
        x1 = self.tokens(1, [(1, crops[0])])
        x2 = self.tokens(2, [(2, crops[1][half]), (1, crops[1])])
        x3 = self.tokens(3, [(3, crops[2][quarter]), (2, crops[2][half]), (1, crops[2])])
        x = [x1, x2, x3]
        depth = sum(name.endswith("split_mlp.0.weight") for name in self.w)
        for b in range(depth):
            x = self.block(f"transformer.layers.{b}", x)
        return self.linear("mlp_head", np.concatenate([self.norm("transformer.norm", t)[0] for t in x]))

    def tokens(self, level: int, regions: list[tuple[int, np.ndarray]]) -> np.ndarray:
        rows = [self.w["cls_token"][0]]
        for embedding, image in regions:
            p, side = 32 >> embedding, image.shape[-1]
            for y in range(0, side, p):
                for x in range(0, side, p):
                    flat = image[:, y : y + p, x : x + p].transpose(1, 2, 0).reshape(1, -1)
                    name = f"to_patch_embedding{embedding}"
                    hidden = gelu(self.linear(f"{name}.2", self.norm(f"{name}.1", flat)))
                    rows.append(self.norm(f"{name}.5", self.linear(f"{name}.4", hidden)))
        return np.concatenate(rows) + self.w[f"pos_embedding{level}"][0]

    def block(self, name: str, x: list[np.ndarray]) -> list[np.ndarray]:
        for i in range(3):
            q, k, v = np.split(x[i] @ self.w[f"{name}.0.to_qkv{i + 1}.weight"].T, 3, axis=1)
            x[i] = x[i] + self.linear(f"{name}.0.to_out{i + 1}.0", self.attention(q, k, v))
            hidden = gelu(self.linear(f"{name}.1.split_mlp.1", self.norm(f"{name}.1.split_mlp.0", x[i])))
            x[i] = x[i] + gelu(self.linear(f"{name}.1.split_mlp.4", hidden))
        normed = [self.norm(f"{name}.2.norm", t) for t in x]
        project = lambda what, i: normed[i] @ self.w[f"{name}.2.to_{what}{i}.weight"].T
        for i, (j, k) in enumerate([(1, 2), (0, 2), (0, 1)]):
            read = [self.attention(project("q", i), project("k", o), project("v", o)) for o in (j, k)]
            x[i] = self.linear(f"{name}.2.to_out{i}.0", np.concatenate(read, axis=1))
        mean = self.norm(f"{name}.3.net.0", np.concatenate([t.mean(0) for t in x]))
        scores = expit(self.linear(f"{name}.3.net.4", gelu(self.linear(f"{name}.3.net.1", mean))))
        return [t * s + t for t, s in zip(x, np.split(scores, 3), strict=True)]

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        q, k, v = (t.reshape(len(t), self.heads, -1) for t in (q, k, v))
        weights = softmax(np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1]), axis=-1)
        return np.einsum("hij,jhd->ihd", weights, v).reshape(len(q), -1)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


CONVERTED = {"dim": 12, "depth": 2, "heads": 2, "head_dim": 6, "mlp_dim": 10, "size": 64}


def test_same_as_published_code_after_conversion():
    state = published_state(dim=12, depth=2, genes=7)
    net = M2OST(7, **CONVERTED).eval()
    net.load_state_dict(convert({f"module.{name}": tensor for name, tensor in state.items()}))
    batch = make_batch(2)
    with torch.no_grad():
        ours = net(batch).numpy()
    reference = Published(state, heads=2)
    theirs = np.stack([reference([crop[i].numpy() / 255 for crop in batch.crops]) for i in range(2)])
    assert np.ptp(theirs[0] - theirs[1]) > 0.05  # the crops matter, so agreement means something
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_conversion_leaves_the_given_tensors_alone():
    state = published_state(dim=12, depth=1, genes=7)
    converted = convert(state)
    for tensor in converted.values():
        tensor.zero_()
    assert all(tensor.any() for tensor in state.values())


def test_conversion_does_without_the_unused_norm():
    state = published_state(dim=12, depth=1, genes=7)
    without = {name: tensor for name, tensor in state.items() if ".0.norm." not in name}
    assert len(without) == len(state) - 2
    assert convert(without).keys() == convert(state).keys()


def test_conversion_names_what_is_missing_and_unknown():
    state = published_state(dim=12, depth=1, genes=7)
    del state["transformer.layers.0.2.to_k1.weight"]
    with pytest.raises(ValueError, match=r"missing \['transformer\.layers\.0\.2\.to_k1\.weight'\], unknown \[\]"):
        convert(state)
    state = published_state(dim=12, depth=1, genes=7) | {"fc.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['fc\.weight'\]"):
        convert(state)
    with pytest.raises(ValueError, match="Not a state dict"):
        convert({})


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("concat", [[0.710340, 1.734876, -1.169534], [0.698405, 1.628731, -1.146075]]),
        ("omega", [[2.858722, 1.529233, -2.455423], [2.805294, 1.412311, -2.527749]]),
    ],
)
def test_golden_values(fusion, expected):
    """Guards against silent change: what this network gave when it agreed with the published code."""
    with torch.no_grad():
        out = make_net(3, fusion=fusion)(make_batch(2))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4, atol=1e-5)


# Where tokens come from.


def test_one_pixel_moves_the_patches_that_hold_it():
    net = make_net()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = pixels.clone()
    changed[0, :, 25, 38] += 0.5
    with torch.no_grad():
        before, after = net.embed([pixels] * 3), net.embed([pixels, pixels, changed])
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    moved = (before[2] != after[2]).any(-1)[0].nonzero()[:, 0].tolist()
    # class token; rows of 4-pixel patches over 24:40, of 8-pixel patches over 16:48, of 16-pixel patches over 0:64
    assert moved == [1 + 0 * 4 + 3, 1 + 16 + 1 * 4 + 2, 1 + 32 + 1 * 4 + 2]


def test_coarse_patches_share_their_embedding_only_with_dpe():
    crop = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shared, own = make_net(), make_net(dpe=False)
        for net in (shared, own):
            for positions in net.embed.positions:
                positions.zero_()
        a, b, c = shared.embed([crop] * 3)
        torch.testing.assert_close(a[:, 1:], b[:, -16:])
        torch.testing.assert_close(a[:, 1:], c[:, -16:])
        a, b, c = own.embed([crop] * 3)
    assert (a[:, 1:] - b[:, 1:]).abs().min() > 0


@pytest.mark.parametrize("hparams", VARIANTS)
def test_every_level_counts_and_everything_learns(hparams):
    net, batch = make_net(**hparams), make_batch()
    out = net(batch)
    assert out.shape == (3, 5)
    for level in range(3):
        assert not torch.allclose(out, net(with_crop(batch, level, 255 - batch.crops[level])))
    out.square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("levels", [[0], [1], [0, 1], [0, 2], [1, 2], [0, 1, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("fusion", ["concat", "omega"])
def test_any_levels(levels, fusion):
    net = make_net(levels=levels, fusion=fusion, dim=16 * 2)
    batch = make_batch(2, n_levels=len(levels))
    out = net(batch)
    assert out.shape == (2, 5) and out.isfinite().all()
    assert not torch.allclose(out[0], out[1])
    assert any("ctmm" in name for name, _ in net.named_parameters()) == (len(levels) > 1)
    expected = tuple(LevelSpec(size=64, downsample=2**k) for k in levels)
    assert SPEC.crop_for(TINY | {"levels": levels}).levels == expected


@pytest.mark.parametrize("size", [16, 48, 80])
def test_any_size_that_fits(size):
    assert make_net(size=size)(make_batch(2, size=size)).isfinite().all()


@pytest.mark.parametrize("hparams", VARIANTS)
def test_batch_of_no_spots(hparams):
    none = Batch(crops=(torch.empty(0, 3, 64, 64, dtype=torch.uint8),) * 3, index=torch.arange(0))
    assert make_net(**hparams)(none).shape == (0, 5)


# CTMM by hand.


@pytest.mark.parametrize("fusion", ["concat", "omega"])
def test_cross_attention(fusion):
    """Every pair of levels on its own, as the equation has it."""
    net = make_net(fusion=fusion)
    ctmm, c = net.blocks[0].ctmm, net.config
    if ctmm.omega_MM is not None:
        assert M2OST(5, **TINY, fusion="omega").blocks[0].ctmm.omega_MM.eq(0.5).all()
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(2, n, c.dim, generator=g) for n in (4, 7, 9)]
    with torch.no_grad():
        ours = ctmm(x, None)
        q, k, v = zip(*((ctmm.qkv[i](ctmm.norm(x[i]))).chunk(3, -1) for i in range(3)), strict=True)
        for i in range(3):
            others = [j for j in range(3) if j != i]
            read = [plain_attention(q[i], k[j], v[j], heads=c.heads) for j in others]
            if fusion == "concat":
                expected = ctmm.out[i](torch.cat(read, -1))
            else:
                expected = sum(ctmm.omega_MM[i, j] * ctmm.out[2 * i + n](read[n]) for n, j in enumerate(others))
            torch.testing.assert_close(ours[i], expected)


def plain_attention(q, k, v, *, heads):
    """Head by head."""
    outs = []
    for qh, kh, vh in zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True):
        weights = torch.softmax(torch.einsum("bid,bjd->bij", qh, kh) / qh.shape[-1] ** 0.5, -1)
        outs.append(torch.einsum("bij,bjd->bid", weights, vh))
    return torch.cat(outs, -1)


# DropAttention.


@torch.no_grad()
def test_samples_are_drawn_with_drop_attention():
    net = make_net(attn_drop=0.3).eval()
    batch = make_batch()
    first, again, other = (net.sample(batch, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert bool((first != other).any(1).all())
    assert bool((first != net(batch)).any(1).all())


# The last block, of which only class tokens and means are read.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hparams", [*VARIANTS, {"levels": (0,)}])
def test_last_block_with_all_tokens_gives_the_same(monkeypatch, hparams, masked):
    net = make_net(**hparams)
    n_levels = len(net.config.levels)
    batch = make_batch(
        n_levels=n_levels, mask=[[True] * n_levels, *list(masks())[:2]] if masked and n_levels > 1 else None
    )
    with torch.no_grad():
        short = net(batch)
        monkeypatch.setattr(M2OST, "_reads_cls_only", False)
        torch.testing.assert_close(short, net(batch))


def test_nothing_is_left_out_where_something_is_dropped(monkeypatch):
    """As what is dropped of a token depends on the token, a mean can't stand for all."""
    digested = []
    for module in ("_attention", "_m2ost_ablations", "m2ost"):
        monkeypatch.setattr(f"st_predict.models.{module}.digest", lambda x: digested.append(x) or digest(x))
    for net in (make_net(drop=0.5).train(), make_net(pool="mean")):
        net(make_batch())
        assert digested == []
    make_net(drop=0.5)(make_batch())
    assert digested


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patches(memory_format):
    x = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).contiguous(memory_format=memory_format)
    for image in (x, x[..., 2:6, 2:6]):
        side = image.shape[-1]
        boxes = [(slice(r, r + 2), slice(c, c + 2)) for r in range(0, side, 2) for c in range(0, side, 2)]
        expected = torch.stack([image[:, :, *box].permute(0, 2, 3, 1).reshape(2, -1) for box in boxes], 1)
        assert torch.equal(patches(image, 2), expected)


@pytest.mark.parametrize("hparams", [*VARIANTS, {"attn_drop": 0.2, "drop": 0.1}])
def test_trains_under_autocast(hparams):
    net, batch = make_net(**hparams), make_batch(mask=[[True, True, True], [True, False, True], [False, True, True]])
    exact = net(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(batch)
        torch.testing.assert_close(rough.float(), exact, atol=0.05 * exact.abs().max().item(), rtol=0)
        net.train()(batch).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# Missing levels.


def masks() -> Iterator[list[bool]]:
    for bits in range(1, 7):
        yield [bool(bits >> level & 1) for level in range(3)]


@pytest.mark.parametrize("hparams", VARIANTS)
def test_pixels_of_missing_levels_do_not_matter(hparams):
    net, mask = make_net(**hparams), list(masks())
    batch = make_batch(len(mask), mask=mask)
    out = net(batch)
    for level in range(3):
        changed = (out - net(with_crop(batch, level, 255 - batch.crops[level]))).abs().amax(1) > 0
        assert changed.tolist() == [present[level] for present in mask]
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def weights_of_level(net: M2OST, i: int) -> list[torch.Tensor]:
    """Views of all weights that only this level writes to or is read through."""
    c, part = net.config, slice(i * net.config.dim, (i + 1) * net.config.dim)
    weights = [net.embed.positions[i], net.head.weight[:, part], *([] if c.dpe else net.embed.mlps[i].parameters())]
    for block in net.blocks:
        if c.itmm == "split":
            weights += block.itmm.layers[i].parameters()
        else:
            attention, (*_, last, _) = block.itmm.layer, block.mlp.layer
            weights += [attention.qkv.weight[:, part], attention.out.weight[part], last.weight[part]]
        if c.ctmm:
            reads = [layer.weight for layer in block.ctmm.out[i : i + 1]] if c.fusion == "concat" else []
            weights += [block.ctmm.qkv[i].weight, *reads]
            weights += [block.ctmm.omega_MM[:, i]] if c.fusion == "omega" else []
    return weights


@pytest.mark.parametrize("hparams", VARIANTS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_weights_of_a_missing_level_do_not_matter(hparams, level):
    net, mask = make_net(**hparams, depth=2), list(masks())
    batch = make_batch(len(mask), mask=mask)
    with torch.no_grad():
        before = net(batch)
        for weight in weights_of_level(net, level):
            weight.mul_(-1.5).add_(0.3)
        changed = (before - net(batch)).abs().amax(1) > 0
    assert changed.tolist() == [present[level] for present in mask]


@pytest.mark.parametrize("hparams", VARIANTS)
def test_mask_without_gaps_is_no_mask(hparams):
    net = make_net(**hparams)
    full, partial = [[True] * 3] * 3, [[True] * 3, [True, False, True], [True] * 3]
    expected = net(make_batch())
    assert torch.equal(net(make_batch(mask=full)), expected)
    torch.testing.assert_close(net(make_batch(mask=partial))[[0, 2]], expected[[0, 2]])


def test_spot_without_any_level_is_refused():
    with pytest.raises(ValueError, match="1 of 2 spots lack all levels"):
        make_net()(make_batch(2, mask=[[True] * 3, [False] * 3]))


# Input that does not fit.


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"size": 220}, r"size must be a multiple of 16, got 220; the nearest: \[208, 224\]"),
        ({"size": 10}, r"the nearest: \[16\]"),
        ({"size": 20, "patch": 4, "dim": 8}, r"size must be a multiple of 8, got 20; the nearest: \[16, 24\]"),
        ({"patch": 6, "size": 24}, "patch must be a multiple of 4, to be halved 2 times for level 2; got 6"),
        ({"dim": 10}, "dim must be a multiple of 4"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"dim": 24.0}, "dim must be a whole number, got 24.0"),
        ({"levels": []}, r"levels must be .* finest first, got \(\)"),
        ({"levels": [1, 0]}, r"finest first, got \(1, 0\)"),
        ({"levels": [0, 0]}, r"different whole numbers"),
        ({"levels": [-1, 0]}, r"levels\.0 must be at least 0, got -1"),
        ({"levels": [0, 5]}, "multiple of 32"),
        ({"itmm": "joint"}, r"equally many tokens per level, got \[16, 32, 48\]"),
        ({"ccmm": "ffn"}, "equally many tokens"),
        ({"fusion": "sum"}, "fusion must be 'concat' or 'omega', got 'sum'"),
        ({"pool": "max"}, "pool must be 'cls' or 'mean', got 'max'"),
        ({"drop": 1.0}, "drop must be below 1, got 1.0"),
        ({"attn_drop": -0.1}, "attn_drop must be at least 0, got -0.1"),
        ({"n_genes": 0}, "n_genes must be at least 1"),
    ],
)
def test_hyper_parameters_that_do_not_fit(hparams, message):
    with pytest.raises(ValueError, match=message):
        make_net(**hparams)


def test_unknown_hyper_parameter():
    with pytest.raises(ValueError, match=r"no fields \['width'\]; there are \['dpe'"):
        M2OST(5, width=3)


def test_a_way_out_among_the_hyper_parameters_is_named_where_these_are_given():
    with pytest.raises(ValueError, match=r"for level 2; got 10\. Set dpe to False in hparams=\.$"):
        SPEC.build_with(5, {**SPEC.tiny, "dim": 10})
    with pytest.raises(ValueError, match=r"for level 2; got 10\.$"):
        make_net(dim=10)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            make_batch(n_levels=2),
            r"reads crops \['torch.uint8 \(3, 3, 64, 64\)'(, '[^']*'){2}\], finest first; the batch has \['[^']*', '[^']*'\]",
        ),
        (
            make_batch(size=32),
            r"reads crops \['torch.uint8 \(3, 3, 64, 64\)', .* the batch has \['torch.uint8 \(3, 3, 32, 32\)'",
        ),
        (with_crop(make_batch(), 2, torch.rand(3, 3, 64, 64)), "the batch has .* 'torch.float32"),
        (make_batch(mask=[[True, True]] * 3), r"level_mask must be torch.bool of shape \(3, 3\)"),
        (make_batch(mask=[[1, 1, 1]] * 3), "level_mask must be torch.bool"),
    ],
)
def test_batch_that_does_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        make_net()(batch)


# What the package knows of it.


def test_spec():
    for hparams in (SPEC.hparams, SPEC.tiny, {"levels": [0, 2], "size": 64}):
        again = json.loads(json.dumps(dict(hparams)))
        assert M2OSTConfig(**again) == M2OSTConfig(**hparams)
    assert SPEC.crop_for(SPEC.hparams) == SPEC.crop
    assert [level.fov for level in SPEC.crop.levels] == [224, 448, 896]
    assert all(fine.fov < coarse.fov for fine, coarse in pairwise(SPEC.crop_for(SPEC.tiny).levels))
    assert M2OSTConfig(**SPEC.hparams) == M2OSTConfig()
    with torch.device("meta"):
        assert sum(p.numel() for p in SPEC.build(250, **SPEC.tiny).parameters()) < 1_000_000


def test_bfloat16_does_not_round_the_output():
    net, batch = make_net(), make_batch(6)
    net.start_at(torch.full((5,), 9.0))  # where bfloat16 has steps of 1/16
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(batch)
    with torch.inference_mode():
        full = net(batch)
    assert low.dtype == torch.float32
    assert (low != low.bfloat16().float()).any()
    torch.testing.assert_close(low, full, atol=0.02, rtol=0)
