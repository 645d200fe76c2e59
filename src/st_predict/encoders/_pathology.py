"""Pathology encoders whose weights are on the hub of Hugging Face, and conversions of their state dicts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from st_predict.encoders._spec import EncoderSpec, square_crop
from st_predict.specs import IMAGENET, PixelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PATHOLOGY"]

_RENAMED = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm.", "norm."),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state dict of ``ViTModel`` or ``Dinov2Model`` of Hugging Face transformers into one of timm."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("pooler.") or name == "embeddings.mask_token" or ".attention.attention." in name:
            continue
        for theirs, ours in _RENAMED:
            name = name.replace(theirs, ours)  # noqa: PLW2901
        found[name] = tensor
    for name in state:
        if ".attention.attention.query." in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            block = name.replace("encoder.layer.", "blocks.").replace("attention.attention.query", "attn.qkv")
            found[block] = torch.cat(parts)
    return found


_BIOPTIMUS = PixelSpec(mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))

# An architecture of timm that has the layers of the network is named, and what differs in it.
_AT_20X = partial(EncoderSpec, crop=square_crop(224, 0.5), pixels=IMAGENET)
PATHOLOGY = (
    _AT_20X(
        name="uni",
        source="hf-hub:MahmoodLab/UNI",
        arch="vit_large_patch16_224",
        arch_args={"init_values": 1e-5},
        n_features=1024,
        license="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Chen et al. 2024, https://doi.org/10.1038/s41591-024-02857-3",
    ),
    _AT_20X(
        name="uni2-h",
        source="hf-hub:MahmoodLab/UNI2-h",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_args={"img_size": 224, "depth": 24, "reg_tokens": 8},
        n_features=1536,
        license="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Chen et al. 2024, https://doi.org/10.1038/s41591-024-02857-3",
    ),
    _AT_20X(
        name="virchow",
        source="hf-hub:paige-ai/Virchow",
        arch="vit_giant_patch14_dinov2",
        arch_args={"img_size": 224, "embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 5.3375},
        pool="cls_mean",
        n_features=2560,
        license="Apache-2.0",
        gated=True,
        citation="Vorontsov et al. 2024, https://doi.org/10.1038/s41591-024-03141-0",
    ),
    _AT_20X(
        name="virchow2",
        source="hf-hub:paige-ai/Virchow2",
        arch="vit_giant_patch14_dinov2",
        arch_args={
            "img_size": 224,
            "embed_dim": 1280,
            "depth": 32,
            "num_heads": 16,
            "mlp_ratio": 5.3375,
            "reg_tokens": 4,
        },
        pool="cls_mean",
        n_features=2560,
        license="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Zimmermann et al. 2024, https://doi.org/10.48550/arXiv.2408.00738",
    ),
    _AT_20X(
        name="h-optimus-0",
        source="hf-hub:bioptimus/H-optimus-0",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_args={"img_size": 224},
        pixels=_BIOPTIMUS,
        n_features=1536,
        license="Apache-2.0",
        gated=True,
        citation="Saillard et al. 2024, https://github.com/bioptimus/releases",
    ),
    _AT_20X(
        name="h0-mini",
        source="hf-hub:bioptimus/H0-mini",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_args={"img_size": 224, "embed_dim": 768, "depth": 12, "num_heads": 12},
        pixels=_BIOPTIMUS,
        pool="cls_mean",
        n_features=1536,
        license="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Filiot et al. 2025, https://doi.org/10.48550/arXiv.2501.16239",
    ),
    _AT_20X(
        name="gigapath",
        source="hf-hub:prov-gigapath/prov-gigapath",
        arch="vit_giant_patch14_dinov2",
        arch_args={"img_size": 224, "patch_size": 16},
        n_features=1536,
        license="Apache-2.0, with conditions",
        gated=True,
        citation="Xu et al. 2024, https://doi.org/10.1038/s41586-024-07441-w",
    ),
    _AT_20X(
        name="phikon",
        source="hf-hub:owkin/phikon",
        arch="vit_base_patch16_224",
        norm_eps=1e-12,
        n_features=768,
        convert=_from_transformers,
        license="Owkin, non-commercial",
        citation="Filiot et al. 2023, https://doi.org/10.1101/2023.07.21.23292757",
    ),
    _AT_20X(
        name="phikon-v2",
        source="hf-hub:owkin/phikon-v2",
        arch="vit_large_patch16_224",
        arch_args={"init_values": 1e-5},
        n_features=1024,
        convert=_from_transformers,
        license="Owkin, non-commercial",
        citation="Filiot et al. 2024, https://doi.org/10.48550/arXiv.2409.09173",
    ),
)
