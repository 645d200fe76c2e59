"""M2OST on feature maps: which pixels a token sees, what learns, and what a checkpoint holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import st_predict as stp
from st_predict import _imagenet, checkpoints
from st_predict._imagenet import PIXELS, load_efficientnet_lite0
from st_predict.crops import Batch
from st_predict.models import _m2ost_tokens
from st_predict.models._m2ost_tokens import FeatureMaps
from st_predict.models.m2ost import M2OST, SPEC, M2OSTConfig
from st_predict.specs import IMAGENET, ModelCard, PixelSpec

if TYPE_CHECKING:
    from pathlib import Path

LITE = "efficientnet_lite0"
TINY = {**SPEC.tiny, "tokens": LITE}
MASKS = [[bool(bits >> level & 1) for level in range(3)] for bits in range(1, 8)]


@pytest.fixture(autouse=True)
def no_download(monkeypatch) -> None:
    """Building a network never asks the hub."""

    def refuse(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("outgoing traffic is disabled")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)


def make_net(n_genes: int = 5, *, pretrained: bool = True, **hparams: Any) -> M2OST:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        net = M2OST(n_genes, **TINY | hparams).eval()
    if pretrained:
        net.load_pretrained()
    net.pixel_spec = PIXELS
    return net


def make_batch(n: int = 3, *, n_levels: int = 3, size: int = 64, mask: list[list[bool]] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n_levels, n, 3, size // 8, size // 8, generator=generator)  # blots of 8 pixels, and noise
    noise = torch.rand(n_levels, n, 3, size, size, generator=generator)
    crops = (200 * coarse.repeat_interleave(8, 3).repeat_interleave(8, 4) + 50 * noise).to(torch.uint8)
    level_mask = None if mask is None else torch.tensor(mask)
    target = torch.rand(n, 5, generator=generator)
    return Batch(crops=tuple(crops), index=torch.arange(n), level_mask=level_mask, target=target)


def with_crop(batch: Batch, level: int, crop: torch.Tensor) -> Batch:
    crops = [crop if i == level else own for i, own in enumerate(batch.crops)]
    return Batch(crops=tuple(crops), index=batch.index, level_mask=batch.level_mask, target=batch.target)


def pixels_of(net: M2OST, batch: Batch) -> list[torch.Tensor]:
    return [net.pixels(crop) for crop in batch.crops]


# Number, order and position of the tokens.


def test_as_many_tokens_as_patches():
    for hparams in ({}, {"dpe": False}, {"levels": (0, 2)}, {"levels": (1,)}):
        on_pixels = M2OSTConfig(**hparams).n_tokens
        assert M2OSTConfig(tokens=LITE, **hparams).n_tokens == on_pixels
    assert M2OSTConfig(tokens=LITE).n_tokens == [14**2, 2 * 14**2, 3 * 14**2]
    assert M2OSTConfig(tokens=LITE, stage=32, size=192).n_tokens == [6**2, 2 * 6**2, 3 * 6**2]


@pytest.mark.parametrize(
    "hparams",
    [{}, {"dpe": False}, {"levels": [0, 2]}, {"levels": [2]}, {"levels": [0]}, {"levels": [0, 1, 2, 3]}, {"stage": 32}],
)
def test_shapes(hparams):
    net = make_net(pretrained=False, **hparams)
    n_levels = len(net.config.levels)
    batch = make_batch(2, n_levels=n_levels)
    tokens = net.embed(pixels_of(net, batch))
    assert [tuple(x.shape) for x in tokens] == [(2, n + 1, 24) for n in net.config.n_tokens]
    out = net(batch)
    assert out.shape == (2, 5)
    assert out.isfinite().all()
    assert not torch.allclose(out[0], out[1])


@torch.no_grad()
def test_tokens_are_maps_of_timm_projected():
    """Against the features_only networks of timm, cut and projected by hand."""
    net, batch = make_net(), make_batch(2)
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    theirs.load_state_dict(load_efficientnet_lite0().state_dict(), strict=False)
    for level, (x, pixels) in enumerate(zip(net.embed(pixels_of(net, batch)), pixels_of(net, batch), strict=True)):
        stride_4, stride_8, stride_16 = theirs(pixels)[1:4]
        regions = [stride_4[:, :, 6:10, 6:10], stride_8[:, :, 2:6, 2:6], stride_16][2 - level :]
        expected = [net.embed.cls.expand(2, -1, -1)]
        for region, (norm, linear) in zip(regions, list(net.embed.projections)[level::-1], strict=True):
            places = region.permute(0, 2, 3, 1).reshape(2, 16, -1)
            normed = F.layer_norm(places, places.shape[-1:], norm.weight, norm.bias)
            expected.append(normed @ linear.weight.T + linear.bias)
        torch.testing.assert_close(x, torch.cat(expected, 1) + net.embed.positions[level], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_centre_of_a_coarse_level_is_read_finely():
    """Of the finest tokens, those near the changed pixels move most; those far away do not move at all."""
    net, batch = make_net(size=128), make_batch(1, size=128)
    pixels = pixels_of(net, batch)[2]
    changed = pixels.clone()
    changed[0, :, 60:64, 68:72] = 1 - changed[0, :, 60:64, 68:72]  # row 15 and column 17 of the map with stride 4
    before, after = (net.embed([x] * 3)[2][0, 1 : 1 + 64].reshape(8, 8, -1) for x in (pixels, changed))
    moved = (before - after).norm(dim=-1)
    assert divmod(int(moved.argmax()), 8) == (15 - 12, 17 - 12)  # the centre begins at place 12
    assert moved[:, 0].max() < 0.01 * moved.max()
    corner = pixels.clone()
    corner[0, :, :8, :8] = 1 - corner[0, :, :8, :8]
    far = net.embed([corner] * 3)[2][0]
    assert torch.equal(far[1 : 1 + 64], before.reshape(64, -1))
    assert not torch.equal(far[-64], net.embed([pixels] * 3)[2][0, -64])  # the first of the whole crop sees it


def test_projections_are_shared_by_stride_with_dpe_only():
    crop = make_batch(1).crops[0]
    with torch.no_grad():
        shared, own = make_net(), make_net(dpe=False)
        for net in (shared, own):
            for positions in net.embed.positions:
                positions.zero_()
        a, b, c = shared.embed([shared.pixels(crop)] * 3)
        torch.testing.assert_close(a[:, 1:], b[:, -16:])
        torch.testing.assert_close(a[:, 1:], c[:, -16:])
        a, b, _ = own.embed([own.pixels(crop)] * 3)
    assert (a[:, 1:] - b[:, 1:]).abs().min() > 0


# Weights.


def test_pretrained_weights_are_those_of_the_package():
    net = make_net(pretrained=False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_pretrained()
    published, own = load_efficientnet_lite0().state_dict(), "embed.maps.backbone."
    for name, tensor in net.state_dict().items():
        expected = published[name.removeprefix(own)] if name.startswith(own) else before[name]
        assert torch.equal(tensor, expected), name
    assert any(name.startswith(own) and not torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert not any("blocks.5" in name or "conv_head" in name for name in net.state_dict())  # behind the last map


def test_weights_of_timm_by_tag(tmp_path, monkeypatch):
    published = timm.create_model("resnet18")
    asked = []
    monkeypatch.setattr(_m2ost_tokens, "fetch_weights", lambda name, **_: asked.append(name) or published)
    net = make_net(tokens="resnet18.tv_in1k", pretrained=False)
    assert asked == []  # building fetches nothing
    net.load_pretrained()
    assert asked == ["resnet18.tv_in1k"]
    for name, tensor in net.embed.maps.backbone.state_dict().items():
        assert torch.equal(tensor, published.state_dict()[name])


def test_no_network_says_how_to_go_on():
    with pytest.raises(ConnectionError, match=r"or use tokens 'efficientnet_lite0', whose weights are in a Python"):
        make_net(tokens="resnet18.tv_in1k")


def test_random_weights_are_kept_for_tuning():
    net = make_net(tokens="resnet18", tune=True, pretrained=False)
    before = net.embed.maps.backbone.conv1.weight.clone()
    net.load_pretrained()
    assert torch.equal(net.embed.maps.backbone.conv1.weight, before)


def test_pixels_are_those_of_the_backbone():
    assert SPEC.pixels_for(TINY) == PIXELS
    assert SPEC.pixels_for(SPEC.tiny) == PixelSpec() == SPEC.pixels
    assert SPEC.pixels_for({**TINY, "tokens": "resnet18", "tune": True}) == IMAGENET
    vit = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    found = SPEC.pixels_for({**TINY, "tokens": "vit_tiny_patch16_224.augreg_in21k"})
    assert (found.mean, found.std) == (tuple(vit.mean), tuple(vit.std)) != (IMAGENET.mean, IMAGENET.std)


# What learns.


def train_step(net: M2OST) -> None:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    net.train().loss(make_batch()).backward()
    optimizer.step()


def backbone_of(net: M2OST) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.embed.maps.backbone.state_dict().items()}


def test_a_frozen_backbone_does_not_change():
    net = make_net()
    before, out = backbone_of(net), net(make_batch())
    train_step(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone_of(net).items())
    assert all(p.grad is None and not p.requires_grad for p in net.embed.maps.parameters())
    others = [(name, p) for name, p in net.named_parameters() if not name.startswith("embed.maps.")]
    assert [name for name, p in others if p.grad is None or not p.grad.any()] == []
    assert not torch.allclose(net.eval()(make_batch()), out)


def test_a_tuned_backbone_learns_and_keeps_its_statistics():
    net = make_net(tune=True)
    before = backbone_of(net)
    train_step(net)
    after = backbone_of(net)
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert statistics
    assert {name for name in before if torch.equal(before[name], after[name])} == statistics


@pytest.mark.parametrize("tune", [False, True])
def test_training_mode_does_not_change_the_maps(tune):
    net, batch = make_net(tune=tune), make_batch()
    expected = net(batch)
    assert torch.equal(net.train()(batch), expected)  # no dropout, and BatchNorm by its stored statistics
    assert not net.embed.maps.backbone.training
    assert net.embed.training


def test_maps_of_a_frozen_backbone_need_no_graph():
    net, batch = make_net(), make_batch()
    assert not any(m.requires_grad for m in net.embed.maps(net.pixels(batch.crops[0]), 3))
    tuned = make_net(tune=True)
    assert all(m.requires_grad for m in tuned.embed.maps(tuned.pixels(batch.crops[0]), 3))


def test_trains_under_autocast():
    net, batch = make_net(), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net.train().loss(batch).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


# Missing levels.


@pytest.mark.parametrize(
    "hparams", [{}, {"fusion": "omega", "depth": 2}, {"pool": "mean", "dpe": False, "ccmm": "ffn"}]
)
def test_pixels_of_missing_levels_do_not_matter(hparams):
    net, batch = make_net(**hparams), make_batch(len(MASKS), mask=MASKS)
    out = net(batch)
    for level in range(3):
        changed = (out - net(with_crop(batch, level, 255 - batch.crops[level]))).abs().amax(1) > 0
        assert changed.tolist() == [present[level] for present in MASKS]
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


def test_missing_levels_have_no_effect_on_tuning():
    net, batch = make_net(tune=True).train(), make_batch(len(MASKS), mask=MASKS)
    changed = batch
    for level in range(3):
        hidden = ~batch.level_mask[:, level]
        crop = torch.where(hidden[:, None, None, None], 255 - batch.crops[level], batch.crops[level])
        changed = with_crop(changed, level, crop)
    losses = [net.loss(b) for b in (batch, changed)]
    assert torch.equal(*losses)
    grads = [torch.autograd.grad(loss, list(net.embed.maps.parameters())) for loss in losses]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


# Without tokens nothing changes.


@torch.no_grad()
@pytest.mark.parametrize(
    ("hparams", "expected"),
    [
        ({}, [-0.7430849, -0.6605893, 0.0245493, 1.0199213, -0.1845399]),
        ({"dpe": False}, [0.5853947, 0.7669370, 0.5241989, -0.0520479, 0.8279393]),
        ({"fusion": "omega", "levels": (0, 2)}, [-0.6889195, 1.3973658, 0.4240094, 0.5192633, -0.3432864]),
    ],
)
def test_networks_on_pixels_begin_and_predict_as_before(hparams, expected):
    """What initial weights and their prediction were before there were tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        net = M2OST(5, **SPEC.tiny | hparams).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, 64, 64)
    crops = tuple(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(len(net.config.levels))
    )
    out = net(Batch(crops=crops, index=torch.arange(3)))
    torch.testing.assert_close(out[0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_networks_on_pixels_have_the_names_of_before():
    names = {name.split(".")[1] for name in M2OST(5, **SPEC.tiny).state_dict() if name.startswith("embed.")}
    assert names == {"cls", "mlps", "positions"}
    assert SPEC.extension(SPEC.hparams) == ""


def test_the_rest_of_the_network_has_the_same_names_and_shapes():
    shapes = [
        {name: t.shape for name, t in M2OST(5, **hparams).state_dict().items() if not name.startswith("embed.")}
        for hparams in (SPEC.tiny, TINY)
    ]
    assert shapes[0] == shapes[1]


# Input that does not fit.


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"size": 48}, r"size must be a multiple of 32, got 48; the nearest: \[32, 64\]"),
        ({"size": 40, "dpe": False}, r"size must be a multiple of 16, got 40; the nearest: \[32, 48\]"),
        ({"stage": 6}, r"stage must be a multiple of 4, to be halved 2 times for level 2; got 6\. Set dpe to False"),
        ({"stage": 24, "size": 96}, r"strides of \[2, 4, 8, 16, 32\] px, and none of \[24, 12, 6\]"),
        (
            {"tokens": "resnet18"},
            r"'resnet18' names no weights.*timm has \[.*'tv_in1k'\]\. Add one .* set tune to True",
        ),
        ({"tokens": "resnet51.tv_in1k"}, r"no architecture 'resnet51'"),
        ({"tokens": "hf-hub:a/b"}, r"tokens must be 'efficientnet_lite0' or 'architecture.tag'.* got 'hf-hub:a/b'"),
        ({"tokens": ""}, "tokens must be a string that is not empty"),
        (
            {"tokens": None, "tune": True},
            r"stage and tune are only for tokens of a backbone, got stage 16 and tune True",
        ),
        ({"tokens": None, "stage": 8}, "got stage 8 and tune False with tokens None"),
        (
            {"tokens": "vit_tiny_patch16_224.augreg_in21k"},
            r"reads crops of 224 px only, got size 64\. Set size to 224 in hparams=",
        ),
        (
            {"tokens": "vit_tiny_patch16_224.augreg_in21k", "size": 224},
            r"feature maps with strides of \[16\] px, and none of \[8, 4\].*dpe to False, in hparams=",
        ),
        ({"itmm": "joint"}, r"equally many tokens per level, got \[16, 32, 48\]"),
    ],
)
def test_hyper_parameters_that_do_not_fit(hparams, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        SPEC.build_with(5, {**TINY, **hparams})


class Bare(nn.Linear):
    """A network of which timm knows no feature maps."""


@pytest.mark.parametrize("tokens", ["resnet18.tv_in1k", LITE])
def test_a_backbone_without_feature_maps_is_refused(monkeypatch, tokens):
    monkeypatch.setattr(_m2ost_tokens, "create_backbone", lambda _: Bare(1, 1))
    with pytest.raises(ValueError, match=rf"'{tokens}' has no feature maps in timm; use another backbone"):
        make_net(tokens=tokens, pretrained=False)


def test_maps_of_another_shape_are_refused():
    maps = FeatureMaps(LITE, strides=[16, 8], size=64, tune=False)
    assert [tuple(m.shape) for m in maps(torch.zeros(1, 3, 64, 64), 2)] == [(1, 112, 4, 4), (1, 40, 8, 8)]
    with pytest.raises(ValueError, match=r"\(1, 112, 5, 5\).* for crops of 72 px; strides of \[16, 8\] px need"):
        maps(torch.zeros(1, 3, 72, 72), 2)


@pytest.mark.parametrize(
    ("tokens", "hparams"),
    [
        ("resnet18.tv_in1k", {}),
        ("convnext_atto.d2_in1k", {}),
        ("densenet121.tv_in1k", {"levels": [0, 1]}),
        ("swin_tiny_patch4_window7_224.ms_in1k", {"size": 224}),
        ("vit_tiny_patch16_224.augreg_in21k", {"size": 224, "dpe": False}),
        ("mixer_b16_224.goog_in21k", {"size": 224, "dpe": False}),
    ],
)
def test_other_backbones(tokens, hparams):
    if tokens.startswith("densenet") and not hasattr(
        timm.models.DenseNet, "forward_intermediates"
    ):  # before timm 1.0.31
        with pytest.raises(ValueError, match="has no feature maps in timm; use another backbone"):
            M2OST(5, **{**TINY, **hparams, "tokens": tokens})
        return
    with torch.device("meta"):
        net = M2OST(5, **{**TINY, **hparams, "tokens": tokens}).eval()
        size, n_levels = net.config.size, len(net.config.levels)
        crops = (torch.empty(2, 3, size, size, dtype=torch.uint8),) * n_levels
        assert net(Batch(crops=crops, index=torch.arange(2))).shape == (2, 5)


# Training and checkpoints.


@pytest.fixture
def trained(tmp_path) -> tuple[Path, Any, Any]:
    (sdata,) = stp.datasets.simulate(1, 1, n_genes=5, shape=(1200, 1200)).sections.values()
    hparams = {**SPEC.tiny, "size": 32, "tokens": LITE}
    config = {"epochs": 1, "batch_size": 8, "device": "cpu", "precision": "float32"}
    panel = list(sdata["table"].var_names)
    result = stp.tl.train(
        [sdata], "m2ost", panel=panel, out=tmp_path / "run", hparams=hparams, config=config, min_counts=0
    )
    return result.checkpoint, result.card, sdata


def test_predicting_from_a_checkpoint_needs_no_package(trained, monkeypatch):
    path, card, sdata = trained
    monkeypatch.setattr(_imagenet, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError):
        load_efficientnet_lite0()
    stp.tl.predict(sdata, path, device="cpu", precision="float32")
    predicted = stp.get.frame(sdata, "pred_m2ost")
    assert len({tuple(row) for row in predicted.to_numpy()}) > 20
    published = load_file(path)
    monkeypatch.undo()
    expected = load_efficientnet_lite0().state_dict()
    stored = {k.removeprefix("embed.maps.backbone."): t for k, t in published.items() if ".backbone." in k}
    assert stored
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())
    assert card.pixels == PIXELS


