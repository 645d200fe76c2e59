"""ViT: a transformer on the patches of one crop :cite:p:`Dosovitskiy2021`, with a linear layer to the genes.

Layers come from timm. The M2OST paper's comparison :cite:p:`Wang2025` names ViT-B/16 and does not say whether it starts
from ImageNet weights; here it starts from random ones, unless ``weights`` names pretrained ones
(``"augreg2_in21k_ft_in1k"``). If crops and pretraining differ in size, timm interpolates the positions.
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

__all__ = ["SPEC", "ViT", "convert"]

_TORCHVISION = {
    r"^class_token$": "cls_token",
    r"^encoder\.pos_embedding$": "pos_embed",
    r"^conv_proj\.": "patch_embed.proj.",
    r"^encoder\.layers\.encoder_layer_": "blocks.",
    r"\.ln_(\d)\.": r".norm\1.",
    r"\.self_attention\.in_proj_": ".attn.qkv.",
    r"\.self_attention\.out_proj\.": ".attn.proj.",
    r"\.mlp\.(0|linear_1)\.": ".mlp.fc1.",  # torchvision's files have the second
    r"\.mlp\.(3|linear_2)\.": ".mlp.fc2.",
    r"^encoder\.ln\.": "norm.",
    r"^heads\.head\.": "head.",
}


class ViT(TimmRegressor):
    """Network of ViT; for parameters see :class:`st_predict.models._timm.TimmRegressor`."""

    sized = True

    def __init__(self, n_genes: int, *, arch: str = "vit_base_patch16_224", **hparams: Any) -> None:
        super().__init__(n_genes, arch=arch, **hparams)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of torchvision or timm, of any width and depth, to :class:`ViT`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = rename(state, _TORCHVISION)
    depth = count_blocks(theirs, r"blocks\.(\d+)\.", stages=1)
    return from_timm(theirs, head="head", arch="vit_base_patch16_224", depth=depth and depth[0])


SPEC = ModelSpec(
    name="vit",
    summary="Transformer on the patches of one crop.",
    citation="Dosovitskiy2021",
    license="Apache-2.0 (github.com/google-research/vision_transformer)",
    build=ViT,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=IMAGENET,
    pixels_of=pixels_of,
    of_card=OF_TIMM,
    hparams={"arch": "vit_base_patch16_224", "weights": None, "size": 224},
    tiny={"size": 32, "arch_args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}},
    convert=convert,
)
