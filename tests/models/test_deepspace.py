"""DeepSpaCE against torchvision, its published crop and loss, and its own promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from st_predict.crops import Batch
from st_predict.models.deepspace import SPEC, DeepSpaCE, convert, crop_of
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = dict(SPEC.tiny)
PRETRAINED = {"weights": "tv_in1k"}


def make_batch(n: int = 4, *, size: int = 64) -> Batch:
    rng = np.random.default_rng(0)
    crop = torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))
    target = torch.from_numpy(rng.normal(0, 3, (n, 5)).astype(np.float32))
    return Batch(crops=(crop,), index=torch.arange(n), target=target)


def make_net(**hparams: Any) -> DeepSpaCE:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return DeepSpaCE(5, **TINY | hparams)


@pytest.mark.parametrize(("arch", "n_params"), [("vgg16", 135_284_794), ("densenet121", 7_210_106)])
def test_number_of_parameters(arch, n_params):
    with torch.device("meta"):
        assert sum(p.numel() for p in DeepSpaCE(250, arch=arch).parameters()) == n_params


@pytest.mark.parametrize(("arch", "rates"), [("vgg16", {0.5}), ("densenet121", {0.0})])
def test_dropout_is_that_of_torchvision(arch, rates):
    with torch.device("meta"):
        network = DeepSpaCE(5, arch=arch)
    assert {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)} == rates


# The crop


def test_crop_is_as_wide_as_published():
    radius_px, extra = 75, 150
    published_px = 2 * np.ceil(radius_px * (1 + extra / 100))
    um_per_px = 55 / (2 * radius_px)
    crop = crop_of(field=2.5, spot_um=55)
    (level,) = crop.levels
    assert (level.size, crop.mpp) == (224, pytest.approx(137.5 / 224))
    assert level.fov * crop.mpp / um_per_px == pytest.approx(published_px, abs=1)


def test_crop_of_a_network_of_another_size_shows_the_same_tissue():
    small, usual = crop_of(size=112, field=2.5, spot_um=100), crop_of(field=2.5, spot_um=100)
    assert small.levels[0].fov * small.mpp == usual.levels[0].fov * usual.mpp == 250


def test_crop_of_native_pixels():
    assert crop_of() == SPEC.crop
    assert SPEC.crop.mpp is None


@pytest.mark.parametrize("hparams", [{"field": 2.5}, {"spot_um": 55}, dict(SPEC.original.hparams)])
def test_diameter_of_a_spot_is_never_guessed(hparams):
    with pytest.raises(ValueError, match=r"both field.*spot_um.*55 for Visium, 100 for .*hparams="):
        SPEC.crop_for({**SPEC.hparams, **hparams})


# What is trained, and how


def test_smooth_l1_by_hand():
    network, batch = make_net(loss="smooth_l1").eval(), make_batch()
    error = np.abs((network(batch).detach() - batch.target).numpy())
    assert (error < 1).any()
    assert (error > 1).any()
    expected = np.where(error < 1, error**2 / 2, error - 0.5).mean()
    assert float(network.loss(batch).detach()) == pytest.approx(expected, rel=1e-5)
    assert float(make_net().eval().loss(batch).detach()) == pytest.approx((error**2).mean(), rel=1e-5)


def step(network: DeepSpaCE) -> set[str]:
    """Names of what a step of training has changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-2, weight_decay=1e-2)
    network.loss(make_batch()).backward()
    optimizer.step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_trains_the_last_layer_alone():
    assert step(make_net(frozen=True, **PRETRAINED)) == {"head.weight", "head.bias"}
    network = make_net(**PRETRAINED)
    assert step(network) == set(network.state_dict())


def test_frozen_keeps_dropout_in_training():
    network, batch = (
        make_net(frozen=True, **PRETRAINED, arch_args={**TINY["arch_args"], "drop_rate": 0.5}),
        make_batch(),
    )
    assert not torch.equal(network.train()(batch), network(batch))
    assert torch.equal(network.eval()(batch), network(batch))


def test_starts_at_the_mean():
    network = make_net()
    network.start_at(torch.arange(5.0))
    assert torch.equal(network.head.bias, torch.arange(5.0))


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"loss": "l1"}, r"loss must be one of \('mse', 'smooth_l1'\), got 'l1'"),
        ({"frozen": True}, 'got weights None. Name them with weights="tv_in1k", or train the whole network'),
    ],
)
def test_unfit_hyper_parameters(hparams, message):
    with pytest.raises(ValueError, match=message):
        DeepSpaCE(5, **hparams)


def test_original_target_is_scaled_by_gene():
    target = SPEC.original.target
    assert target == TargetSpec(transform="log1p_total", total=1e4, over="all", scale="minmax")
    assert target.limits is None


# Weights of others


def vgg16() -> nn.Module:
    """VGG16 of torchvision, with weights that are cheap to make."""
    vgg = torchvision.models.vgg
    with torch.device("meta"):
        network = vgg.VGG(vgg.make_layers(vgg.cfgs["D"]), num_classes=5)
    return fill(network.to_empty(device="cpu"))


def fill(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
        elif tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def load(arch: str, state: dict[str, torch.Tensor]) -> DeepSpaCE:
    with torch.device("meta"):
        network = DeepSpaCE(5, arch=arch)
    network = network.to_empty(device="cpu").eval()
    network.load_state_dict(convert(state), assign=True)
    network.pixel_spec = SPEC.pixels
    return network


@pytest.mark.parametrize(
    ("arch", "make", "size"),
    [
        ("vgg16", vgg16, 224),
        ("densenet121", lambda: fill(torchvision.models.densenet121(num_classes=5)), 64),
        ("densenet121", lambda: fill(timm.create_model("densenet121", num_classes=5)), 64),
    ],
    ids=["torchvision-vgg16", "torchvision-densenet121", "timm-densenet121"],
)
@pytest.mark.slow
@torch.no_grad()
def test_converted_weights_predict_the_same(arch: str, make: Callable[[], nn.Module], size: int):
    theirs, batch = make(), make_batch(1, size=size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPEC.pixels.mean, SPEC.pixels.std))
    expected = theirs((batch.crops[0] / 255 - mean) / std)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(load(arch, theirs.state_dict())(batch), expected, rtol=1e-3, atol=1e-3)


def test_names_of_timm_for_vgg():
    with torch.device("meta"):
        theirs, ours = timm.create_model("vgg16", num_classes=5), DeepSpaCE(5)
    converted = convert(theirs.state_dict())
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in ours.state_dict().items()}


@pytest.mark.parametrize(("arch", "n_names"), [("vgg16", 32), ("densenet121", 727)])
def test_what_is_no_such_state_dict(arch, n_names):
    with torch.device("meta"):
        state = torchvision.models.get_model(arch).state_dict()
    assert len(state) == n_names
    state["attention.weight"] = state.pop("classifier.6.bias" if arch == "vgg16" else "classifier.bias")
    message = rf"{arch}, .* 1 are missing \['head.bias'\], 1 unknown \['backbone.attention.weight'\]"
    with pytest.raises(ValueError, match=message):
        convert(state)
    with pytest.raises(ValueError, match=r"compared with vgg16, .* 32 are missing .*, 0 unknown"):
        convert({})
