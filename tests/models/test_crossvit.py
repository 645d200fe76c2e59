"""CrossViT against its published size, timm's, and a computation by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import timm
import torch
from scipy.special import erf, softmax
from timm.models.crossvit import CrossVit as TimmCrossViT
from torch.utils.flop_counter import FlopCounterMode

from st_predict.crops import Batch
from st_predict.models._checks import of_variant
from st_predict.models.crossvit import SPEC, VARIANTS, CrossViT, Embedding, Exchange, Stage, convert

TINY = dict(SPEC.tiny)


def make_batch(n: int = 2, *, size: int = 64) -> Batch:
    g = torch.Generator().manual_seed(0)
    crop = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=g)
    return Batch(crops=(crop,), index=torch.arange(n))


@torch.no_grad()
def fill(layer: torch.nn.Module) -> torch.nn.Module:
    """Draw all weights anew, so large that all of them show: those of norms are around 1."""
    g = torch.Generator().manual_seed(0)
    for name, p in layer.named_parameters():
        drawn = torch.randn(p.shape, generator=g)
        is_norm = p.ndim == 1 and name.endswith("weight")
        p.copy_(0.3 * drawn + is_norm if p.ndim in {1, 3} else 2 * drawn / p[0].numel() ** 0.5)
    return layer.eval()


@pytest.mark.parametrize(
    ("hparams", "n_params"),
    [
        ({}, 26_422_772),
        ({"variant": "tiny"}, 6_797_300),
        ({"variant": "9"}, 8_263_796),
        ({"variant": "15"}, 27_094_964),
        ({"variant": "18"}, 42_765_908),
        ({"variant": "base"}, 104_159_732),
    ],
)
def test_size_of_the_variants(hparams, n_params):
    """Counted in the published code."""
    with torch.device("meta"):
        net = CrossViT(250, **hparams)
    assert sum(p.numel() for p in net.parameters()) == n_params
    assert SPEC.crop_for(hparams) == SPEC.crop


def test_multiplications_of_a_spot():
    """On tensors without content, so that attention is computed in products."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        CrossViT(250).eval()(make_batch(1, size=224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(5.615, abs=0.001)


# Timm's, which has been written by others and reads the published weights.


FEW = {"embed_dim": (12, 24), "depth": ((1, 2, 0),) * 2, "num_heads": (3, 3), "mlp_ratio": (3.0, 3.0, 1.0)}


def make_timm(sizes: tuple[int, int] = (60, 64)) -> TimmCrossViT:
    """Timm's network, which resizes the crop for each branch, as small as ours."""
    scales = tuple(size / sizes[1] for size in sizes)
    return TimmCrossViT(img_size=sizes[1], img_scale=scales, patch_size=(12, 16), num_classes=5, qkv_bias=True, **FEW)


def state_of(reference: TimmCrossViT, *, published: bool) -> dict[str, torch.Tensor]:
    state = reference.state_dict()
    if not published:
        return state
    return {
        name.replace("pos_embed_", "pos_embed.").replace("cls_token_", "cls_token."): t for name, t in state.items()
    }


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    ("hparams", "make"),
    [
        ({**TINY, "mlp_ratio": 3}, make_timm),
        ({**TINY, "mlp_ratio": 3, "sizes": [72, 64]}, partial(make_timm, (72, 64))),
        ({"variant": "tiny"}, partial(timm.create_model, "crossvit_tiny_240", num_classes=5)),
    ],
)
@torch.no_grad()
def test_same_as_timm_after_conversion(hparams, make, published):
    reference, net = fill(make()), CrossViT(5, **hparams).eval()
    net.load_state_dict(convert(state_of(reference, published=published)))
    net.pixel_spec = SPEC.pixels
    batch = make_batch(size=net.config.crop.levels[0].size)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs = reference((batch.crops[0] / 255 - mean) / std)
    assert (theirs[0] - theirs[1]).abs().max() > 0.01  # the crops matter, so agreement means something
    torch.testing.assert_close(net(batch), theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_those_of_timm(variant):
    with torch.device("meta"):
        reference = timm.create_model(f"crossvit_{variant}_240", num_classes=250)
        net = CrossViT(250, variant=variant)
    converted = convert(reference.state_dict())
    assert {name: t.shape for name, t in converted.items()} == {name: t.shape for name, t in net.state_dict().items()}
    assert {layer.num_heads for layer in reference.modules() if hasattr(layer, "num_heads")} == {net.config.heads}


def test_conversion_names_what_is_missing_and_unknown():
    state = state_of(make_timm(), published=True)
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['patch_embed.0.proj.2.weight'\]"):
        convert(state | {"patch_embed.0.proj.2.weight": torch.zeros(1)})
    del state["blocks.1.fusion.0.attn.wq.bias"]
    with pytest.raises(ValueError, match=r"missing \['blocks\.1\.fusion\.0\.attn\.wq\.bias'\], unknown \[\]"):
        convert(state)
    with pytest.raises(ValueError, match="Not a state dict of the published CrossViT"):
        convert({})


# By hand.


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6) * weight + bias


