"""CrossViT: two vision transformers with patches of two sizes, which exchange their class tokens :cite:p:`Chen2021`.

One branch has small patches and few channels, the other large patches and many channels. In each of three stages, both go
through blocks of their own; then each class token reads the patches of the other branch. The prediction is the mean over both
branches.

=======  ========  =====  =========  =====  ===========
variant  dims      heads  mlp_ratio  depth  parameters
=======  ========  =====  =========  =====  ===========
tiny     96, 192       3          4   1, 4    6,797,300
9        128, 256      4          3   1, 3    8,263,796
small    192, 384      6          4   1, 4   26,422,772
15       192, 384      6          3   1, 5   27,094,964
18       224, 448      7          3   1, 6   42,765,908
base     384, 768     12          4   1, 4  104,159,732
=======  ========  =====  =========  =====  ===========

Numbers of parameters are for 250 genes. ``"small"`` is the variant in the M2OST paper's comparison :cite:p:`Wang2025`.
Written from the paper; :func:`convert` reads the weights of the published code (https://github.com/IBM/CrossViT,
Apache-2.0) and of timm. As there, the branch of small patches sees the crop enlarged from 224 to 240 pixels, so that patches
of 12 fit. The published variants with three convolutions in front ("dagger") are not included.

Shapes: B spots, C colours, S pixels per side, N tokens, D channels of a branch, F channels of the other.
"""

from __future__ import annotations

from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, validated
from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._card import choice
from st_predict.models._checks import count_layers, of_variant, variant_of
from st_predict.models._layers import Head, check_crops, renamed
from st_predict.specs import IMAGENET, CropSpec, LevelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_predict.crops import Batch

__all__ = ["SPEC", "VARIANTS", "CrossViT", "CrossViTConfig", "convert"]

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


@validated
class CrossViTConfig:
    """Sizes of :class:`CrossViT`; pairs are for the branches of small and of large patches.

    Parameters
    ----------
    dims
        Channels per token.
    heads
        Attention heads, in both branches.
    depths
        Blocks per stage.
    mlp_ratio
        Hidden channels of the MLPs, in multiples of the branch's channels.
    stages
        Number of stages, each with one exchange of class tokens.
    sizes
        Sides of the image that each branch sees, in pixels. The second is the side of the crop.
    patches
        Sides of the patches, in pixels.
    """

    dims: tuple[Count, Count]
    heads: Count
    depths: tuple[Count, Count] = (1, 4)
    mlp_ratio: Count = 4
    stages: Count = 3
    sizes: tuple[Count, Count] = (240, 224)
    patches: tuple[Count, Count] = (12, 16)

    def __post_init__(self) -> None:
        if any(dim % self.heads for dim in self.dims):
            raise InvalidValueError(f"dims must be multiples of the {self.heads} heads, got {self.dims}.")
        if any(size % patch for size, patch in zip(self.sizes, self.patches, strict=True)):
            raise InvalidValueError(f"sizes must be multiples of the patches {self.patches}, got {self.sizes}.")

    @property
    def crop(self) -> CropSpec:
        """Crop that the network reads."""
        return CropSpec(levels=(LevelSpec(size=self.sizes[1]),))


VARIANTS = {
    "tiny": CrossViTConfig(dims=(96, 192), heads=3),
    "9": CrossViTConfig(dims=(128, 256), heads=4, depths=(1, 3), mlp_ratio=3),
    "small": CrossViTConfig(dims=(192, 384), heads=6),
    "15": CrossViTConfig(dims=(192, 384), heads=6, depths=(1, 5), mlp_ratio=3),
    "18": CrossViTConfig(dims=(224, 448), heads=7, depths=(1, 6), mlp_ratio=3),
    "base": CrossViTConfig(dims=(384, 768), heads=12),
}


