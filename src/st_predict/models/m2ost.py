"""M2OST: expression of a spot from crops around it at several levels of the image :cite:p:`Wang2025`.

Each level becomes a sequence of tokens, the centre of a coarse level in finer patches (DPE). A block then mixes tokens
within a level (ITMM), tokens between levels (CTMM) and channels between levels (CCMM).

Written from the paper and from what the published code computes (https://github.com/Dootmaan/M2OST, MIT licence,
© 2024 Hongyi Wang); :func:`convert` reads its weights. Where they differ:

- Third level: its finest patches cover the central 3/8 to 5/8. The published code takes 3/8 to 6/8, which does not fit
  its own table of positions, so that it cannot run.
- CTMM: the paper sums what a level reads from each other level with scalar weights (``fusion="omega"``). The published
  code joins their channels and projects them (``fusion="concat"``, the default).
- CCMM adds its input, as in the code; the paper only multiplies.
- ITMM: DropAttention :cite:p:`Zehui2019` is in the paper, without its rate, and not in the code; ``attn_drop`` is 0.
- The code's layer norm in front of ITMM is never used and is left out.

Shapes: B spots, M levels, C colours, S pixels along a side, N tokens of a level, D channels of a level, H heads, E channels of
a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, lcm, log2, sqrt
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from st_predict.models._base import ModelSpec, SpotModel
from st_predict.models._layers import Head, check_crops, patch_mlp, patches
from st_predict.specs import CropSpec, LevelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from st_predict.crops import Batch

__all__ = ["M2OST", "SPEC", "M2OSTConfig", "attend", "convert"]

Levels: TypeAlias = "list[Tensor]"  # one (B, N, D) a level, finest first


@dataclass(frozen=True, kw_only=True, slots=True)
class M2OSTConfig:
    """Hyper-parameters of :class:`M2OST`, by default those of the paper.

    Parameters
    ----------
    dim
        Channels of a level.
    depth
        Number of blocks.
    heads, head_dim
        Heads of attention a level, and channels a head.
    mlp_dim
        Hidden channels a level, in the MLP and in CCMM.
    levels
        Which levels of the image to read, finest first; level ``k`` has pixels ``2**k`` times as wide.
    size, patch
        Side of a crop and of its coarsest patches, in pixels.
    dpe
        Read the centre of level ``k`` in patches of ``patch / 2 ... patch / 2**k`` as well, with an embedding shared
        by the levels. If False, each level has one embedding of its own.
    itmm
        Attention within each level (``"split"``), or over the joined channels of all levels (``"joint"``), which needs
        equally many tokens a level: ``dpe=False``.
    ctmm
        Whether levels read each other's tokens. One level alone never does.
    fusion
        How CTMM puts together what a level reads: ``"concat"`` or ``"omega"``.
    ccmm
        Gates on the channels of all levels (``"gate"``), or an MLP on each token (``"ffn"``, needs ``dpe=False`` too).
    pool
        Predict from the class tokens (``"cls"``) or from the mean of all (``"mean"``).
    drop
        Dropout rate in MLPs and after attention.
    attn_drop
        Rate at which ITMM drops keys in training.
    """

    dim: int = 192
    depth: int = 4
    heads: int = 3
    head_dim: int = 64
    mlp_dim: int = 128
    levels: tuple[int, ...] = (0, 1, 2)
    size: int = 224
    patch: int = 16
    dpe: bool = True
    itmm: Literal["split", "joint"] = "split"
    ctmm: bool = True
    fusion: Literal["concat", "omega"] = "concat"
    ccmm: Literal["gate", "ffn"] = "gate"
    pool: Literal["cls", "mean"] = "cls"
    drop: float = 0.0
    attn_drop: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        for name in ("dim", "depth", "heads", "head_dim", "mlp_dim", "size", "patch"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {getattr(self, name)!r}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        for name in ("drop", "attn_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        self._check_levels()
        self._check_size()

    @property
    def crop(self) -> CropSpec:
        """Crops that the network reads."""
        return CropSpec(levels=tuple(LevelSpec(size=self.size, downsample=2**k) for k in self.levels))

    @property
    def halvings(self) -> list[list[int]]:
        """For each level, how often region and patches are halved, in the order of the tokens: fine before coarse."""
        return [list(range(k, -1, -1)) if self.dpe else [0] for k in self.levels]

    @property
    def n_tokens(self) -> list[int]:
        """Patches of each level; the class token comes on top."""
        return [(self.size // self.patch) ** 2 * len(halvings) for halvings in self.halvings]

    def _check_levels(self) -> None:
        whole = all(isinstance(k, int) and k >= 0 for k in self.levels)
        if not self.levels or not whole or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels must be different whole numbers from 0, finest first, got {self.levels}.")
        coarsest = max(self.levels)
        for name in ("patch", "dim"):
            if self.dpe and getattr(self, name) % 2**coarsest:
                why = f"to be halved {coarsest} times for level {coarsest}, or set dpe=False"
                raise ValueError(f"{name} must be a multiple of {2**coarsest} {why}; got {getattr(self, name)}.")
        if len(set(self.n_tokens)) > 1 and (self.itmm == "joint" or self.ccmm == "ffn"):
            why = f"equally many tokens a level, got {self.n_tokens}; set dpe=False"
            raise ValueError(f"itmm='joint' and ccmm='ffn' need {why}.")

    def _check_size(self) -> None:
        # The border around the smallest central region is a whole number of pixels, too.
        step = lcm(self.patch, 2 ** (max(self.levels) + 1)) if self.dpe else self.patch
        below = self.size // step * step
        if self.size != below:
            nearest = [good for good in (below, below + step) if good]
            raise ValueError(f"size must be a multiple of {step}, got {self.size}; the nearest: {nearest}.")


_CHOICES = {
    "itmm": ("split", "joint"),
    "fusion": ("concat", "omega"),
    "ccmm": ("gate", "ffn"),
    "pool": ("cls", "mean"),
    "dpe": (True, False),
    "ctmm": (True, False),
}


class M2OST(SpotModel):
    """The network of M2OST.

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
        self.embed = Embedding(c)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.head = Head(len(c.levels) * c.dim, n_genes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        A level that is missing has no part in it; one that is left alone skips CTMM, as it has nothing to read.

        Raises
        ------
        ValueError
            If number or shape of the crops is not that of the hyper-parameters, or a spot has no level at all.
        """
        check_crops(batch, self.config.crop)
        present_BM = self._present(batch)
        x = blank(self.embed([self.pixels(crop_BCSS) for crop_BCSS in batch.crops]), present_BM)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, present_BM)
        x = last(x, present_BM, digested=self._reads_cls_alone)
        pooled_BD = torch.cat(blank([self._pool(x_BND) for x_BND in x], present_BM), -1).squeeze(1)
        return self.head(pooled_BD)

    def start_at(self, mean_G: Tensor) -> None:
        """Begin with the mean of each gene; see :meth:`SpotModel.start_at`."""
        self.head.start_at(mean_G)

    @property
    def _reads_cls_alone(self) -> bool:
        return self.config.pool == "cls" and not (self.training and self.config.drop)

    def _pool(self, x_BND: Tensor) -> Tensor:
        if self.config.pool == "cls":
            return self.norm(x_BND[:, :1])
        return self.norm(x_BND).mean(1, keepdim=True)

    def _present(self, batch: Batch) -> Tensor | None:
        if batch.level_mask is None:
            return None
        mask, shape = batch.level_mask, (len(batch), len(self.config.levels))
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise ValueError(f"level_mask must be torch.bool of shape {shape}, got {mask.dtype} {tuple(mask.shape)}.")
        n_empty = int((~mask.any(1)).sum())
        if n_empty:
            raise ValueError(f"{n_empty} of {len(batch)} spots have no level at all; leave them out of the batch.")
        return mask


class Embedding(nn.Module):
    """DPE: crops become tokens, with a class token in front and positions added."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        self.config = c
        halvings = range(max(c.levels) + 1) if c.dpe else [0] * len(c.levels)
        self.mlps = nn.ModuleList(patch_mlp(c.patch, c.dim, halvings=k) for k in halvings)
        self.cls = nn.Parameter(torch.randn(1, 1, c.dim))
        self.positions = nn.ParameterList(torch.randn(1, n + 1, c.dim) for n in c.n_tokens)

    def forward(self, crops: list[Tensor]) -> Levels:
        return [self._level(i, x_BCSS) for i, x_BCSS in enumerate(crops)]

    def _level(self, i: int, x_BCSS: Tensor) -> Tensor:
        size, patch = self.config.size, self.config.patch
        cls_B1D = self.cls.expand(len(x_BCSS), -1, -1)
        tokens = [
            self.mlps[k if self.config.dpe else i](patches(centre(x_BCSS, size >> k), patch >> k))
            for k in self.config.halvings[i]
        ]
        return torch.cat([cls_B1D, *tokens], 1) + self.positions[i]


def centre(x_BCSS: Tensor, size: int) -> Tensor:
    """Cut out the central square."""
    start = (x_BCSS.shape[-1] - size) // 2
    return x_BCSS[..., start : start + size, start : start + size]


class Block(nn.Module):
    """One round of mixing within levels (ITMM and an MLP), between levels (CTMM) and between channels (CCMM)."""

    def __init__(self, c: M2OSTConfig) -> None:
        super().__init__()
        m = len(c.levels)
        self.itmm: nn.Module
        self.mlp: nn.Module
        if c.itmm == "split":
            self.itmm = OnEach(Attention(c, 1) for _ in c.levels)
            self.mlp = OnShared(mlp(c, 1, nn.GELU()))
        else:
            self.itmm = OnJoined(Attention(c, m))
            self.mlp = OnJoined(mlp(c, m, nn.GELU()))
        self.ctmm = CrossAttention(c) if c.ctmm and m > 1 else None
        self.ccmm = Gate(mlp(c, m, nn.Sigmoid())) if c.ccmm == "gate" else OnJoined(mlp(c, m, nn.Identity()))

    def forward(self, x: Levels, present_BM: Tensor | None, *, digested: bool = False) -> Levels:
        """Return the tokens, or of each level only its :func:`digest`."""
        x = blank(self.itmm(x), present_BM)
        x = blank(self.mlp(x), present_BM)
        if self.ctmm is not None:
            x = blank(self.ctmm(x, present_BM, digested=digested), present_BM)
        elif digested:
            x = [digest(x_BND) for x_BND in x]
        return blank(self.ccmm(x), present_BM)


def digest(x_ND: Tensor) -> Tensor:
    """Replace all tokens by two that have the same mean, the class token and another: all that CCMM and head read.

    A layer without activation may come after it instead of before, as the weights of the sum add up to 1.
    """
    cls_D = x_ND[..., 0, :]
    return torch.stack([cls_D, 2 * x_ND.mean(-2) - cls_D], -2)


def blank(x: Levels, present_BM: Tensor | None) -> Levels:
    """Set to zero what belongs to missing levels; done after every step, so that they have no part in the next."""
    if present_BM is None:
        return x
    return [torch.where(present_B[:, None, None], x_BND, 0) for x_BND, present_B in zip(x, present_BM.T, strict=True)]


class OnEach(nn.Module):
    """A layer of its own for each level, added to its input."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Levels) -> Levels:
        return [x_BND + layer(x_BND) for x_BND, layer in zip(x, self.layers, strict=True)]


class OnShared(nn.Module):
    """The same layer for each level, added to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Levels) -> Levels:
        return [x_BND + self.layer(x_BND) for x_BND in x]