def test_a_class_token_reads_the_patches_of_the_other_branch():
    layer = fill(Exchange(4, 6, heads=2))
    g = torch.Generator().manual_seed(1)
    cls, patches = torch.randn(1, 4, generator=g), torch.randn(5, 6, generator=g)
    with torch.no_grad():
        ours = layer(cls[None], patches[None])[0].numpy()
    w = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def project(name: str, x: np.ndarray) -> np.ndarray:
        x = norm(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"])
        return linear(f"{name}.2", x * (1 + erf(x / np.sqrt(2))) / 2)

    there = project("there", cls.double().numpy())
    x = norm(np.concatenate([there, patches.double().numpy()]), w["norm.weight"], w["norm.bias"])
    q, k, v = linear("q", x[:1]), linear("k", x), linear("v", x)
    heads = (slice(0, 3), slice(3, 6))
    read = np.concatenate([softmax(q[:, h] @ k[:, h].T / np.sqrt(3), axis=1) @ v[:, h] for h in heads], axis=1)
    np.testing.assert_allclose(ours, project("back", there + linear("out", read)), atol=1e-5)


@torch.no_grad()
def test_branches_exchange_at_the_same_time_and_leave_patches_alone():
    stage = fill(Stage(of_variant(VARIANTS, **TINY)))
    g = torch.Generator().manual_seed(1)
    x = [torch.randn(2, n, dim, generator=g) for n, dim in ((26, 12), (17, 24))]
    small, large = (blocks(branch) for blocks, branch in zip(stage.blocks, x, strict=True))
    for i, (own, other) in enumerate([(small, large), (large, small)]):
        out = stage(x)[i]
        assert torch.equal(out[:, 1:], own[:, 1:])
        torch.testing.assert_close(out[:, :1], stage.exchanges[i](own[:, :1], other[:, 1:]))


@torch.no_grad()
def test_small_patches_are_of_the_enlarged_crop():
    """Cubic with a = -0.75, as of OpenCV, whose weights are worked out here for every pixel."""
    layer = Embedding(1, 15, 1)
    layer.patches.weight.copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    for p in (layer.patches.bias, layer.cls, layer.positions):
        p.zero_()
    image = np.random.default_rng(0).random((14, 14))
    at = (np.arange(15) + 0.5) * 14 / 15 - 0.5
    weights = np.zeros((15, 14))
    for row, place in enumerate(at):
        for column in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[row, min(max(column, 0), 13)] += cubic(abs(place - column))
    tokens = layer(torch.from_numpy(np.stack([image, image * 0, image * 0])[None]).float())[0, 1:, 0]
    np.testing.assert_allclose(tokens.numpy().reshape(15, 15), weights @ image @ weights.T, atol=1e-5)


def cubic(d: float) -> float:
    a = -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4)


@torch.no_grad()
def test_large_patches_are_of_the_crop_itself():
    layer = Embedding(1, 8, 4)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = layer(image) - layer.positions
    by_hand = [(image[0, :, y : y + 4, x : x + 4] * layer.patches.weight[0]).sum() for y in (0, 4) for x in (0, 4)]
    torch.testing.assert_close(tokens[0, 1:, 0], torch.stack(by_hand) + layer.patches.bias)
    torch.testing.assert_close(tokens[0, 0], layer.cls[0, 0])


@torch.no_grad()
def test_training_starts_at_the_mean():
    """Which both branches have to know, as their predictions are averaged."""
    net = CrossViT(3, **TINY).eval()
    for head in net.heads:
        head.weight.zero_()
    net.start_at(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(net(make_batch()), torch.tensor([[1.0, 2.0, 3.0]] * 2))


# Input that does not fit.


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (make_batch(size=60), r"\(2, 3, 64, 64\)'\], finest first; the batch has \['torch.uint8 \(2, 3, 60, 60\)'\]"),
        (Batch(crops=make_batch().crops * 2, index=torch.arange(2)), r"the batch has .* 64\)', 'torch.uint8"),
        (Batch(crops=(make_batch().crops[0] / 255,), index=torch.arange(2)), "has .'torch.float32"),
    ],
)
def test_crops_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        CrossViT(5, **TINY)(batch)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"variant": "huge"}, r"variant must be one of \('tiny', '9', 'small', '15', '18', 'base'\), got 'huge'"),
        ({"sizes": [224, 224]}, r"sizes must be multiples of the patches \(12, 16\), got \(224, 224\)"),
        ({"sizes": [224]}, r"sizes\.1 is missing"),
        ({"heads": 5}, r"dims must be multiples of the 5 heads, got \(192, 384\)"),
        ({"stages": 0}, "stages must be at least 1, got 0"),
    ],
)
def test_hyper_parameters_that_do_not_fit(hparams, message):
    with pytest.raises(ValueError, match=message):
        of_variant(VARIANTS, **hparams)


def test_unknown_hyper_parameter():
    with pytest.raises(ValueError, match=r"no fields \['width'\]; there are \['dims'"):
        CrossViT(5, width=3)
