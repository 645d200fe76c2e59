"""TRIPLEX: a spot's crop, the tiles around it and all spots of its section :cite:p:`Chung2024`.

A target encoder reads the crop of the spot, a neighbour encoder the features of 5 x 5 tiles around it, and a global encoder the
features of all spots of the section, with a position encoding by convolution over the lattice (APEG). The token of the spot in
the section then reads the tokens of crop and tiles (fusion). Each of the four branches predicts; a loss ties three of them to
the fused one, which is the prediction.

Written from the paper and from a description of the published code (https://github.com/NEXGEM/TRIPLEX of June 2024, no licence).
Corrected here, and not reproduced by any switch:

- Dropout after the attention of the global encoder is off in prediction; there it stays on, so that predictions are random.
- APEG returns tokens in the order of the spots, not in the order of the grid.
- Spots that share a cell of the grid keep their own tokens, and APEG convolves their mean; there one of them is lost.
- The grid belongs to each section; a later version keeps the first section's, and loses the residual connection of APEG.

Further differences:

- A tile that leaves the image is missing, except the spot's own, which is padded. The branch of the tiles predicts from the mean
  of the tiles that exist, not of all 25; the prediction does not depend on that.
- Tiles are described by any encoder, by default EfficientNet-Lite0; the card names it. The publication used a ResNet18 trained on
  histology :cite:p:`Ciga2022` (``encoder="histology-resnet18"`` with its ``file``), also as the start of the target encoder.
  Features and maps with other than ``dim`` channels are projected.
- A step has one section, of which ``spots_per_step`` random spots are predicted; the global encoder reads all. The publication's
  steps have 128 spots of all sections, so its epochs have more steps.
- Crops are augmented by all 8 symmetries of the square, and features are not.
- The targets of the publication, also of its test sections, are means over a spot and its neighbours. ``smooth`` of
  :class:`st_predict.tl.TrainConfig` does that in training only; scores always compare with measured targets.
- On the lattice of Visium, APEG's 3 x 3 cells hold four of the six neighbours.

``variant`` names the publication's settings; with 512 features and 250 genes, ``"her2st"`` has 29,031,640 parameters. Which of
``"her2st"`` (first commit, and 2025) and ``"her2st-deep"`` (June 2024) belongs to its figures for HER2+ is not known. Not known
either are dropout rates, and attention heads of the fusion and global encoders, of ``"her2st-deep"``: here they equal
``"her2st"``.

Shapes: B spots to predict, N spots of the batch, T tokens (tiles or places of a map), D channels, C cells of the lattice, H heads,
E channels per head, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._backbones import create_backbone, fetch_weights, n_features, weights_notice
from st_predict._errors import Advice, InvalidValueError
from st_predict._files import sha256_of_file
from st_predict._validated import Count, Few, Fraction, Probability, validated
from st_predict.encoders import (
    HISTOLOGY_RESNET18,
    Encoder,
    EncoderSpec,
    Features,
    count_features,
    get_encoder,
    load_encoder,
    load_histology_resnet18,
    read_as,
)
from st_predict.models._attention import join_heads, split_heads
from st_predict.models._base import ModelSpec, Preset, Reads, SpotModel
from st_predict.models._card import OF_TIMM, Digest, Encoders, choice
from st_predict.models._checks import of_variant
from st_predict.models._layers import Head, SectionBlock, check_crops, mlp, rows_of_sections
from st_predict.specs import IMAGENET, CropSpec, LevelSpec, TargetSpec

if TYPE_CHECKING:
    from st_predict.crops import Batch

__all__ = ["SPEC", "VARIANTS", "Triplex", "TriplexConfig", "fusion_loss"]

SIDE = 5
_OWN = SIDE**2 // 2  # the spot's own tile
_BRANCHES = ("target", "neighbour", "section")
_BLOCK = 64  # spots whose crops are encoded at a time in prediction


@validated
class TriplexConfig:
    """Hyper-parameters of :class:`Triplex`; triples are of the fusion, global and neighbour encoders.

    Parameters
    ----------
    encoder
        Name of the encoder of the tiles (:func:`st_predict.tl.embed`), or ``"histology-resnet18"``.
    features
        Layer of the encoder: ``"head"`` for its output, ``"stages"`` for statistics of its middle layers; ``None`` for its default.
    n_features
        Number of features per tile. ``None`` if the encoder knows it.
    file, file_sha256
        Published file of ``"histology-resnet18"`` (:func:`st_predict.encoders.load_histology_resnet18`), which ResNet18 as target
        encoder also starts from, and its digest, which training adds to the card.
    arch, weights, arch_args
        Target encoder: a convolutional network of timm, tag of its pretrained weights, and further arguments.
    size
        Side of crop and tiles, in pixels.
    dim
        Channels per token.
    depths, heads, ratios, drops
        Number of blocks, attention heads, hidden channels of MLPs per channel, and dropout rates.
    share
        Weight of the fused prediction in the targets of the other branches.
    spots_per_step
        Number of spots to predict per training step.
    """

    encoder: str = "efficientnet_lite0"
    features: Features | None = None
    n_features: Count | None = None
    file: str | None = None
    file_sha256: str | None = None
    arch: str = "resnet18"
    weights: str | None = None
    arch_args: Mapping[str, Any] | None = None
    size: Count = 224
    dim: Count = 512
    depths: Annotated[tuple[Count, ...], Few] = (1, 3, 3)
    heads: Annotated[tuple[Count, ...], Few] = (4, 16, 16)
    ratios: Annotated[tuple[Count, ...], Few] = (4, 4, 1)
    drops: Annotated[tuple[Probability, ...], Few] = (0.2, 0.1, 0.3)
    share: Fraction = 0.3
    spots_per_step: Count = 128

    def __post_init__(self) -> None:
        for name in ("depths", "heads", "ratios", "drops"):
            if len(values := getattr(self, name)) != 3:
                raise InvalidValueError(
                    f"{name} must be 3 values, of the fusion, global and neighbour encoders, got {values}."
                )
        if any(self.dim % heads for heads in self.heads):
            raise InvalidValueError(f"dim must be a multiple of the numbers of heads {self.heads}, got {self.dim}.")
        if self.reads_histology and (self.size != _HISTOLOGY_SIZE or self.features is not None):
            raise InvalidValueError(
                f"{HISTOLOGY_RESNET18.name!r} sees a tile of {_HISTOLOGY_SIZE} px as a whole; got size {self.size} and features "
                f"{self.features!r}.",
                Advice(f"set size to {_HISTOLOGY_SIZE} and leave out features in {{}}", "hparams"),
                Advice("set another encoder, such as 'efficientnet_lite0', in {}", "hparams"),
            )
        if self.file is not None and not (self.reads_histology or self.starts_from_file):
            raise InvalidValueError(
                f"file is for the encoder {HISTOLOGY_RESNET18.name!r} and a target encoder 'resnet18' without weights and "
                f"arch_args; the network has {self.encoder!r} and {self.arch!r}.",
                Advice("leave out file in {}", "hparams"),
            )

    @property
    def reads_histology(self) -> bool:
        """Whether the encoder of tiles is the publication's."""
        return self.encoder.casefold() == HISTOLOGY_RESNET18.name

    @property
    def starts_from_file(self) -> bool:
        """Whether the target encoder begins with the weights in ``file``."""
        return self.file is not None and self.weights is None and self.arch == "resnet18" and not self.arch_args

    @property
    def crop(self) -> CropSpec:
        """Crop that the network reads, at the encoder's resolution."""
        return CropSpec(levels=(LevelSpec(size=self.size),), mpp=_encoder(self.encoder).crop.mpp)

    def describe(self) -> EncoderSpec:
        """Return the specification of the tiles' encoder, which sees a tile as a whole if it has one field of view."""
        spec = _encoder(self.encoder)
        levels = spec.crop.levels
        fields = (self.size,) if len(levels) == 1 and levels[0].size != self.size else None
        return read_as(spec, features=self.features, fields=fields)

    def load(self) -> Encoder:
        """Return the encoder with weights."""
        if not self.reads_histology:
            return load_encoder(self.describe())
        if self.file is None:
            raise InvalidValueError(
                f"The encoder {self.encoder!r} needs its published file.",
                Advice("name it as file in {}", "hparams"),
                Advice("set another encoder, such as 'efficientnet_lite0', in {}", "hparams"),
            )
        return load_histology_resnet18(self.file, sha256=self.file_sha256)

    def branch(self, i: int) -> dict[str, Any]:
        """Sizes of an encoder: 0 fusion, 1 global, 2 neighbour."""
        return {
            "depth": self.depths[i],
            "heads": self.heads[i],
            "hidden": self.dim * self.ratios[i],
            "drop": self.drops[i],
        }