class OnJoined(OnShared):
    """One layer for the channels of all levels together, token by token, added to its input."""

    def forward(self, x: Levels) -> Levels:
        x_BNMD = torch.cat(x, -1)
        return list((x_BNMD + self.layer(x_BNMD)).chunk(len(x), -1))


class Gate(OnShared):
    """CCMM: channels of all levels, averaged over tokens, decide how much each channel grows, up to twice itself."""

    def forward(self, x: Levels) -> Levels:
        gates_BMD = self.layer(torch.cat([x_BND.mean(1) for x_BND in x], -1))
        return [x_BND.addcmul(x_BND, g_BD[:, None]) for x_BND, g_BD in zip(x, gates_BMD.chunk(len(x), -1), strict=True)]


def mlp(c: M2OSTConfig, n_levels: int, last: nn.Module) -> nn.Sequential:
    """Two-layer perceptron on the channels of so many levels."""
    dim, hidden = n_levels * c.dim, n_levels * c.mlp_dim
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(c.drop), nn.Linear(hidden, dim), last
    )


class Attention(nn.Module):
    """ITMM: self-attention with DropAttention, on the channels of so many levels."""

    def __init__(self, c: M2OSTConfig, n_levels: int) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.drop_keys = DropKeys(c.attn_drop)
        dim, inner = n_levels * c.dim, n_levels * c.heads * c.head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, dim)
        self.drop = nn.Dropout(c.drop)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BHNE, k_BHNE, v_BHNE = split_heads(self.qkv(x_BND), self.head_dim)
        return self.drop(self.out(join_heads(attend(q_BHNE, k_BHNE, v_BHNE, self.drop_keys(k_BHNE)))))


