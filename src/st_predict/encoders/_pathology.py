"""Pathology encoders with weights on the hub of Hugging Face, and conversions of their state dicts.

The entries were checked against public material that can be read without an account: the authors' READMEs and configurations,
and the code of TRIDENT (https://github.com/mahmoodlab/TRIDENT), eva (https://github.com/kaiko-ai/eva) and LazySlide
(https://github.com/rendeirolab/lazyslide-models), which load the same weights. ``EncoderSpec.url`` is the page of the weights;
comments name the sources; ``EncoderSpec.notes`` lists unconfirmed properties. Weights are loaded strictly: different names or
shapes are an error.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from st_predict.encoders._spec import EncoderSpec, square_crop
from st_predict.specs import IMAGENET, PixelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NOT_LOADABLE", "PATHOLOGY"]

_RENAMED = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm.", "norm."),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("mlp.weights_in", "mlp.fc1"),
    ("mlp.weights_out", "mlp.fc2"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)


def from_transformers(state: Mapping[str, Tensor], *, side: int | None = None) -> dict[str, Tensor]:
    """Convert a state dict of Hugging Face transformers to timm.

    Parameters
    ----------
    state
        State dict of a ``ViTModel``, a ``Dinov2Model`` or a ``Dinov2Model`` with register tokens.
    side
        Number of patches per side of the crop. Position embeddings of another grid are resampled as ``Dinov2Model`` does.
    """
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
    if side is not None and "pos_embed" in found:
        found["pos_embed"] = _resampled(found["pos_embed"], side)
    return _without_class_position(found) if "reg_token" in found else found


def _resampled(places_1ND: Tensor, side: int) -> Tensor:
    """Resample the positions of a square grid of patches; the first position belongs to the class token."""
    there = round((places_1ND.shape[1] - 1) ** 0.5)
    if there == side:
        return places_1ND
    grid_1DSS = places_1ND[:, 1:].float().transpose(1, 2).reshape(1, -1, there, there)
    grid_1DSS = F.interpolate(grid_1DSS, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([places_1ND[:, :1], grid_1DSS.flatten(2).transpose(1, 2).to(places_1ND.dtype)], dim=1)


def _without_class_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the class token's position to the token itself: with registers, timm has no position for it."""
    places_1ND = state["pos_embed"]
    return {**state, "cls_token": state["cls_token"] + places_1ND[:, :1], "pos_embed": places_1ND[:, 1:]}


_HALF = PixelSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BIOPTIMUS = PixelSpec(mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))
_HIBOU = PixelSpec(mean=(0.7068, 0.5755, 0.722), std=(0.195, 0.2316, 0.1816))
_RESIZED = "TRIDENT resizes tiles of 256 px at 20x (0.5 um/px) to 224 px; this package shows 224 px at 0.5 um/px"
_MIXED = "trained at several resolutions; 0.5 um/px as in TRIDENT (20x)"
_KAIKO_MPP = "trained at several resolutions; TRIDENT resizes tiles of 256 px at 20x (0.5 um/px) to 224 px"
_TCGA_FMS = "Aben et al. 2024, https://doi.org/10.48550/arXiv.2404.15217"

# Each entry names an architecture of timm with the network's layers, and the differences. Both "giant" architectures of DINOv2
# have SwiGLU layers with SiLU, layer scale and an epsilon of 1e-6; "reg4" adds registers, and class token and registers have
# no position.
_AT_20X = partial(EncoderSpec, crop=square_crop(224, 0.5), pixels=IMAGENET)
_KAIKO = partial(_AT_20X, pixels=_HALF, license="Kaiko, non-commercial", citation=_TCGA_FMS, notes=_KAIKO_MPP)


def _kaiko(name: str, arch: str, n_features: int) -> EncoderSpec:
    """Specification of a kaiko.ai network of plain ViT layers, published for torch.hub and copied to the hub by a third party."""
    source = f"hf-hub:1aurent/{arch}.kaiko_ai_towards_large_pathology_fms"
    return _KAIKO(name=name, source=source, arch=arch, n_features=n_features)