def _encoder(name: str) -> EncoderSpec:
    return HISTOLOGY_RESNET18 if name.casefold() == HISTOLOGY_RESNET18.name else get_encoder(name)


_HISTOLOGY_SIZE = HISTOLOGY_RESNET18.crop.levels[0].size

VARIANTS = {
    "her2st": TriplexConfig(),
    "her2st-deep": TriplexConfig(depths=(1, 5, 4), heads=(4, 16, 4), ratios=(4, 4, 4)),
    "scc": TriplexConfig(depths=(2, 2, 4), heads=(8, 16, 16), ratios=(4, 1, 1), drops=(0.1, 0.1, 0.3)),
    "stnet": TriplexConfig(depths=(3, 3, 4), heads=(16, 8, 8), ratios=(4, 2, 4), drops=(0.4, 0.1, 0.3)),
}


def config_of(*, variant: str = "her2st", **hparams: Any) -> TriplexConfig:
    """Return the configuration of a variant, with some of its fields replaced."""
    return of_variant(VARIANTS, variant=variant, **hparams)


class Triplex(SpotModel):
    """Network of TRIPLEX.

    Parameters
    ----------
    n_genes
        Size of the panel.
    variant
        Setting of the publication, a name in ``VARIANTS``.
    hparams
        Fields of :class:`TriplexConfig` that differ from the variant.

    Raises
    ------
    ValueError
        If a hyper-parameter is invalid.
    ModuleNotFoundError
        If timm is not installed.
    """

    def __init__(self, n_genes: int, *, variant: str = "her2st", **hparams: Any) -> None:
        super().__init__()
        self.config = c = config_of(variant=variant, **hparams)
        self.crop = c.crop
        self.n_features = c.n_features or count_features(c.describe())
        if self.n_features is None:
            raise InvalidValueError(
                f"The number of features of {c.encoder!r} is unknown.", Advice("give n_features in {}", "hparams")
            )
        self.backbone = create_backbone(c.arch, **(c.arch_args or {}))
        self.widen, self.project = _to(c.dim, n_features(self.backbone)), _to(c.dim, self.n_features)
        self.fusion = FusionEncoder(c.dim, **c.branch(0))
        self.section = SectionEncoder(c.dim, **c.branch(1))
        self.neighbours = NeighbourEncoder(c.dim, **c.branch(2))
        self.heads = nn.ModuleDict({name: Head(c.dim, n_genes) for name in ("fused", *_BRANCHES)})

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction of the fused branch, ``(n_spots, n_genes)``.

        Raises
        ------
        ValueError
            If the batch has no rows and columns, or crops or features of another size.
        """
        return self.branches(batch)["fused"]

    def loss(self, batch: Batch) -> Tensor:
        """Return the fusion loss; in training, of a random sample of the spots."""
        target_NG, rows_B = batch.require("target"), None
        if self.training and len(batch) > self.config.spots_per_step:
            rows_B = torch.randperm(len(batch))[: self.config.spots_per_step].to(target_NG.device)
        target_BG = target_NG if rows_B is None else target_NG[rows_B]
        return fusion_loss(self.branches(batch, rows_B), target_BG, self.config.share)

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise all branches with the mean of each gene; see :class:`~st_predict.models.SpotModel`."""
        for head in self.heads.values():
            head.start_at(mean_G)  # type: ignore[operator]

    def load_pretrained(self) -> None:
        """Load ``weights`` into the target encoder; without ``weights``, a ResNet18 gets the weights in ``file``."""
        c = self.config
        if c.weights is not None:
            pretrained: nn.Module = fetch_weights(f"{c.arch}.{c.weights}", **(c.arch_args or {}))
        elif c.starts_from_file:
            pretrained = load_histology_resnet18(str(c.file), sha256=c.file_sha256).backbone  # type: ignore[assignment]
        else:
            return
        self.backbone.load_state_dict(pretrained.state_dict())

    @property
    def notice(self) -> str:
        """Origin and licence of the target encoder's initial weights; see :class:`~st_predict.models.SpotModel`."""
        c = self.config
        if c.starts_from_file:
            return f"Trained from the weights of {HISTOLOGY_RESNET18.source}, {HISTOLOGY_RESNET18.license}."
        return weights_notice(c.weights and f"{c.arch}.{c.weights}")

    def branches(self, batch: Batch, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        """Return the predictions of all branches, ``(n, n_genes)`` each, for some spots of a batch, by default all."""
        check_crops(batch, self.crop)
        tiles_NTD = self._tiles(batch)
        grid_N2, sections = batch.require("grid"), rows_of_sections(batch)
        own_ND = self.project(tiles_NTD[:, _OWN].float())
        section_ND = torch.cat([self.section(own_ND[rows], grid_N2[rows]) for rows in sections])
        section_ND = section_ND[torch.cat(sections).argsort()]
        if rows_B is None:
            rows_B = torch.arange(len(batch), device=grid_N2.device)
        blocks = [rows_B] if torch.is_grad_enabled() else torch.split(rows_B, _BLOCK)
        parts = [self._of_spots(batch.crops[0][rows], tiles_NTD[rows], section_ND[rows]) for rows in blocks]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _tiles(self, batch: Batch) -> Tensor:
        tiles_NTD = batch.require("features")
        if tiles_NTD.shape[1:] != (SIDE**2, self.n_features):
            raise InvalidValueError(
                f"TRIPLEX reads features (n_spots, {SIDE**2}, {self.n_features}) of {self.config.encoder!r} on tiles; the batch "
                f"has {tuple(tiles_NTD.shape)}."
            )
        return tiles_NTD

    def _of_spots(self, crop_BCHW: Tensor, tiles_BTD: Tensor, section_BD: Tensor) -> dict[str, Tensor]:
        there_BT = ~tiles_BTD[..., 0].isnan()
        tiles_BTD = self.project(tiles_BTD.float().masked_fill(~there_BT[..., None], 0))
        return self.predict_branches(self.target(crop_BCHW), self.neighbours(tiles_BTD, there_BT), there_BT, section_BD)

    def target(self, crop_BCHW: Tensor) -> Tensor:
        """Return the tokens of crops, ``(n, n_places, dim)``, by row."""
        pixels = self.pixels(crop_BCHW.contiguous(memory_format=torch.channels_last))
        map_BDHW: Tensor = self.backbone.forward_features(pixels)  # type: ignore[operator]
        if map_BDHW.ndim != 4 or map_BDHW.shape[1] != n_features(self.backbone):
            raise InvalidValueError(
                f"The target encoder {self.config.arch!r} gives {tuple(map_BDHW.shape)}, no feature maps (n, channels, height, width).",
                Advice("set arch to a convolutional network, such as 'resnet18', in {}", "hparams"),
            )
        return self.widen(map_BDHW.flatten(2).mT)

    def predict_branches(
        self, target_BTD: Tensor, neighbour_BTD: Tensor, there_BT: Tensor, section_BD: Tensor
    ) -> dict[str, Tensor]:
        """Return the predictions of all branches from their tokens."""
        weight_BT1 = (there_BT / there_BT.sum(1, keepdim=True))[..., None]
        tokens = {
            "fused": self.fusion(section_BD, target_BTD, neighbour_BTD, there_BT),
            "target": target_BTD.mean(1),
            "neighbour": (neighbour_BTD * weight_BT1).sum(1),
            "section": section_BD,
        }
        return {name: self.heads[name](tokens_BD) for name, tokens_BD in tokens.items()}


def _to(dim: int, n_channels: int) -> nn.Module:
    return nn.Identity() if n_channels == dim else nn.Linear(n_channels, dim)


def fusion_loss(predicted: Mapping[str, Tensor], target_BG: Tensor, share: float) -> Tensor:
    """Squared error of the fused prediction, and of each branch to a mixture of target and fused prediction.

    Parameters
    ----------
    predicted
        Predictions by branch, ``(n_spots, n_genes)``, the fused one as ``"fused"``. It also learns from the other branches.
    target_BG
        Targets.
    share
        Weight of the fused prediction among the targets of the other branches.
    """
    fused_BG = predicted["fused"]
    loss = F.mse_loss(fused_BG, target_BG)
    for name in _BRANCHES:
        loss = loss + (1 - share) * F.mse_loss(predicted[name], target_BG)
        loss = loss + share * F.mse_loss(predicted[name], fused_BG)
    return loss


class NeighbourEncoder(nn.Module):
    """Attention among the tiles of a spot, ``(B, T, D)`` to the same; missing tiles are not read."""

    def __init__(self, dim: int, *, depth: int, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TileBlock(dim, heads=heads, hidden=hidden, drop=drop) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BTD: Tensor, there_BT: Tensor) -> Tensor:
        for block in self.blocks:
            x_BTD = block(x_BTD, there_BT)
        return self.norm(x_BTD)


class TileBlock(nn.Module):
    """Attention with a learned bias per distance of two tiles in rows and columns, and an MLP."""

    _distance_TT: Tensor

    def __init__(self, dim: int, *, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(heads, SIDE**2))
        self.drop = nn.Dropout(drop)
        self.mlp = mlp(dim, hidden, drop=drop, last=nn.Dropout(drop))
        places_T2 = torch.tensor(list(product(range(SIDE), repeat=2)), device="cpu")
        rows_TT, columns_TT = (places_T2[:, None] - places_T2).abs().unbind(-1)
        self.register_buffer("_distance_TT", SIDE * rows_TT + columns_TT, persistent=False)

    def forward(self, x_BTD: Tensor, there_BT: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = split_heads(self.qkv(self.norm(x_BTD)), self.head_dim)
        bias_BHTT = self.bias[:, self._distance_TT].masked_fill(~there_BT[:, None, None], -torch.inf)
        read_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=bias_BHTT.to(q_BHTE.dtype))
        x_BTD = x_BTD + self.drop(self.out(join_heads(read_BHTE)))
        return x_BTD + self.mlp(x_BTD)


class SectionEncoder(nn.Module):
    """Global encoder: attention among all spots of a section, ``(N, D)`` to the same, with APEG after the first block."""

    def __init__(self, dim: int, *, depth: int, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        block = partial(SectionBlock, dim, heads=heads, head_dim=dim // heads, mlp_dim=hidden, drop=drop)
        self.first, self.apeg = block(), Apeg(dim)
        self.blocks = nn.Sequential(*(block() for _ in range(depth - 1)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_ND: Tensor, grid_N2: Tensor) -> Tensor:
        return self.norm(self.blocks(self.apeg(self.first(x_ND), grid_N2)))


class Apeg(nn.Module):
    """Atypical position encoding: a depthwise 3 x 3 convolution over the occupied cells of the lattice, plus the token.

    Empty cells are zero. Only occupied cells are computed, so memory does not depend on the extent of the lattice. The first axis of
    the kernel is along columns, the second along rows.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x_ND: Tensor, grid_N2: Tensor) -> Tensor:
        """Return the tokens, ``(N, D)``, given row and column of each spot."""
        place_N2 = grid_N2 - grid_N2.amin(0)
        width = int(place_N2[:, 1].max()) + 3  # a free column at each side
        cell_C, which_N = torch.unique(place_N2[:, 0] * width + place_N2[:, 1] + 1, return_inverse=True)
        n_C1 = torch.bincount(which_N, minlength=len(cell_C))[:, None]
        sum_CD = x_ND.new_zeros(len(cell_C), x_ND.shape[1]).index_add(0, which_N, x_ND)
        mean_CD = torch.cat([sum_CD / n_C1, sum_CD.new_zeros(1, sum_CD.shape[1])])  # the last one is an empty cell
        around_CD = self.conv.bias.expand(len(cell_C), -1)  # type: ignore[union-attr]
        for column, row in product(range(3), repeat=2):
            wanted_C = cell_C + (row - 1) * width + column - 1
            found_C = torch.searchsorted(cell_C, wanted_C).clamp(max=len(cell_C) - 1)
            found_C = torch.where(cell_C[found_C] == wanted_C, found_C, len(cell_C))
            around_CD = around_CD + mean_CD[found_C] * self.conv.weight[:, 0, column, row]
        return x_ND + around_CD[which_N]


class FusionEncoder(nn.Module):
    """The spot's token in the section reads the tokens of crop and tiles, through the same blocks; the sum of both."""

    def __init__(self, dim: int, *, depth: int, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(dim, heads=heads, hidden=hidden, drop=drop) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, section_BD: Tensor, target_BTD: Tensor, neighbour_BTD: Tensor, there_BT: Tensor) -> Tensor:
        """Return the fused token of each spot, ``(B, D)``."""
        of_target_B1D = of_tiles_B1D = section_BD[:, None]
        for block in self.blocks:
            of_target_B1D = block(of_target_B1D, target_BTD)
            of_tiles_B1D = block(of_tiles_B1D, neighbour_BTD, there_BT)
        return self.norm(of_target_B1D + of_tiles_B1D)[:, 0]


class FusionBlock(nn.Module):
    """Cross-attention of one query to tokens, with one layer norm for both, and an MLP."""

    def __init__(self, dim: int, *, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.q, self.kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)
        self.mlp = mlp(dim, hidden, drop=drop, last=nn.Dropout(drop))

    def forward(self, query_B1D: Tensor, x_BTD: Tensor, there_BT: Tensor | None = None) -> Tensor:
        q_BH1E = self.q(self.norm(query_B1D)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k_BHTE, v_BHTE = self.kv(self.norm(x_BTD)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        keep_B11T = None if there_BT is None else there_BT[:, None, None]
        read_BH1E = F.scaled_dot_product_attention(q_BH1E, k_BHTE, v_BHTE, attn_mask=keep_B11T)
        query_B1D = query_B1D + self.drop(self.out(join_heads(read_BH1E)))
        return query_B1D + self.mlp(query_B1D)


def reads_of(**hparams: Any) -> Reads:
    """Inputs of the network: crops, and features of tiles."""
    config = config_of(**hparams)
    return Reads(kind="crops", describe_encoder=config.describe, load_encoder=config.load, tiles=SIDE)


def with_digest(*, file: str | None = None, **_: Any) -> dict[str, Any]:
    """SHA-256 of the encoder's file, for the card."""
    if file is None:
        return {}
    if not Path(file).is_file():
        raise FileNotFoundError(f"Found no weights {file!r}.")
    return {"file_sha256": sha256_of_file(file)}


SPEC = ModelSpec(
    name="triplex",
    summary="A spot's crop, the tiles around it and all spots of its section, fused.",
    citation="Chung2024",
    license="none (github.com/NEXGEM/TRIPLEX)",
    family="section",
    build=Triplex,
    config=TriplexConfig,
    crop=TriplexConfig().crop,
    crop_of=lambda **hparams: config_of(**hparams).crop,
    pixels=IMAGENET,
    pixels_of=lambda **_: IMAGENET,
    reads_of=reads_of,
    complete_of=with_digest,
    scope="section",
    needs=("grid",),
    of_card={
        **OF_TIMM,
        "variant": choice(*VARIANTS),
        "encoder": choice(HISTOLOGY_RESNET18.name) | Encoders,
        "file_sha256": Digest | None,
    },
    of_user=("file",),
    at_prediction=("file",),
    hparams={"variant": "her2st", "encoder": "efficientnet_lite0"},
    tiny={
        "encoder": "rgb",
        "size": 64,
        "arch_args": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
        "dim": 32,
        "depths": [1, 2, 1],
        "heads": [2, 2, 2],
        "ratios": [2, 2, 1],
    },
    original=Preset(
        training={"epochs": 200, "patience": 20, "start_at_mean": False, "smooth": True},
        hparams={"encoder": HISTOLOGY_RESNET18.name},
        target=TargetSpec(transform="log10_total", total=1e4),
        panel="mean",
        notes="Not reproduced: a learning rate that falls by a tenth every 50 epochs, steps with 128 spots of all sections, half "
        "precision, and test sections that choose the epoch and are smoothed. Published scores are for smoothed test targets.",
    ),
)