class CrossAttention(nn.Module):
    """CTMM: the tokens of a level are replaced by what they read from every other level."""

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
            self.omega_MM = nn.Parameter(torch.full((m, m), 1 / (m - 1)))  # its diagonal has no use

    def forward(self, x: Levels, present_BM: Tensor | None, *, digested: bool = False) -> Levels:
        qkv = [split_heads(layer(self.norm(x_BND)), self.head_dim) for x_BND, layer in zip(x, self.qkv, strict=True)]
        read = [self._read(i, qkv, present_BM, digested=digested) for i in range(len(x))]
        if present_BM is None:
            return read
        # A level alone has nothing to read and stays as it is: its own tokens are all there is.
        alone_B11 = (present_BM.sum(1) == 1)[:, None, None]
        kept = [digest(x_BND) for x_BND in x] if digested else x
        return [torch.where(alone_B11, x_BND, read_BND) for x_BND, read_BND in zip(kept, read, strict=True)]

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


def split_heads(x_BND: Tensor, head_dim: int) -> tuple[Tensor, ...]:
    """Queries, keys and values, each ``(B, H, N, E)``, out of the output of one layer."""
    heads = x_BND.shape[-1] // (3 * head_dim)
    return x_BND.reshape(*x_BND.shape[:2], 3, heads, head_dim).permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def join_heads(x_BHNE: Tensor) -> Tensor:
    """Undo the split into heads, ``(B, N, H * E)``."""
    return x_BHNE.transpose(1, 2).flatten(2)