def test_the_card_says_that_this_is_an_extension(trained):
    _, card, _ = trained
    assert ModelCard.of_file(trained[0]) == card
    assert "not part of the published M2OST" in card.training["extension"]
    assert "Apache-2.0" in card.training["extension"]
    assert card.hparams["tokens"] == LITE


def test_a_checkpoint_in_half_precision_has_the_same_backbone(tmp_path):
    net = make_net()
    card = ModelCard(model="m2ost", genes=tuple("abcde"), crop=net.crop, pixels=PIXELS, hparams=TINY)
    checkpoints.save(tmp_path / "half.safetensors", net, card, dtype=torch.float16)
    loaded, _ = checkpoints.load(tmp_path / "half.safetensors")
    backbone = loaded.embed.maps.backbone.state_dict()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in backbone_of(net).items())


@pytest.mark.parametrize("tokens", ["efficientnet_lite0", "resnet18", "resnet18.a1_in1k", None])
def test_a_card_may_name_a_backbone(tokens):
    SPEC.admit({"tokens": tokens})


@pytest.mark.parametrize("tokens", ["hf-hub:owner/name", "/tmp/folder", "resnet18.../x", "resnet18.a b", "no_such", 3])
def test_a_card_may_not_name_a_place(tokens):
    with pytest.raises(ValueError, match="tokens"):
        SPEC.admit({"tokens": tokens})