class CrossViT(SpotModel):
    """Network of CrossViT.

    Parameters
    ----------
    n_genes
        Size of the panel.
    variant
        Key of ``VARIANTS``.
    sizes
        Fields of :class:`CrossViTConfig` that differ from the variant.

    Raises
    ------
    ValueError
        If the hyper-parameters do not fit together.
    """

    def __init__(self, n_genes: int, *, variant: str = "small", **sizes: Any) -> None:
        super().__init__()
        self.config = c = of_variant(VARIANTS, variant=variant, **sizes)
        self.crop = c.crop
        self.embed = nn.ModuleList(Embedding(*of_branch) for of_branch in zip(c.dims, c.sizes, c.patches, strict=True))
        self.stages = nn.ModuleList(Stage(c) for _ in range(c.stages))
        self.norms = nn.ModuleList(LayerNorm(dim) for dim in c.dims)
        self.heads = nn.ModuleList(Head(dim, n_genes) for dim in c.dims)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Raises
        ------
        ValueError
            If number or shape of the crops does not match the hyper-parameters.
        """
        check_crops(batch, self.crop)
        x_BCSS = self.pixels(batch.crops[0])
        x = [embed(x_BCSS) for embed in self.embed]
        for stage in self.stages:
            x = stage(x)
        of_branches = zip(self.heads, self.norms, x, strict=True)
        return torch.stack([head(norm(x_BND[:, 0])) for head, norm, x_BND in of_branches]).mean(0)

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        for head in self.heads:
            cast("Head", head).start_at(mean_G)


class Embedding(nn.Module):
    """Embedding of the crop as tokens of a branch: class token, patches, positions."""

    def __init__(self, dim: int, size: int, patch: int) -> None:
        super().__init__()
        self.size = size
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, (size // patch) ** 2 + 1, dim), std=0.02))

    def forward(self, x_BCSS: Tensor) -> Tensor:
        if x_BCSS.shape[-1] != self.size:
            x_BCSS = F.interpolate(x_BCSS, size=(self.size, self.size), mode="bicubic")
        x_BND = self.patches(x_BCSS).flatten(2).mT
        return torch.cat([self.cls.expand(len(x_BND), -1, -1), x_BND], 1) + self.positions


class Stage(nn.Module):
    """Blocks of each branch, then an exchange between their outputs."""

    def __init__(self, c: CrossViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(dim, c.heads, c.mlp_ratio * dim) for _ in range(depth)))
            for dim, depth in zip(c.dims, c.depths, strict=True)
        )
        self.exchanges = nn.ModuleList(Exchange(dim, other, c.heads) for dim, other in (c.dims, c.dims[::-1]))

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [blocks(x_BND) for blocks, x_BND in zip(self.blocks, x, strict=True)]
        cls = [
            exchange(x_BND[:, :1], x_BNF[:, 1:])
            for exchange, x_BND, x_BNF in zip(self.exchanges, x, x[::-1], strict=True)
        ]
        return [torch.cat([cls_B1D, x_BND[:, 1:]], 1) for cls_B1D, x_BND in zip(cls, x, strict=True)]


class Block(nn.Module):
    """Self-attention, then an MLP per token, both with a residual connection."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(LayerNorm(dim), nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.out(attend(*self.qkv(self.norm(x_BND)).chunk(3, -1), heads=self.heads))
        return x_BND + self.mlp(x_BND)


class Exchange(nn.Module):
    """Cross-attention of a class token to the patches of the other branch; the result replaces the token."""

    def __init__(self, dim: int, other: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.there = nn.Sequential(LayerNorm(dim), nn.GELU(), nn.Linear(dim, other))
        self.norm = LayerNorm(other)
        self.q, self.k, self.v, self.out = (nn.Linear(other, other) for _ in range(4))
        self.back = nn.Sequential(LayerNorm(other), nn.GELU(), nn.Linear(other, dim))

    def forward(self, cls_B1D: Tensor, patches_BNF: Tensor) -> Tensor:
        cls_B1F = self.there(cls_B1D)
        x_BNF = self.norm(torch.cat([cls_B1F, patches_BNF], 1))
        read_B1F = attend(self.q(x_BNF[:, :1]), self.k(x_BNF), self.v(x_BNF), heads=self.heads)
        return self.back(cls_B1F + self.out(read_B1F))


def attend(q_BND: Tensor, k_BND: Tensor, v_BND: Tensor, *, heads: int) -> Tensor:
    """Multi-head softmax attention; the numbers of queries and keys may differ."""
    q_BHNE, k_BHNE, v_BHNE = (
        x_BND.reshape(*x_BND.shape[:2], heads, -1).transpose(1, 2) for x_BND in (q_BND, k_BND, v_BND)
    )
    return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE).transpose(1, 2).flatten(2)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the published code or of timm, of any variant, to :class:`CrossViT`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = {
        name.replace("pos_embed_", "pos_embed.").replace("cls_token_", "cls_token."): state[name] for name in state
    }
    return renamed(theirs, _published_names(theirs), model="CrossViT")


