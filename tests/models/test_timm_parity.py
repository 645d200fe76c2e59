"""Backbones of timm against torchvision's own networks, and the way that weights come into them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn
from torchvision.models import convnext, densenet, resnet, swin_transformer, vision_transformer

from st_predict import checkpoints
from st_predict._backbones import create_backbone, fetch_weights
from st_predict.crops import Batch
from st_predict.models import get_spec
from st_predict.models._timm import count_blocks
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable

    from st_predict.models import SpotModel

N_GENES = 5


@dataclass(frozen=True)
class Twin:
    """One of our models, and the same network of torchvision: the published one, and one small enough to compute."""

    n_params: int  # with 250 genes, design of the M2OST comparison
    published: Callable[..., nn.Module]
    small: Callable[[], nn.Module]
    hparams: dict[str, Any]  # of the small one


TWINS = {
    "resnet50": Twin(
        24_020_282,
        torchvision.models.resnet50,
        lambda: resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], num_classes=N_GENES, width_per_group=4),
        {"size": 64, "arch_args": {"layers": [1, 2, 1, 1], "base_width": 4}},
    ),
    "vit": Twin(
        85_990_906,
        torchvision.models.vit_b_16,
        lambda: vision_transformer.VisionTransformer(32, 8, 3, 2, 24, 96, num_classes=N_GENES),
        {"size": 32, "arch_args": {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}},
    ),
    "swin": Twin(
        27_711_604,
        torchvision.models.swin_t,
        lambda: swin_transformer.SwinTransformer(
            [4, 4], 12, [2, 1, 1, 2], [1, 2, 4, 4], window_size=[2, 2], num_classes=N_GENES
        ),
        {
            "size": 64,
            "arch_args": {"embed_dim": 12, "depths": [2, 1, 1, 2], "num_heads": [1, 2, 4, 4], "window_size": 2},
        },
    ),
    "convnext": Twin(
        28_012_378,
        torchvision.models.convnext_tiny,
        lambda: convnext.ConvNeXt(
            [convnext.CNBlockConfig(*c) for c in ((8, 12, 1), (12, 16, 2), (16, 24, 1), (24, None, 1))],
            num_classes=N_GENES,
        ),
        {"size": 64, "arch_args": {"dims": [8, 12, 16, 24], "depths": [1, 2, 1, 1]}},
    ),
    "stnet": Twin(
        7_210_106,
        torchvision.models.densenet121,
        lambda: densenet.DenseNet(4, (1, 2, 1, 2), num_init_features=8, num_classes=N_GENES),
        {"size": 64, "arch_args": {"growth_rate": 4, "block_config": [1, 2, 1, 2]}},
    ),
}
TAGS = {
    "resnet50": "tv_in1k",
    "vit": "augreg2_in21k_ft_in1k",
    "swin": "ms_in1k",
    "convnext": "fb_in1k",
    "stnet": "tv_in1k",
}

each = pytest.mark.parametrize("name", list(TWINS))


def fill(network: nn.Module) -> nn.Module:
    """Give every weight and every statistic a value of its own, so that no two layers can be taken for each other."""
    g = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=g)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() + 0.5)
        elif name.endswith(("layer_scale", "gamma")) or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(1 + 0.2 * noise)
        elif tensor.ndim == 1 or name.endswith(("bias_table", "pos_embedding", "pos_embed", "_token")):
            tensor.copy_(0.3 * noise)
        else:
            tensor.copy_(noise * math.sqrt(2 / tensor[0].numel()))
    return network.eval()


def ours(name: str, state: dict[str, torch.Tensor], **hparams: Any) -> SpotModel:
    spec = get_spec(name)
    network = spec.build(N_GENES, **{**TWINS[name].hparams, **hparams}).eval()
    network.load_state_dict(spec.convert(state))
    return network


def small_of_timm(name: str, **arguments: Any) -> nn.Module:
    hparams = TWINS[name].hparams
    size = {"img_size": hparams["size"]} if name in {"vit", "swin"} else {}
    return fill(timm.create_model(get_spec(name).hparams["arch"], **{**size, **hparams["arch_args"], **arguments}))


def make_batch(size: int) -> Batch:
    """Three spots, each with colours of its own."""
    colours = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 256
    crop = nn.functional.interpolate(colours, size, mode="bicubic").clip(0, 255).byte()
    return Batch(crops=(crop,), index=torch.arange(3), target=torch.zeros(3, N_GENES))


@torch.no_grad()
def assert_equal_outputs(network: SpotModel, theirs: nn.Module, size: int) -> None:
    batch = make_batch(size)
    expected = theirs(batch.crops[0] / 255)
    tolerance = 1e-5 * float(expected.abs().max())
    assert float(expected.std(0).min()) > 100 * tolerance  # the image matters
    torch.testing.assert_close(network(batch), expected, rtol=0, atol=tolerance)


# Weights of torchvision and of timm.


@each
def test_outputs_are_those_of_torchvision(name):
    theirs = fill(TWINS[name].small())
    network = ours(name, theirs.state_dict())
    assert all(
        p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4
    )  # as is faster, and of no consequence to the numbers
    assert_equal_outputs(network, theirs, TWINS[name].hparams["size"])


@each
def test_outputs_are_those_of_timm(name):
    theirs = small_of_timm(name, num_classes=N_GENES)
    assert_equal_outputs(ours(name, theirs.state_dict()), theirs, TWINS[name].hparams["size"])


@each
def test_names_and_shapes_are_those_of_the_published_networks(name):
    spec, twin = get_spec(name), TWINS[name]
    with torch.device("meta"):
        network = spec.build(250, **spec.hparams)
        published = [twin.published(num_classes=250), timm.create_model(spec.hparams["arch"], num_classes=250)]
        states = [spec.convert(theirs.state_dict()) for theirs in published]
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert all({name: tensor.shape for name, tensor in state.items()} == shapes for state in states)
    assert sum(p.numel() for p in network.parameters()) == twin.n_params


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [("vit", ".mlp.0.", ".mlp.linear_1."), ("vit", ".mlp.3.", ".mlp.linear_2."), ("stnet", ".norm1.", ".norm.1.")],
)
def test_names_in_the_files_of_torchvision(name, pattern, replacement):
    theirs = fill(TWINS[name].small())
    old = {key.replace(pattern, replacement): tensor for key, tensor in theirs.state_dict().items()}
    assert old.keys() != theirs.state_dict().keys()
    assert_equal_outputs(ours(name, old), theirs, TWINS[name].hparams["size"])


@pytest.mark.parametrize("name", ["resnet50", "stnet"])
def test_state_dicts_of_several_gpus_and_of_old_versions(name):
    theirs = fill(TWINS[name].small())
    old = {f"module.{key}": t for key, t in theirs.state_dict().items() if "num_batches_tracked" not in key}
    network = ours(name, old)
    assert_equal_outputs(network, theirs, TWINS[name].hparams["size"])
    assert all(int(t) == 0 for key, t in network.state_dict().items() if "num_batches_tracked" in key)


@each
def test_state_dicts_of_other_networks_are_refused(name):
    spec = get_spec(name)
    state = TWINS[name].small().state_dict()
    last = list(state)[-1]
    renamed = spec.convert(state)
    with pytest.raises(ValueError, match=r"missing \['[^']+'\], unknown \[\]"):
        spec.convert({key: tensor for key, tensor in state.items() if key != last})
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['bank'\]"):
        spec.convert({**state, "bank": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"missing \[.*\] and \d+ more, unknown \[.*\] and \d+ more"):
        spec.convert(renamed)  # ours already
    with pytest.raises(ValueError, match="missing"):
        spec.convert({})


def test_blocks_are_counted_by_stage():
    names = [f"layer{stage}.{block}.{part}" for stage, n in ((1, 3), (2, 11)) for block in range(n) for part in "ab"]
    assert count_blocks(names, r"layer(\d)\.(\d+)\.", stages=2) == [3, 11]
    assert count_blocks(names, r"layer(\d)\.(\d+)\.", stages=4) is None
    assert count_blocks(names, r"layer(\d+)\.", stages=1) == [2]


# Sizes and other hyper-parameters.


@pytest.mark.parametrize(("name", "size"), [("vit", 48), ("swin", 96), ("convnext", 75), ("resnet50", 50)])
def test_other_sizes_of_crops(name, size):
    """Also of some that windows or strides do not divide."""
    theirs = TWINS[name].small()
    if name == "vit":
        theirs = vision_transformer.VisionTransformer(size, 8, 3, 2, 24, 96, num_classes=N_GENES)
    theirs = fill(theirs)
    network = ours(name, theirs.state_dict(), size=size)
    assert get_spec(name).crop_for({"size": size}).levels[0].size == size
    assert_equal_outputs(network, theirs, size)


@pytest.mark.parametrize(
    ("name", "hparams", "message"),
    [
        ("vit", {"size": 225}, r"size must be a multiple of 16 .* got 225; the nearest: \[224, 240\]"),
        ("swin", {"size": 240}, r"size must be a multiple of 32 .* got 240; the nearest: \[224, 256\]"),
        ("vit", {"size": 8}, "size must be at least 16"),
        ("convnext", {"size": 31}, "size must be at least 32 for convnext_tiny, got 31"),
        ("resnet50", {"arch": "resnet51"}, r"no architecture 'resnet51'; similar are \['resnet5"),
        ("resnet50", {"arch": "resnet50.tv_in1k"}, "arch must have no tag, got 'resnet50.tv_in1k'"),
        ("vit", {"arch": "resnet50"}, "cannot make 'resnet50' with the arguments {'img_size': 224}"),
        ("resnet50", {"arch_args": {"laeyrs": [1]}}, "laeyrs"),
        ("vit", {"arch_args": {"num_heads": 5}}, r"timm cannot make 'vit_base.*'num_heads': 5"),
        ("vit", {"arch_args": {"embed_dim": "wide"}}, r"timm cannot make 'vit_base.*'embed_dim': 'wide'"),
        ("resnet50", {"arch_args": {"layers": 3}}, r"timm cannot make 'resnet50'.*'layers': 3"),
    ],
)
def test_hyper_parameters_that_do_not_fit(name, hparams, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        get_spec(name).build(N_GENES, **hparams)


def test_weights_in_place_of_an_architecture_are_to_be_given_apart():
    with pytest.raises(ValueError, match=r"give arch 'resnet50' and weights 'tv_in1k' in hparams=\.$"):
        get_spec("resnet50").build_with(N_GENES, {"arch": "resnet50.tv_in1k"})


# Weights of timm, by the name of their tag.


def no_download(*_: Any, **__: Any) -> None:
    raise LocalEntryNotFoundError("Cannot find the file in the cache, and outgoing traffic is disabled.\nMore.")


@pytest.fixture
def offline(monkeypatch) -> None:
    """No network: what huggingface_hub then raises, at once."""
    monkeypatch.setattr("timm.models._hub.hf_hub_download", no_download)


@each
def test_weights_are_loaded_bit_for_bit(name, tmp_path, offline):
    published = small_of_timm(name)  # with a last layer for the 1000 classes of ImageNet
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "model.safetensors")}}
    hparams = {**TWINS[name].hparams, "weights": TAGS[name]}
    hparams["arch_args"] = {**hparams["arch_args"], **overlay}
    network = get_spec(name).build(N_GENES, **hparams)
    expected = {key: t for key, t in published.state_dict().items() if key in network.backbone.state_dict()}
    assert len(expected) == len(network.backbone.state_dict()) >= len(published.state_dict()) - 2
    before = {key: t.clone() for key, t in network.state_dict().items()}
    network.load_pretrained()
    assert any(not torch.equal(before[f"backbone.{key}"], t) for key, t in expected.items())
    assert all(torch.equal(network.backbone.state_dict()[key], t) for key, t in expected.items())
    assert torch.equal(network.head.weight, before["head.weight"])


def test_weights_come_from_the_cache_of_timm(tmp_path, monkeypatch):
    """As huggingface_hub lays it out, found although there is no network."""
    published = small_of_timm("resnet50")
    repository = tmp_path / "models--timm--resnet50.tv_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(published.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    network = get_spec("resnet50").build(N_GENES, **TWINS["resnet50"].hparams, weights="tv_in1k")
    network.load_pretrained()
    assert torch.equal(network.backbone.conv1.weight, published.conv1.weight)


def test_positions_of_other_sizes_are_interpolated(tmp_path):
    published = small_of_timm("vit")  # made for 4 x 4 patches
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    arguments = {
        **TWINS["vit"].hparams["arch_args"],
        "pretrained_cfg_overlay": {"file": str(tmp_path / "model.safetensors")},
    }
    network = get_spec("vit").build(N_GENES, weights=TAGS["vit"], size=64, arch_args=arguments)
    network.load_pretrained()
    taken, given = network.backbone.pos_embed, published.pos_embed
    assert taken.shape == (1, 1 + 8 * 8, 24)
    assert torch.equal(taken[:, 0], given[:, 0])
    torch.testing.assert_close(taken[0, 1:].mean(0), given[0, 1:].mean(0), rtol=0, atol=0.05)


def test_random_weights_need_no_download(offline):
    network = get_spec("resnet50").build(N_GENES, **TWINS["resnet50"].hparams)
    before = network.backbone.conv1.weight.clone()
    network.load_pretrained()
    assert torch.equal(network.backbone.conv1.weight, before)


def test_no_network_says_how_to_go_on(offline):
    network = get_spec("resnet50").build(N_GENES, **TWINS["resnet50"].hparams, weights="tv_in1k")
    with pytest.raises(ConnectionError, match=r"'resnet50.tv_in1k'.*Cannot find the file in the cache") as raised:
        network.load_pretrained()
    message = str(raised.value)
    assert all(word in message for word in ("HF_HOME", "HF_HUB_OFFLINE=1", "weights: None"))
    assert "More" not in message


def test_other_errors_are_shown_as_they_are(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="conv1"):
        fetch_weights("resnet18.tv_in1k", pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")})


def test_unknown_weights_are_refused_with_the_list():
    network = get_spec("stnet").build(N_GENES, **TWINS["stnet"].hparams, weights="imagenet")
    with pytest.raises(ValueError, match=r"no weights 'imagenet' of 'densenet121'; it has \['ra_in1k', 'tv_in1k'\]"):
        network.load_pretrained()


def test_pixels_are_those_of_the_weights():
    spec = get_spec("vit")
    assert spec.pixels_for(spec.hparams) == spec.pixels
    assert spec.pixels.mean == (0.485, 0.456, 0.406)
    augreg = spec.pixels_for({**spec.hparams, "weights": "augreg2_in21k_ft_in1k"})
    assert (augreg.mean, augreg.std) == ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="no weights 'imagenet'"):
        spec.pixels_for({**spec.hparams, "weights": "imagenet"})
    with pytest.raises(ValueError, match="no architecture 'vit_bse'"):
        spec.pixels_for({"arch": "vit_bse", "weights": "imagenet"})


@torch.no_grad()
def test_a_checkpoint_brings_its_own_weights(tmp_path, offline):
    spec = get_spec("resnet50")
    hparams = {**TWINS["resnet50"].hparams, "weights": "tv_in1k"}
    network = fill(spec.build(2, **hparams))
    card = ModelCard(
        model="resnet50",
        genes=("GNAS", "FASN"),
        crop=spec.crop_for(hparams),
        pixels=spec.pixels_for({"arch": "resnet50", **hparams}),
        hparams=hparams,
    )
    checkpoints.save(tmp_path / "model.safetensors", network, card)
    loaded, _ = checkpoints.load(tmp_path / "model.safetensors")
    network.pixel_spec = card.pixels
    assert torch.equal(loaded(make_batch(64)), network(make_batch(64)))


def test_a_backbone_has_no_last_layer():
    with torch.device("meta"):
        backbone = create_backbone("resnet18")
    assert isinstance(backbone.fc, nn.Identity)
