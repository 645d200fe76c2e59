"""M2ORT: expression of a spot from one field of view at three resolutions :cite:p:`Wang2024`.

The crop is read with pixels 1, 2 and 4 times as wide, and cut into patches of 16, 8 and 4 pixels: equally many, at the same
places. The channels of a place's tokens are joined. In attention, queries come from the finest resolution, keys from the next
and values from the coarsest.

=======  ===  =====  =====  =======  ==========
variant  dim  depth  heads  mlp_dim  parameters
=======  ===  =====  =====  =======  ==========
small    192      6      9      384   7,620,874
base     256      8     12      512  17,137,946
large    384     12     18      768  55,485,754
=======  ===  =====  =====  =======  ==========

Numbers of parameters are for 250 genes. Written from the paper; the published code (https://github.com/Dootmaan/M2ORT) has no
licence, and only names, shapes and outputs were compared with it. :func:`convert` reads its weights. Differences:

- The published code downsamples the finest crop to make the others (bilinear, with antialiasing). Here they are levels of the
  crop: read from the image level that is stored at that resolution, else downsampled the same way from a finer one.
- The published ``dim`` counts the three resolutions joined, 3 times ours.

Shapes: B spots, C colours, S pixels per side, N tokens, D channels of the three resolutions joined, H heads, E channels per
head.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, validated
from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._card import choice
from st_predict.models._checks import count_layers, of_variant, variant_of
from st_predict.models._layers import Head, check_crops, patch_mlp, patches, renamed
from st_predict.specs import CropSpec, LevelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_predict.crops import Batch

__all__ = ["M2ORT", "SPEC", "VARIANTS", "M2ORTConfig", "convert"]

N_LEVELS = 3  # queries, keys and values


@validated
class M2ORTConfig:
    """Sizes of :class:`M2ORT`.

    Parameters
    ----------
    dim
        Channels per resolution.
    depth
        Number of blocks.
    heads, head_dim
        Attention heads, and channels per head.
    mlp_dim
        Hidden channels of the MLP.
    size, patch
        Side of the finest crop and of its patches, in pixels.
    """

    dim: Count
    depth: Count
    heads: Count
    mlp_dim: Count
    head_dim: Count = 64
    size: Count = 224
    patch: Count = 16

    def __post_init__(self) -> None:
        if self.patch % 4:
            raise InvalidValueError(f"patch must be a multiple of 4, to be halved twice, got {self.patch}.")
        if self.size % self.patch:
            raise InvalidValueError(f"size must be a multiple of {self.patch}, the side of a patch, got {self.size}.")

    @property
    def crop(self) -> CropSpec:
        """Crops of one field of view at three resolutions."""
        return CropSpec(levels=tuple(LevelSpec(size=self.size >> k, downsample=2**k) for k in range(N_LEVELS)))

    @property
    def n_tokens(self) -> int:
        """Number of patches per crop, equal at each resolution, without the class token."""
        return (self.size // self.patch) ** 2


VARIANTS = {
    "small": M2ORTConfig(dim=192, depth=6, heads=9, mlp_dim=384),
    "base": M2ORTConfig(dim=256, depth=8, heads=12, mlp_dim=512),
    "large": M2ORTConfig(dim=384, depth=12, heads=18, mlp_dim=768),
}


class M2ORT(SpotModel):
    """Network of M2ORT.

    Parameters
    ----------
    n_genes
        Size of the panel.
    variant
        Key of ``VARIANTS``.
    sizes
        Fields of :class:`M2ORTConfig` that differ from the variant.

    Raises
    ------
    ValueError
        If the hyper-parameters do not fit together.
    """

    def __init__(self, n_genes: int, *, variant: str = "small", **sizes: Any) -> None:
        super().__init__()
        self.config = c = of_variant(VARIANTS, variant=variant, **sizes)
        self.crop = c.crop
        dim = N_LEVELS * c.dim
        self.embed = nn.ModuleList(patch_mlp(c.patch, c.dim, halvings=k) for k in range(N_LEVELS))
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, c.n_tokens + 1, dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(dim)
        self.head = Head(dim, n_genes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Raises
        ------
        ValueError
            If number or shape of the crops does not match the hyper-parameters, or a spot lacks a level.
        """
        self._check(batch)
        x_BND = self.tokens([self.pixels(crop_BCSS) for crop_BCSS in batch.crops])
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.head(self.norm(x_BND[:, 0]))

    def tokens(self, crops: list[Tensor]) -> Tensor:
        """Return the patches as tokens, after the class token, with positions: ``(B, N + 1, D)``."""
        levels = [
            mlp(patches(x_BCSS, self.config.patch >> k))
            for k, (mlp, x_BCSS) in enumerate(zip(self.embed, crops, strict=True))
        ]
        cls_B1D = self.cls.expand(len(crops[0]), -1, -1)
        return torch.cat([cls_B1D, torch.cat(levels, -1)], 1) + self.positions

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        self.head.start_at(mean_G)

    def _check(self, batch: Batch) -> None:
        check_crops(batch, self.crop)
        if batch.level_mask is not None and not batch.level_mask.all():
            n_lacking = int((~batch.level_mask).any(1).sum())
            raise InvalidValueError(
                f"{n_lacking} of {len(batch)} spots lack a level, and M2ORT needs all three, as each has another part in "
                "attention.",
                "leave these spots out",
                "train without level_drop",
            )