class DropKeys(_DropoutNd):
    """Draws which keys stay, for each head of each spot; at least one does. ``None`` where all do."""

    def forward(self, k_BHNE: Tensor) -> Tensor | None:
        if not (self.training and self.p):
            return None
        u_BH1N = torch.rand(k_BHNE.shape[:-1], device=k_BHNE.device).unsqueeze(2)
        return (u_BH1N >= self.p) | (u_BH1N == u_BH1N.amax(-1, keepdim=True))


def attend(
    q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, keep_BH1N: Tensor | None = None, *, digested: bool = False
) -> Tensor:
    """Softmax attention; weights of keys that are not kept are zero and the others sum to 1."""
    # The fused kernel of CPUs is faster only there and back in float32.
    in_products = q_BHNE.dtype == torch.bfloat16 or not q_BHNE.requires_grad
    if q_BHNE.device.type == "cpu" and in_products and not torch.compiler.is_compiling():
        return _attend_in_products(q_BHNE, k_BHNE, v_BHNE, keep_BH1N, digested=digested)
    out_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=keep_BH1N)
    return digest(out_BHNE) if digested else out_BHNE


def _attend_in_products(
    q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, keep_BH1N: Tensor | None, *, digested: bool
) -> Tensor:
    """Attention as two matrix products, but for spots where powers of the logits are too large or small for their type.

    Rows of weights are divided by their sums only after the second product, and powers have base 2: that takes half of
    the time of a softmax.
    """
    weights_XNN, sums_XN1 = _powers(q_BHNE, k_BHNE, keep_BH1N)
    sums_BN = sums_XN1.detach().reshape(len(q_BHNE), -1)
    moderate_B111 = ((sums_BN > 1e-30) & (sums_BN < 1e30)).all(1)[:, None, None, None]
    if moderate_B111.all():
        return _read_values(weights_XNN, sums_XN1, v_BHNE, digested=digested)
    # All stay in the product, as its rounding depends on how many there are: no spot depends on its neighbours.
    tame = _powers(torch.where(moderate_B111, q_BHNE, 0), torch.where(moderate_B111, k_BHNE, 0), keep_BH1N)
    logits_BHNN = (q_BHNE / sqrt(q_BHNE.shape[-1])) @ k_BHNE.mT
    if keep_BH1N is not None:
        logits_BHNN = logits_BHNN.masked_fill(~keep_BH1N, -torch.inf)
    plain_BHNE = logits_BHNN.softmax(-1) @ v_BHNE  # unlike the fused kernel, this shows numbers that are none
    plain_BHNE = digest(plain_BHNE) if digested else plain_BHNE
    return torch.where(moderate_B111, _read_values(*tame, v_BHNE, digested=digested), plain_BHNE)


