"""Our EfficientNet-Lite0 is that of timm, and default weights need no timm."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

from st_predict._backbones import create_backbone
from st_predict._efficientnet import EfficientNetLite0
from st_predict._imagenet import ARCH

WITHOUT = """
import sys
import st_predict as stp
sys.modules["timm"] = None
sdata = stp.datasets.toy()
stp.tl.predict(sdata, model="m2ost", mpp=0.688, device="cpu")
print(sorted({"torchvision", "torch._dynamo", "sklearn", "scipy.stats"} & sys.modules.keys()))
"""


def twins(num_classes: int = 0) -> tuple[torch.nn.Module, EfficientNetLite0]:
    """The network of timm and ours, with the same random weights and statistics."""
    theirs = timm.create_model(ARCH, pretrained=False, num_classes=num_classes)
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    ours = EfficientNetLite0(num_classes=num_classes)
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [64, 97])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_outputs_are_those_of_timm(num_classes: int, size: int, training: bool) -> None:
    x_BCHW = torch.randn(2, 3, size, size + 3)
    with torch.no_grad():
        theirs, ours = (network.train(training)(x_BCHW) for network in twins(num_classes))
    assert ours.shape == (2, num_classes or 1280)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("indices", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_feature_maps_are_those_of_timm(indices: list[int]) -> None:
    x_BCHW, networks = torch.randn(2, 3, 96, 96), twins()
    assert networks[0].feature_info == networks[1].feature_info
    with torch.no_grad():
        whole = [
            network.forward_intermediates(x_BCHW, indices=indices, intermediates_only=True) for network in networks
        ]
        for network in networks:
            network.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
        pruned = networks[1].forward_intermediates(x_BCHW, indices=indices, stop_early=True, intermediates_only=True)
    assert list(networks[0].state_dict()) == list(networks[1].state_dict())
    for theirs, ours, again in zip(*whole, pruned, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, again)


def test_random_weights_are_spread_like_those_of_timm() -> None:
    theirs, ours = (
        timm.create_model(ARCH, pretrained=False, num_classes=5).state_dict(),
        EfficientNetLite0(num_classes=5).state_dict(),
    )
    assert list(theirs) == list(ours)
    for name, tensor in ours.items():
        if tensor.is_floating_point() and tensor.numel() > 2000:
            assert float(tensor.std()) == pytest.approx(float(theirs[name].std()), rel=0.1), name


def test_other_arguments_are_left_to_timm() -> None:
    assert isinstance(create_backbone(ARCH), EfficientNetLite0)
    assert type(create_backbone(ARCH, drop_rate=0.1)).__module__ == "timm.models.efficientnet"


@pytest.mark.slow
def test_default_weights_import_no_timm() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
