"""ResNet50: a residual convolutional network :cite:p:`He2016` on one crop, with a linear layer to the genes.

Layers come from timm. The M2OST paper's comparison :cite:p:`Wang2025` does not say whether it starts from ImageNet weights;
here it starts from random ones, unless ``weights`` names pretrained ones (``"tv_in1k"``, torchvision's). With random weights,
the last normalisation of a block starts at zero; in torchvision at one (``arch_args={"zero_init_last": False}``).
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

__all__ = ["SPEC", "ResNet50", "convert"]


class ResNet50(TimmRegressor):
    """Network of ResNet50; for parameters see :class:`st_predict.models._timm.TimmRegressor`."""

    def __init__(self, n_genes: int, *, arch: str = "resnet50", **hparams: Any) -> None:
        super().__init__(n_genes, arch=arch, **hparams)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of torchvision or timm, of 50 layers or more, to :class:`ResNet50`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = rename(state, {})  # both use the same names
    layers = count_blocks(theirs, r"layer(\d)\.(\d+)\.", stages=4)
    return from_timm(theirs, head="fc", arch="resnet50", layers=layers)


SPEC = ModelSpec(
    name="resnet50",
    summary="Residual convolutional network on one crop.",
    citation="He2016",
    license="BSD-3-Clause (github.com/pytorch/vision)",
    build=ResNet50,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=IMAGENET,
    pixels_of=pixels_of,
    of_card=OF_TIMM,
    hparams={"arch": "resnet50", "weights": None, "size": 224},
    tiny={"size": 32, "arch_args": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}},
    convert=convert,
)