def _powers(q_BHNE: Tensor, k_BHNE: Tensor, keep_BH1N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights of the keys and the sums of their rows; X is B x H."""
    q_XNE, k_XNE = q_BHNE.flatten(0, 1), k_BHNE.flatten(0, 1)
    scale = log2(e) / sqrt(q_XNE.shape[-1])
    weights_XNN = torch.baddbmm(q_XNE.new_empty(()), q_XNE, k_XNE.mT, beta=0, alpha=scale).exp2_()
    if keep_BH1N is not None:
        weights_XNN = weights_XNN * keep_BH1N.flatten(0, 1)
    return weights_XNN, weights_XNN.sum(-1, keepdim=True)


def _read_values(weights_XNN: Tensor, sums_XN1: Tensor, v_BHNE: Tensor, *, digested: bool) -> Tensor:
    v_XNE = v_BHNE.flatten(0, 1)
    if digested:
        rows_2N = digest(torch.eye(weights_XNN.shape[1])).to(v_XNE)
        out_XNE = torch.bmm(rows_2N / sums_XN1.mT, weights_XNN) @ v_XNE
    else:
        out_XNE = torch.bmm(weights_XNN, v_XNE) / sums_XN1
    return out_XNE.reshape(*v_BHNE.shape[:2], *out_XNE.shape[1:])


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state dict of the published code (three levels, any depth) into one of :class:`M2OST`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    layers = {name.split(".")[2] for name in theirs if name.startswith("transformer.layers.")}
    sources = _published_names(len(layers))
    known = {name for names in sources.values() for name in names}
    unused = {f"transformer.layers.{b}.0.norm.{part}" for b in range(len(layers)) for part in ("weight", "bias")}
    missing, unknown = sorted(known - theirs.keys()), sorted(theirs.keys() - known - unused)
    if missing or unknown or not layers:
        raise ValueError(f"Not a state dict of the published M2OST: missing {missing}, unknown {unknown}.")
    return {ours: torch.cat([theirs[name] for name in names]) for ours, names in sources.items()}


def _published_names(depth: int) -> dict[str, list[str]]:
    """For each of our names, the published ones whose tensors are joined to make it."""
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


SPEC = ModelSpec(
    name="m2ost",
    summary="Transformer on three levels of the image around a spot.",
    citation="Wang2025",
    license="MIT (github.com/Dootmaan/M2OST)",
    build=M2OST,
    crop=M2OSTConfig().crop,
    crop_of=lambda **hparams: M2OSTConfig(**hparams).crop,
    hparams={"dim": 192, "depth": 4, "heads": 3, "head_dim": 64, "mlp_dim": 128, "levels": [0, 1, 2], "size": 224},
    tiny={"dim": 24, "depth": 1, "heads": 2, "head_dim": 12, "mlp_dim": 16, "size": 64},
    convert=convert,
)
