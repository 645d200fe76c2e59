"""ConvNeXt: a convolutional network built like a transformer :cite:p:`Liu2022`, with a linear layer to the genes.

Layers come from timm, with the stochastic depth of the publication and of torchvision (0.1; none in timm). The M2OST
paper's comparison :cite:p:`Wang2025` names ConvNeXt-T and does not say whether it starts from ImageNet weights; here it
starts from random ones, unless ``weights`` names pretrained ones (``"fb_in1k"``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_predict.models._base import ModelSpec
from st_predict.models._card import OF_TIMM
from st_predict.models._timm import TimmRegressor, count_blocks, crop_of, from_timm, pixels_of, rename
from st_predict.specs import IMAGENET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["SPEC", "ConvNeXt", "convert"]

_TORCHVISION = {
    r"^features\.0\.": "stem.",
    **{rf"^features\.{2 * i + 1}\.": f"stages.{i}.blocks." for i in range(4)},
    **{rf"^features\.{2 * i}\.": f"stages.{i}.downsample." for i in range(1, 4)},
    r"\.block\.0\.": ".conv_dw.",
    r"\.block\.2\.": ".norm.",
    r"\.block\.3\.": ".mlp.fc1.",
    r"\.block\.5\.": ".mlp.fc2.",
    r"\.layer_scale$": ".gamma",
    r"^classifier\.0\.": "head.norm.",
    r"^classifier\.2\.": "head.fc.",
}


class ConvNeXt(TimmRegressor):
    """Network of ConvNeXt; for parameters see :class:`st_predict.models._timm.TimmRegressor`."""

    def __init__(self, n_genes: int, *, arch: str = "convnext_tiny", **hparams: Any) -> None:
        super().__init__(n_genes, arch=arch, **hparams)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of torchvision or timm, of any width and depth, to :class:`ConvNeXt`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = rename(state, _TORCHVISION)
    theirs |= {
        name: tensor.flatten() for name, tensor in theirs.items() if name.endswith(".gamma")
    }  # (C, 1, 1) to (C,)
    depths = count_blocks(theirs, r"stages\.(\d)\.blocks\.(\d+)\.", stages=4)
    return from_timm(theirs, head="head.fc", arch="convnext_tiny", depths=depths)


SPEC = ModelSpec(
    name="convnext",
    summary="Convolutional network built like a transformer, on one crop.",
    citation="Liu2022",
    license="MIT (github.com/facebookresearch/ConvNeXt)",
    build=ConvNeXt,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=IMAGENET,
    pixels_of=pixels_of,
    of_card=OF_TIMM,
    hparams={"arch": "convnext_tiny", "weights": None, "size": 224, "arch_args": {"drop_path_rate": 0.1}},
    tiny={"size": 32, "arch_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
    convert=convert,
)
