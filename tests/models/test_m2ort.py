"""M2ORT against its published size, outputs of the published code, and a computation by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from torch.utils.flop_counter import FlopCounterMode

from st_predict.crops import Batch, iter_batches, plan_crops
from st_predict.io import open_pyramid
from st_predict.models._checks import of_variant
from st_predict.models.m2ort import M2ORT, SPEC, VARIANTS, Attention, M2ORTConfig, convert
from st_predict.specs import LevelSpec

TINY = dict(SPEC.tiny)


def make_net(**hparams: Any) -> M2ORT:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return M2ORT(5, **TINY | hparams).eval()


def make_batch(n: int = 2, *, size: int = 64, n_levels: int = 3, mask: list[list[bool]] | None = None) -> Batch:
    g = torch.Generator().manual_seed(0)
    crops = [
        torch.randint(0, 256, (n, 3, size >> k, size >> k), dtype=torch.uint8, generator=g) for k in range(n_levels)
    ]
    level_mask = None if mask is None else torch.tensor(mask)
    return Batch(crops=tuple(crops), index=torch.arange(n), level_mask=level_mask)


@pytest.mark.parametrize(
    ("hparams", "n_params", "gmacs"),
    [
        ({}, 7_620_874, 1.71),
        ({"variant": "base"}, 17_137_946, 3.77),
        ({"variant": "large"}, 55_485_754, 11.88),
    ],
)
def test_size_of_the_variants(hparams, n_params, gmacs):
    """Counted in the published code; on tensors without content, so that attention is computed in products."""
    with torch.device("meta"), torch.no_grad():
        net = M2ORT(250, **hparams).eval()
        with FlopCounterMode(display=False) as counter:
            net(make_batch(1, size=224))
    assert sum(p.numel() for p in net.parameters()) == n_params
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.005)


# The published code.


def published_state() -> dict[str, torch.Tensor]:
    """Names, shapes and order of the published code, two blocks for crops of 32 pixels; drawn one after another."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embedding": (1, 5, 72), "cls_token": (1, 1, 72)}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for i, (pixels, hidden) in enumerate([(768, 72), (192, 36), (48, 18)], start=1):
        layer(f"to_patch_embedding{i}.1", pixels)
        layer(f"to_patch_embedding{i}.2", hidden, pixels)
        layer(f"to_patch_embedding{i}.4", 24, hidden)
        layer(f"to_patch_embedding{i}.5", 24)
    layer("transformer.norm", 72)
    for b in range(2):
        attention, mlp = f"transformer.layers.{b}.0", f"transformer.layers.{b}.1.net"
        layer(f"{attention}.norm", 72)
        shapes |= {f"{attention}.to_qkv{i}.weight": (128, 24) for i in (1, 2, 3)}
        layer(f"{attention}.to_out.0", 72, 128)
        layer(f"{mlp}.0", 72)
        layer(f"{mlp}.1", 48, 72)
        layer(f"{mlp}.4", 72, 48)
    layer("mlp_head", 7, 72)
    g = torch.Generator().manual_seed(0)
    is_norm = {name: name.endswith("weight") and len(shape) == 1 for name, shape in shapes.items()}
    return {name: 0.2 * torch.randn(shape, generator=g) + is_norm[name] for name, shape in shapes.items()}


PUBLISHED = {"dim": 24, "depth": 2, "heads": 2, "head_dim": 64, "mlp_dim": 48, "size": 32}
# What the published code gave for these weights and these crops, which it was shown with those that Pillow shrinks.
OUTPUTS = [
    [-0.638672, -1.904679, 0.681035, 4.074143, -1.587529, 1.170172, 2.658230],
    [-0.523401, -1.083831, 0.786339, 2.835667, -0.330138, 1.240428, 2.585216],
    [-1.428163, -1.045825, 1.024244, 2.460230, -2.585233, 3.428109, 5.370675],
]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_same_as_published_code_after_conversion(prefix):
    """From an image that is stored at one resolution, as published."""
    net = M2ORT(7, **PUBLISHED).eval()
    net.load_state_dict(convert({f"{prefix}{name}": tensor for name, tensor in published_state().items()}))
    crops = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    image = Image2DModel.parse(np.concatenate(crops, axis=1), dims=("y", "x", "c"), c_coords=["r", "g", "b"])
    reader = open_pyramid(SpatialData(images={"he": image}), "he")
    xy = np.array([(16.0, 16.0), (48.0, 16.0), (80.0, 16.0)])
    plan = plan_crops(xy, SPEC.crop_for(PUBLISHED), downsamples=reader.downsamples)
    (batch,) = iter_batches(reader, plan, batch_size=None)
    with torch.no_grad():
        np.testing.assert_allclose(net(batch).numpy(), OUTPUTS, atol=5e-5)


