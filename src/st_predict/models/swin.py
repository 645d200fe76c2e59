"""Swin: a transformer in windows that shift from layer to layer :cite:p:`Liu2021`, with a linear layer to the genes.

Layers come from timm, with the stochastic depth of the publication and of torchvision (0.2; 0.1 in timm). The M2OST paper's
comparison :cite:p:`Wang2025` names Swin-T and does not say whether it starts from ImageNet weights; here it starts from random
ones, unless ``weights`` names pretrained ones (``"ms_in1k"``). If a stage has fewer tokens than a window (crops below
224 px), windows shrink to it; torchvision pads them with zeros.
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

__all__ = ["SPEC", "Swin", "convert"]

_TORCHVISION = {
    r"^.*\.(relative_position_index|attn_mask)$": "",  # computed, not learned
    r"^features\.0\.0\.": "patch_embed.proj.",
    r"^features\.0\.2\.": "patch_embed.norm.",
    **{rf"^features\.{2 * i + 1}\.": f"layers.{i}.blocks." for i in range(4)},
    **{rf"^features\.{2 * i}\.": f"layers.{i}.downsample." for i in range(1, 4)},
    r"\.mlp\.0\.": ".mlp.fc1.",
    r"\.mlp\.3\.": ".mlp.fc2.",
    r"^head\.(weight|bias)$": r"head.fc.\1",
}


class Swin(TimmRegressor):
    """Network of Swin; for parameters see :class:`st_predict.models._timm.TimmRegressor`."""

    sized = True

    def __init__(self, n_genes: int, *, arch: str = "swin_tiny_patch4_window7_224", **hparams: Any) -> None:
        super().__init__(n_genes, arch=arch, **hparams)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of torchvision or timm, of any width and depth, to :class:`Swin`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = rename(state, _TORCHVISION)
    depths = count_blocks(theirs, r"layers\.(\d)\.blocks\.(\d+)\.", stages=4)
    return from_timm(theirs, head="head.fc", arch="swin_tiny_patch4_window7_224", depths=depths)


SPEC = ModelSpec(
    name="swin",
    summary="Transformer in shifted windows on one crop.",
    citation="Liu2021",
    license="MIT (github.com/microsoft/Swin-Transformer)",
    build=Swin,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=IMAGENET,
    pixels_of=pixels_of,
    of_card=OF_TIMM,
    hparams={
        "arch": "swin_tiny_patch4_window7_224",
        "weights": None,
        "size": 224,
        "arch_args": {"drop_path_rate": 0.2},
    },
    tiny={
        "size": 32,
        "arch_args": {"window_size": 4, "embed_dim": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 4]},
    },
    convert=convert,
)