_BLOCK = {
    "norm": "norm1",
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "mlp.0": "norm2",
    "mlp.1": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}
_EXCHANGE = {
    "there.0": "projs.{}.0",
    "there.2": "projs.{}.2",
    "norm": "fusion.{}.norm1",
    "q": "fusion.{}.attn.wq",
    "k": "fusion.{}.attn.wk",
    "v": "fusion.{}.attn.wv",
    "out": "fusion.{}.attn.proj",
    "back.0": "revert_projs.{}.0",
    "back.2": "revert_projs.{}.2",
}


def _published_names(theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Map our names to published ones, for as many blocks as there are."""
    stages = {name.split(".")[1] for name in theirs if name.startswith("blocks.")}
    blocks = {name.split(".norm1")[0] for name in theirs if ".blocks." in name and ".norm1." in name}
    layers = {
        f"stages.{block.removeprefix('blocks.')}.{o}": f"{block}.{t}" for block in blocks for o, t in _BLOCK.items()
    }
    names: dict[str, str] = {}
    for i in (0, 1):
        names |= {f"embed.{i}.cls": f"cls_token.{i}", f"embed.{i}.positions": f"pos_embed.{i}"}
        layers |= {f"embed.{i}.patches": f"patch_embed.{i}.proj", f"norms.{i}": f"norm.{i}", f"heads.{i}": f"head.{i}"}
        layers |= {
            f"stages.{s}.exchanges.{i}.{o}": f"blocks.{s}.{t.format(i)}" for s in stages for o, t in _EXCHANGE.items()
        }
    return names | {f"{o}.{part}": f"{t}.{part}" for o, t in layers.items() for part in ("weight", "bias")}


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the variant from the shapes of converted weights, or sizes if no published variant fits."""
    dims = tuple(state[f"embed.{i}.cls"].shape[-1] for i in (0, 1))
    patches = tuple(state[f"embed.{i}.patches.weight"].shape[-1] for i in (0, 1))
    sides = tuple(isqrt(state[f"embed.{i}.positions"].shape[1] - 1) for i in (0, 1))
    sizes = {
        "dims": dims,
        "depths": tuple(count_layers(state, f"stages.0.blocks.{i}") for i in (0, 1)),
        "mlp_ratio": len(state["stages.0.blocks.0.0.mlp.1.weight"]) // dims[0],
        "stages": count_layers(state, "stages"),
        "sizes": tuple(side * patch for side, patch in zip(sides, patches, strict=True)),
        "patches": patches,
    }
    variant = variant_of(VARIANTS, sizes)
    return {**sizes, "heads": None} if variant is None else {"variant": variant}


SPEC = ModelSpec(
    name="crossvit",
    summary="Vision transformers on small and large patches of one crop that exchange class tokens.",
    citation="Chen2021",
    license="Apache-2.0 (github.com/IBM/CrossViT)",
    build=CrossViT,
    of_card={"variant": choice(*VARIANTS)},
    config=CrossViTConfig,
    crop=VARIANTS["small"].crop,
    crop_of=lambda **hparams: of_variant(VARIANTS, **hparams).crop,
    pixels=IMAGENET,
    hparams={"variant": "small"},
    tiny={"dims": [12, 24], "heads": 3, "depths": [1, 2], "stages": 2, "sizes": [60, 64]},
    original=Preset(notes="Published for image classification, not for expression: the preset is the M2OST paper's."),
    convert=convert,
    hparams_of=hparams_of,
)