PATHOLOGY = (
    # strict loading in TRIDENT, with these arguments and pixels
    _AT_20X(
        name="uni",
        source="hf-hub:MahmoodLab/UNI",
        arch="vit_large_patch16_224",
        arch_args={"init_values": 1e-5},
        n_features=1024,
        license="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Chen et al. 2024, https://doi.org/10.1038/s41591-024-02857-3",
        notes=_RESIZED,
    ),
    # README of github.com/mahmoodlab/UNI lists every argument; strict loading in TRIDENT
    _AT_20X(
        name="uni2-h",
        source="hf-hub:MahmoodLab/UNI2-h",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_args={"img_size": 224, "depth": 24, "reg_tokens": 8},
        n_features=1536,
        license="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Chen et al. 2024, https://doi.org/10.1038/s41591-024-02857-3",
        notes=_RESIZED,
    ),
    # TRIDENT, strictly: vit_huge_patch14_224 with SwiGLU, mlp_ratio 5.3375 and a position for the class token
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
    # TRIDENT, strictly: as Virchow, with 4 registers; class token and registers have a position (no_embed_class is off)
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
        notes=_MIXED,
    ),
    # README of github.com/bioptimus/releases: g/14, 40 blocks, 24 heads, 4 registers; strict loading in TRIDENT
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
        notes="sources differ on whether terms have to be accepted",
    ),
    # TRIDENT, strictly: the architecture and pixels of H-optimus-0
    _AT_20X(
        name="h-optimus-1",
        source="hf-hub:bioptimus/H-optimus-1",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_args={"img_size": 224},
        pixels=_BIOPTIMUS,
        n_features=1536,
        license="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Bioptimus 2025, https://huggingface.co/bioptimus/H-optimus-1",
        notes="licence as recorded by LazySlide",
    ),
    # The card's code gives SwiGLU, SiLU and 261 tokens of 768; HistoPLUS (github.com/owkin/histoplus), on the same encoder, has the
    # positions of vit_base_patch14_reg4_dinov2
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
        notes="position embedding (patches only) confirmed only indirectly, by HistoPLUS; "
        "the class token is the first 768 features",
    ),
    # README of github.com/prov-gigapath/prov-gigapath; strict loading in TRIDENT, with patches of 16
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
    # config.json of owkin/phikon: ViTModel, epsilon 1e-12
    _AT_20X(
        name="phikon",
        source="hf-hub:owkin/phikon",
        arch="vit_base_patch16_224",
        norm_eps=1e-12,
        n_features=768,
        convert=from_transformers,
        license="Owkin, non-commercial",
        citation="Filiot et al. 2023, https://doi.org/10.1101/2023.07.21.23292757",
    ),
    # page of owkin/phikon-v2: ViT-L/16 by DINOv2; TRIDENT: 224 px, pixels, class token
    _AT_20X(
        name="phikon-v2",
        source="hf-hub:owkin/phikon-v2",
        arch="vit_large_patch16_224",
        arch_args={"init_values": 1e-5},
        n_features=1024,
        convert=from_transformers,
        license="Owkin, non-commercial",
        citation="Filiot et al. 2024, https://doi.org/10.48550/arXiv.2409.09173",
        notes="epsilon of layer normalisation (1e-6, the default of Dinov2Model) not confirmed",
    ),
    # README of github.com/kaiko-ai/Midnight: DINOv2 ViT-g/14 without registers as Dinov2Model, 224 px, mean and std of 0.5, class token
    # and mean of patches
    _AT_20X(
        name="midnight",
        source="hf-hub:kaiko-ai/midnight",
        arch="vit_giant_patch14_dinov2",
        arch_args={"img_size": 224},
        pixels=_HALF,
        pool="cls_mean",
        n_features=3072,
        convert=partial(from_transformers, side=16),
        license="MIT",
        citation="Karasikov et al. 2025, https://doi.org/10.1007/978-3-032-04984-1_55",
        notes="grid of the stored position embedding not confirmed (resampled to 16 x 16 as transformers does); "
        "resolution not confirmed (0.5 um/px as in TRIDENT, 20x); the class token is the first 1536 features",
    ),
    # config.json of histai/hibou-b: Dinov2Model with 4 registers, SwiGLU, mlp_ratio 4, 224 px, epsilon 1e-6; pixels, offset-free
    # positions and pooling from github.com/HistAI/hibou
    _AT_20X(
        name="hibou-b",
        source="hf-hub:histai/hibou-b",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_args={"img_size": 224, "embed_dim": 768, "depth": 12, "num_heads": 12},
        pixels=_HIBOU,
        n_features=768,
        convert=from_transformers,
        license="Apache-2.0",
        citation="Nechaev et al. 2024, https://doi.org/10.48550/arXiv.2406.05074",
        notes="resolution not confirmed (0.5 um/px as for Hibou-L in TRIDENT, 20x); "
        "sources differ on whether terms have to be accepted",
    ),
    # as Hibou-B; SwiGLU rounds its 2730 channels to a multiple of 8, 2736 = 1024 * 5.34375 / 2
    _AT_20X(
        name="hibou-l",
        source="hf-hub:histai/hibou-L",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_args={"img_size": 224, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 5.34375},
        pixels=_HIBOU,
        n_features=1024,
        convert=from_transformers,
        license="Apache-2.0",
        gated=True,
        citation="Nechaev et al. 2024, https://doi.org/10.48550/arXiv.2406.05074",
        notes="configuration not public, taken from Hibou-B and the published 303.7 M parameters; resolution not confirmed "
        "(0.5 um/px as in TRIDENT, 20x)",
    ),
    # hubconf.py and README of github.com/kaiko-ai/towards_large_pathology_fms: plain ViT of timm, mean and std of 0.5, class token
    _kaiko("kaiko-vits16", "vit_small_patch16_224", 384),
    _kaiko("kaiko-vits8", "vit_small_patch8_224", 384),
    _kaiko("kaiko-vitb16", "vit_base_patch16_224", 768),
    _kaiko("kaiko-vitb8", "vit_base_patch8_224", 768),
    # positions of 518 px, resampled by timm, as in TRIDENT
    _KAIKO(
        name="kaiko-vitl14",
        source="hf-hub:1aurent/vit_large_patch14_reg4_dinov2.kaiko_ai_towards_large_pathology_fms",
        arch="vit_large_patch14_reg4_dinov2",
        arch_args={"img_size": 518, "dynamic_img_size": True},
        n_features=1024,
    ),
)

_POOLED = "a trained attention pooling over the tokens of a vision transformer, which no network of timm has"
NOT_LOADABLE = {
    "conch": (
        "hf-hub:MahmoodLab/CONCH",
        _POOLED,
        (
            "load it with the package of https://github.com/mahmoodlab/CONCH and give load_encoder a function that calls "
            "model.encode_image(x, proj_contrast=False, normalize=False), a crop of 448 px and the mean and std of OpenAI's CLIP"
        ),
    ),
    "conchv1_5": (
        "hf-hub:MahmoodLab/conchv1_5",
        _POOLED,
        (
            "load it with TRIDENT (https://github.com/mahmoodlab/TRIDENT) and give load_encoder its model, a crop of 448 px and the "
            "mean and std of ImageNet"
        ),
    ),
    "hipt": (
        "github.com/mahmoodlab/HIPT",
        "weights that no hub serves",
        (
            "write them to a file with st_predict.encoders.save_hipt_weights and use the result of "
            "st_predict.encoders.load_hipt_encoder(path) as the encoder"
        ),
    ),
}
"""Known encoders that cannot be loaded by name: source, reason, and way out."""
