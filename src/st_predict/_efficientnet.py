"""EfficientNet-Lite0 without timm, whose import takes longer than many predictions.

Tan and Le, EfficientNet: rethinking model scaling for convolutional neural networks, ICML 2019; inverted residuals of Sandler et al.,
MobileNetV2, CVPR 2018. Lite leaves out squeeze-and-excitation and uses ReLU6. Tensors and methods have the names of timm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STAGES", "EfficientNetLite0"]


class _Stage(NamedTuple):
    n_blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
EPS = 1e-3


class _Conv(nn.Conv2d):
    """Convolution with the padding of TensorFlow: an odd pixel lies on the right and at the bottom."""

    def __init__(self, n_in: int, n_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(n_in, n_out, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x_BCHW, self.weight, None, 1, kernel // 2, 1, self.groups)
        sides = reversed(x_BCHW.shape[2:])
        missing = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in sides]
        padded = F.pad(x_BCHW, [part for n in missing for part in (n // 2, n - n // 2)])
        return F.conv2d(padded, self.weight, None, stride, 0, 1, self.groups)


class _Norm(nn.BatchNorm2d):
    """Batch normalization, then ReLU6 if it is active."""

    def __init__(self, channels: int, *, active: bool = True) -> None:
        super().__init__(channels, eps=EPS)
        self.active = active

    def forward(self, x_BCHW: Tensor) -> Tensor:
        normed = super().forward(x_BCHW)
        return F.relu6(normed, inplace=True) if self.active else normed


class _Separable(nn.Module):
    """Block of the first stage: a convolution per channel, then one that mixes channels."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = _Conv(n_in, n_in, kernel, stride=stride, groups=n_in), _Norm(n_in)
        self.conv_pw, self.bn2 = _Conv(n_in, n_out), _Norm(n_out, active=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(self.bn1(self.conv_dw(x_BCHW))))


class _InvertedResidual(nn.Module):
    """Block of the other stages: more channels, a convolution per channel, fewer channels; added to its input if it can be."""

    def __init__(self, n_in: int, n_out: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = n_in * stage.expansion
        self.skips = stride == 1 and n_in == n_out
        self.conv_pw, self.bn1 = _Conv(n_in, inner), _Norm(inner)
        self.conv_dw, self.bn2 = _Conv(inner, inner, stage.kernel, stride=stride, groups=inner), _Norm(inner)
        self.conv_pwl, self.bn3 = _Conv(inner, n_out), _Norm(n_out, active=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x_BCHW))))
        new = self.bn3(self.conv_pwl(inner))
        return new + x_BCHW if self.skips else new


class EfficientNetLite0(nn.Module):
    """The network, with random weights.

    Parameters
    ----------
    num_classes
        Number of outputs; 0 gives the 1280 features before the last layer.
    """

    num_features = head_hidden_size = HEAD

    def __init__(self, *, num_classes: int = 0) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = _Conv(3, STEM, 3, stride=2), _Norm(STEM)
        blocks, channels, self.feature_info, reduction = [], STEM, [], 2
        for number, stage in enumerate(STAGES):
            blocks.append(_blocks_of(stage, channels))
            channels, reduction = stage.channels, reduction * stage.stride
            if number + 1 == len(STAGES) or STAGES[number + 1].stride > 1:  # the last stage before maps become coarser
                info = {"stage": number + 1, "reduction": reduction, "module": f"blocks.{number}", "num_chs": channels}
                self.feature_info.append(info)
        self.blocks = nn.Sequential(*blocks)
        self.conv_head: nn.Module = _Conv(channels, HEAD)
        self.bn2: nn.Module = _Norm(HEAD)
        self.classifier = nn.Linear(HEAD, num_classes) if num_classes else nn.Identity()
        for layer in self.modules():
            _draw(layer)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Outputs of the last layer, ``(B, num_classes)``, or features, ``(B, 1280)``."""
        maps = self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(x_BCHW)))))
        return self.classifier(F.adaptive_avg_pool2d(maps, 1).flatten(1))

    def forward_intermediates(
        self,
        x_BCHW: Tensor,
        *,
        indices: list[int],
        intermediates_only: bool,  # of timm's signature: nothing else is asked for
        stop_early: bool = True,  # later blocks change nothing
        output_fmt: str = "NCHW",
        norm: bool = False,
    ) -> list[Tensor]:
        """Maps behind the stages of ``feature_info`` with these indices, in their order."""
        ends = [self.feature_info[index]["stage"] for index in sorted(indices)]
        maps, found = self.bn1(self.conv_stem(x_BCHW)), []
        for number, stage in enumerate(self.blocks[: ends[-1]], start=1):
            maps = stage(maps)
            if number in ends:
                found.append(maps)
        return found

    def prune_intermediate_layers(
        self, indices: list[int], *, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out the layers behind the last of these maps."""
        self.blocks = self.blocks[: self.feature_info[max(indices)]["stage"]]
        if prune_norm:
            self.conv_head, self.bn2 = nn.Identity(), nn.Identity()
        if prune_head:
            self.classifier = nn.Identity()
        return indices


def _blocks_of(stage: _Stage, n_in: int) -> nn.Sequential:
    """Blocks of a stage; the first one makes the maps coarser."""
    widths = [n_in, *[stage.channels] * stage.n_blocks]
    strides = [stage.stride, *[1] * (stage.n_blocks - 1)]
    if stage.expansion == 1:
        parts = [_Separable(a, b, stage.kernel, s) for a, b, s in zip(widths, widths[1:], strides, strict=False)]
        return nn.Sequential(*parts)
    return nn.Sequential(
        *(_InvertedResidual(a, b, stage, s) for a, b, s in zip(widths, widths[1:], strides, strict=False))
    )


def _draw(layer: nn.Module) -> None:
    """Draw weights as the publication does: variance 2 / fan-out of convolutions."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.is_meta:  # drawing without memory imports the compiler of torch
        return
    if isinstance(layer, nn.Conv2d):
        fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
        nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_out))
    elif isinstance(layer, nn.Linear):
        bound = 1 / math.sqrt(layer.weight.shape[0])
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)