def test_conversion_names_what_is_missing_and_unknown():
    state = published_state()
    del state["transformer.layers.1.0.to_qkv2.weight"]
    with pytest.raises(ValueError, match=r"missing \['transformer\.layers\.1\.0\.to_qkv2\.weight'\], unknown \[\]"):
        convert(state)
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['fc\.weight'\]"):
        convert(published_state() | {"fc.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="Not a state dict of the published M2ORT"):
        convert({})


# By hand.


def test_the_finest_level_asks_the_next_is_compared_and_the_coarsest_is_read():
    c = M2ORTConfig(dim=4, depth=1, heads=2, mlp_dim=4, head_dim=3)
    layer, g = Attention(c), torch.Generator().manual_seed(0)
    x = torch.randn(6, 12, generator=g)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
        ours = layer(x[None])[0].numpy()
    w = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    x = x.double().numpy()
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * w["norm.weight"] + w[
        "norm.bias"
    ]
    q = normed[:, 0:4] @ w["qkv.0.weight"].T
    k = normed[:, 4:8] @ w["qkv.1.weight"].T
    v = normed[:, 8:12] @ w["qkv.2.weight"].T
    heads = (slice(0, 3), slice(3, 6))
    read = np.concatenate([softmax(q[:, h] @ k[:, h].T / np.sqrt(3), axis=1) @ v[:, h] for h in heads], axis=1)
    np.testing.assert_allclose(ours, read @ w["out.weight"].T + w["out.bias"], atol=1e-5)


def test_all_levels_show_the_same_field_of_view():
    assert SPEC.crop.levels == (
        LevelSpec(size=224, downsample=1),
        LevelSpec(size=112, downsample=2),
        LevelSpec(size=56, downsample=4),
    )
    assert {level.fov for level in SPEC.crop.levels} == {224}
    assert SPEC.crop_for({"variant": "large"}) == SPEC.crop


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_token_has_the_same_place_at_all_levels(level):
    """What changes at a place of one level changes the channels of that level, in the token of that place."""
    net = make_net()
    crops = [crop.float() / 255 for crop in make_batch(1).crops]
    with torch.no_grad():
        before = net.tokens(crops)
        assert before.shape == (1, 1 + 4 * 4, 3 * 12)
        patch = 16 >> level
        crops[level][0, :, 2 * patch : 3 * patch, patch : 2 * patch] += torch.rand(3, patch, patch)
        rows, channels = torch.nonzero((net.tokens(crops) - before)[0], as_tuple=True)
    assert set(rows.tolist()) == {1 + 2 * 4 + 1}
    assert set(channels.tolist()) == set(range(12 * level, 12 * (level + 1)))


@torch.no_grad()
def test_every_level_matters():
    net, batch = make_net(), make_batch()
    before = net(batch)
    for level in range(3):
        crops = list(batch.crops)
        crops[level] = 255 - crops[level]
        assert (net(Batch(crops=tuple(crops), index=batch.index)) - before).abs().amax(1).min() > 1e-4


# Input that does not fit.


def test_a_missing_level_is_refused():
    net = make_net()
    assert torch.equal(net(make_batch(mask=[[True] * 3] * 2)), net(make_batch()))
    with pytest.raises(ValueError, match=r"1 of 2 spots lack a level, .* train without level_drop"):
        net(make_batch(mask=[[True] * 3, [True, True, False]]))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            make_batch(n_levels=2),
            r"\(2, 3, 16, 16\)'\], .* the batch has \['torch.uint8 \(2, 3, 64, 64\)', '[^']* 32\)'\]",
        ),
        (make_batch(size=32), r"\(2, 3, 64, 64\)', .* the batch has \['torch.uint8 \(2, 3, 32, 32\)'"),
        (Batch(crops=tuple(c.float() for c in make_batch().crops), index=torch.arange(2)), "has .'torch.float32"),
    ],
)
def test_crops_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        make_net()(batch)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"variant": "huge"}, r"variant must be one of \('small', 'base', 'large'\), got 'huge'"),
        ({"size": 230}, "size must be a multiple of 16, the side of a patch, got 230"),
        ({"patch": 14}, "patch must be a multiple of 4, to be halved twice, got 14"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"dim": 1.5}, "dim must be a whole number, got 1.5"),
    ],
)
def test_hyper_parameters_that_do_not_fit(hparams, message):
    with pytest.raises(ValueError, match=message):
        of_variant(VARIANTS, **hparams)


def test_unknown_hyper_parameter():
    with pytest.raises(ValueError, match=r"no fields \['width'\]; there are \['dim'"):
        M2ORT(5, width=3)