class Block(nn.Module):
    """Attention between the resolutions, then an MLP per token, both with a residual connection."""

    def __init__(self, c: M2ORTConfig) -> None:
        super().__init__()
        dim = N_LEVELS * c.dim
        self.attention = Attention(c)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, c.mlp_dim), nn.GELU(), nn.Linear(c.mlp_dim, dim))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(x_BND)
        return x_BND + self.mlp(x_BND)


class Attention(nn.Module):
    """Attention with queries from the finest resolution, keys from the next, and values from the coarsest."""

    def __init__(self, c: M2ORTConfig) -> None:
        super().__init__()
        self.heads = c.heads
        dim, inner = N_LEVELS * c.dim, c.heads * c.head_dim
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.ModuleList(nn.Linear(c.dim, inner, bias=False) for _ in range(N_LEVELS))
        self.out = nn.Linear(inner, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        levels = self.norm(x_BND).chunk(N_LEVELS, -1)
        q_BHNE, k_BHNE, v_BHNE = (
            layer(level).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, level in zip(self.qkv, levels, strict=True)
        )
        read_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE)
        return self.out(read_BHNE.transpose(1, 2).flatten(2))


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the published code, of any size, to :class:`M2ORT`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    names = _published_names(len({name.split(".")[2] for name in theirs if name.startswith("transformer.layers.")}))
    return renamed(theirs, names, model="M2ORT")


def _published_names(depth: int) -> dict[str, str]:
    """Map our names to published ones."""
    layers = {"norm": "transformer.norm", "head": "mlp_head"}
    layers |= {f"embed.{k}.{n}": f"to_patch_embedding{k + 1}.{n + 1}" for k in range(N_LEVELS) for n in (0, 1, 3, 4)}
    names = {"cls": "cls_token", "positions": "pos_embedding"}
    for b in range(depth):
        ours, theirs = f"blocks.{b}", f"transformer.layers.{b}"
        layers |= {f"{ours}.attention.norm": f"{theirs}.0.norm", f"{ours}.attention.out": f"{theirs}.0.to_out.0"}
        layers |= {f"{ours}.mlp.{n}": f"{theirs}.1.net.{m}" for n, m in ((0, 0), (1, 1), (3, 4))}
        names |= {f"{ours}.attention.qkv.{i}.weight": f"{theirs}.0.to_qkv{i + 1}.weight" for i in range(N_LEVELS)}
    return names | {f"{o}.{part}": f"{t}.{part}" for o, t in layers.items() for part in ("weight", "bias")}


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the variant from the shapes of converted weights, or sizes if no published variant fits."""
    patch = isqrt(len(state["embed.0.0.weight"]) // 3)
    sizes = {
        "dim": len(state["embed.0.4.weight"]),
        "depth": count_layers(state, "blocks"),
        "mlp_dim": len(state["blocks.0.mlp.1.weight"]),
        "size": patch * isqrt(state["positions"].shape[1] - 1),
        "patch": patch,
    }
    variant = variant_of(VARIANTS, sizes)
    return {**sizes, "heads": None, "head_dim": None} if variant is None else {"variant": variant}


SPEC = ModelSpec(
    name="m2ort",
    summary="Transformer on one field of view at three resolutions.",
    citation="Wang2024",
    license="none (github.com/Dootmaan/M2ORT)",
    build=M2ORT,
    of_card={"variant": choice(*VARIANTS)},
    config=M2ORTConfig,
    crop=VARIANTS["small"].crop,
    crop_of=lambda **hparams: of_variant(VARIANTS, **hparams).crop,
    hparams={"variant": "small"},
    tiny={"dim": 12, "depth": 2, "heads": 3, "head_dim": 8, "mlp_dim": 24, "size": 64},
    original=Preset(
        training={"epochs": 200, "batch_size": 96, "optimizer": "adam", "lr": 1e-4, "start_at_mean": False},
        target=TargetSpec(),
        notes="Crops are mirrored and turned by multiples of 90 degrees, not by any angle. The best epoch has the highest "
        "correlation per gene over the spots of a section, not per spot over the genes.",
    ),
    convert=convert,
    hparams_of=hparams_of,
)
