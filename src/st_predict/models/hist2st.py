"""Hist2ST: convolutions in each crop, a transformer over the section and a graph of its lattice :cite:p:`Zeng2022`.

ConvMixer turns a crop into a token, to which learned vectors of its row and column are added. The spots of a section attend
to each other. GraphSAGE layers average over the nearest spots of the lattice. An LSTM reads the outputs of these layers, and
the prediction is made from its mean. Two further heads share this input: one models the raw counts (zero-inflated negative
binomial, ZINB), the other weighs predictions for altered crops, which the prediction for unaltered crops is trained to match
(self-distillation). These define the method, so its loss is the same in every preset.

Written from the paper and from the behaviour of the published code (https://github.com/biomed-AI/Hist2ST, without a licence);
:func:`convert` reads its weights. Differences and notes:

- Pixels are grey values from 0 to 255, as published; training is faster with ``measure_pixels=True`` in
  :class:`st_predict.tl.TrainConfig`, which normalises them.
- Published crops are transposed. Here the axes of the kernels and the order of the cells in a token are transposed instead.
- A spot without neighbours reads itself. In the published code it makes all predictions of its section NaN.
- Ties between neighbours are broken by their position, not by a sorting algorithm.
- The published code fails with an index error on a lattice of more than 64 rows or columns, such as Visium's 78 x 128;
  ``n_pos`` sets the limit.
- Crops are altered only in training; the validation loss covers prediction and counts. Five altered passes take six times the
  memory of one: ``regions=`` in the configuration trains on parts of large sections.
- Batch normalisation runs over the spots of one section, also if a batch has several. In a section with a single spot it runs
  over the cells of the spot's crop.
- Attention is fused: memory grows with the number of spots, not with its square.
- Two options of the published code are left out: a negative binomial without zero inflation, and the maximum over neighbours.
- Graph and LSTM are computed in float32, also if the rest is in bfloat16: differences between spots are too small for it.

Shapes: B spots, N spots of a section, V altered views, K neighbours, L layers, C colours or channels, S pixels per side,
P cells per side, D channels per token, H heads, E channels per head, G genes.
"""

from __future__ import annotations

from functools import partial
from math import cos, isqrt, log, radians, sin
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, Natural, NotNegative, Positive, Probability, validated
from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._checks import count_layers
from st_predict.models._layers import (
    Head,
    Positions,
    SectionBlock,
    check_crops,
    check_lattice,
    full_precision,
    renamed,
    rows_of_sections,
)
from st_predict.models._neighbours import nearest_spots
from st_predict.specs import CropSpec, LevelSpec, PixelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from st_predict.crops import Batch

__all__ = ["SPEC", "Hist2ST", "Hist2STConfig", "altered", "convert", "neighbours", "size_factors", "zinb_loss"]

_BLOCK = 128  # spots per step of convolutions and LSTM


@validated
class Hist2STConfig:
    """Hyper-parameters of :class:`Hist2ST`; the defaults are the published code's.

    Parameters
    ----------
    size, patch
        Side of the crop, and of its cells, in pixels; the crop is 224 in the M2OST paper's comparison :cite:p:`Wang2025`.
    channels, kernel, mixers
        Channels, side of the kernels in cells, and number of blocks of ConvMixer. A token has an eighth of the channels per
        cell.
    n_pos
        Largest number of rows, and of columns, of the lattice.
    depth, heads, head_dim
        Transformer blocks, attention heads, and channels per head.
    graph
        Number of GraphSAGE layers.
    k, max_distance
        Number of nearest lattice spots that are neighbours, and their largest distance in rows and columns; ``None`` for no
        limit.
    drop
        Dropout rate of cells, in MLPs and after attention.
    zinb, distill
        Loss weights of the counts' likelihood and of self-distillation; the squared error has weight 1.
    views
        Number of altered views of the crops per training step; 0 turns self-distillation off.
    """

    size: Count = 112
    patch: Count = 7
    channels: Count = 32
    kernel: Count = 5
    mixers: Count = 2
    n_pos: Count = 64
    depth: Count = 8
    heads: Count = 16
    head_dim: Count = 64
    graph: Count = 4
    k: Annotated[Count, Field(le=1024)] = 4
    max_distance: Positive | None = 2.0
    drop: Probability = 0.2
    zinb: NotNegative = 0.25
    distill: NotNegative = 0.5
    views: Annotated[Natural, Field(le=100)] = 5

    def __post_init__(self) -> None:
        if self.channels % 8 or self.size < 2 * self.patch:
            raise InvalidValueError(
                "channels must be a multiple of 8 and size at least twice patch, got "
                f"{self.channels}, {self.size} and {self.patch}."
            )

    @property
    def dim(self) -> int:
        """Channels per token."""
        return (self.size // self.patch) ** 2 * self.channels // 8

    @property
    def crop(self) -> CropSpec:
        """Crops that the network reads."""
        return CropSpec(levels=(LevelSpec(size=self.size),))


class Hist2ST(SpotModel):
    """Network of Hist2ST.

    Parameters
    ----------
    n_genes
        Size of the panel.
    hparams
        Fields of :class:`Hist2STConfig`.

    Raises
    ------
    ValueError
        If a hyper-parameter is invalid.
    """

    def __init__(self, n_genes: int, **hparams: Any) -> None:
        super().__init__()
        self.config = c = Hist2STConfig(**hparams)
        self.crop = c.crop
        self.cells = nn.Sequential(
            nn.Conv2d(3, c.channels, c.patch, stride=c.patch),
            nn.Dropout(c.drop),
            *(Mixer(c.channels, c.kernel) for _ in range(c.mixers)),
            nn.Conv2d(c.channels, c.channels // 8, 1),
        )
        self.positions = Positions(c.n_pos, c.dim)
        block = partial(SectionBlock, c.dim, heads=c.heads, head_dim=c.head_dim, mlp_dim=c.dim, drop=c.drop)
        self.blocks = nn.Sequential(*(block() for _ in range(c.depth)))
        self.graph = nn.ModuleList(SAGE(c.dim) for _ in range(c.graph))
        self.lstm = nn.LSTM(c.dim, c.dim, num_layers=2)
        self.norm = nn.LayerNorm(c.dim)
        self.head = Head(c.dim, n_genes)
        self.counts = Counts(c.dim, n_genes)
        self.weigh = nn.Sequential(nn.Linear(c.dim, c.dim), nn.ReLU(), nn.Linear(c.dim, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Raises
        ------
        ValueError
            If the batch has no rows and columns, they are not from 0 to ``n_pos - 1``, or the crops have another size.
        """
        return self._predict(self._embed(batch, self._layout(batch)))

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of squared error, likelihood of the counts and, in training, self-distillation.

        Size factors are total counts over the median of the section's spots in the batch.

        Raises
        ------
        ValueError
            If the batch has no targets or no counts, or :meth:`forward` refuses it.
        """
        c, target_BG, counts_BG = self.config, batch.require("target"), batch.require("counts")
        layout = self._layout(batch)
        h_BD = self._embed(batch, layout)
        prediction_BG = self._predict(h_BD)
        size_B = torch.cat([size_factors(counts_BG[rows]) for rows in layout.sections])[layout.order]
        loss = F.mse_loss(prediction_BG, target_BG) + c.zinb * zinb_loss(counts_BG, *self.counts(h_BD, size_B))
        if self.training and c.views:
            views_VBD = torch.stack([self._embed(batch, layout, altered) for _ in range(c.views)])
            loss = loss + c.distill * F.mse_loss(self._weighted(views_VBD), prediction_BG)
        return loss

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        self.head.start_at(mean_G)

    def _layout(self, batch: Batch) -> Layout:
        check_crops(batch, self.crop)
        c, sections = self.config, rows_of_sections(batch)
        nearest = neighbours(batch.require("grid"), batch.section, k=c.k, max_distance=c.max_distance)
        return Layout(sections, torch.cat(sections).argsort(), *nearest)

    def _embed(self, batch: Batch, layout: Layout, alter: Callable[[Tensor], Tensor] = Tensor.float) -> Tensor:
        """Return the input of the heads, ``(n_spots, dim)``, optionally for altered crops."""
        sections = (self.blocks(self._tokens(batch, rows_N, alter)) for rows_N in layout.sections)
        x_BD = torch.cat([*sections])[layout.order]
        with full_precision(x_BD):
            x_BD = x_BD.float()
            layers = [x_BD := layer(x_BD, layout) for layer in self.graph]
            blocks = zip(*(torch.split(x_BD, _BLOCK) for x_BD in layers), strict=True)
            return torch.cat([self.lstm(torch.stack(x_LND))[0].mean(0) for x_LND in blocks])

    def _tokens(self, batch: Batch, rows_N: Tensor, alter: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the tokens of a section, ``(n, dim)``."""
        place_ND = self.positions(batch.require("grid")[rows_N])
        blocks = (
            [rows_N] if self.training else torch.split(rows_N, _BLOCK)
        )  # batch normalisation needs all spots at once
        parts = (self.cells(self.pixels(alter(batch.crops[0][rows]))) for rows in blocks)
        return torch.cat([x_NCPP.mT.flatten(1) for x_NCPP in parts]) + place_ND  # column by column, as published

    def _predict(self, h_BD: Tensor) -> Tensor:
        return self.head(self.norm(h_BD))

    def _weighted(self, views_VBD: Tensor) -> Tensor:
        """Return the mean of the predictions for altered crops, weighted per spot."""
        with full_precision(views_VBD):
            return (self.weigh(views_VBD).softmax(0) * self._predict(views_VBD)).sum(0)


class Layout(NamedTuple):
    """Layout of the spots of a batch: rows per section, the place of each spot in these rows joined, and :func:`neighbours`."""

    sections: list[Tensor]
    order: Tensor
    nearest_BK: Tensor
    share_BK: Tensor


def neighbours(
    grid_B2: Tensor, section_B: Tensor | None, *, k: int, max_distance: float | None
) -> tuple[Tensor, Tensor]:
    """Find the neighbours of each spot, and their weights in the mean.

    Parameters
    ----------
    grid_B2
        Rows and columns of the spots, ``(n_spots, 2)``.
    section_B
        Section of each spot, ``(n_spots,)``, as in :class:`st_predict.crops.Batch`.
    k, max_distance
        Limits of the neighbourhood; see :class:`Hist2STConfig`.

    Returns
    -------
    tuple of Tensor and Tensor
        Rows and weights, ``(n_spots, k)`` each. Weights of missing neighbours are 0; a spot without neighbours reads
        itself.
    """
    nearest_BK, there_BK = nearest_spots(grid_B2, k, section_B)
    if max_distance is not None:
        apart_BK2 = (grid_B2[nearest_BK] - grid_B2[:, None]).float()
        there_BK = there_BK & (torch.linalg.vector_norm(apart_BK2, dim=2) <= max_distance)
    own_B1 = torch.arange(len(grid_B2), device=grid_B2.device)[:, None]
    nearest_BK = torch.where(there_BK, nearest_BK, own_B1)
    there_BK = there_BK | ~there_BK.any(1, keepdim=True)
    return nearest_BK, there_BK / there_BK.sum(1, keepdim=True)


def altered(crops_NCSS: Tensor) -> Tensor:
    """Alter all crops in the same random way.

    They become grey with probability 0.1, are rotated by up to 90 degrees, and are flipped vertically with probability 0.2.
    Corners without pixels are black.

    Returns
    -------
    Tensor
        Grey values from 0 to 255, floats of the same shape.
    """
    grey, turn, mirror = torch.rand(3).tolist()  # on the CPU, so that all devices draw the same
    x_NCSS = crops_NCSS.float()
    if grey < 0.1:
        luma_C11 = x_NCSS.new_tensor([[[0.299]], [[0.587]], [[0.114]]])
        x_NCSS = (x_NCSS * luma_C11).sum(1, keepdim=True).expand_as(x_NCSS)
    x_NCSS = turned(x_NCSS, 180 * turn - 90)
    return x_NCSS.flip(2) if mirror < 0.2 else x_NCSS


def turned(x_NCSS: Tensor, degrees: float) -> Tensor:
    """Rotate images counter-clockwise, with nearest-neighbour interpolation and black corners."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    matrix_123 = x_NCSS.new_tensor([[[c, -s, 0], [s, c, 0]]])
    planes_1XSS = x_NCSS.flatten(0, 1)[None]
    where_1SS2 = F.affine_grid(matrix_123, list(planes_1XSS.shape), align_corners=False)
    return F.grid_sample(planes_1XSS, where_1SS2, mode="nearest", align_corners=False).view_as(x_NCSS)


def size_factors(counts_NG: Tensor) -> Tensor:
    """Total count of each spot of a section over their median, ``(n_spots,)``."""
    total_N = counts_NG.sum(1)
    return total_N / total_N.quantile(0.5).clamp(min=1)  # the median is 0 if most spots are empty


def zinb_loss(counts_BG: Tensor, mean_BG: Tensor, dispersion_BG: Tensor, zero_BG: Tensor) -> Tensor:
    """Negative log-likelihood of a zero-inflated negative binomial, mean over spots and genes.

    Parameters
    ----------
    counts_BG
        Raw counts.
    mean_BG, dispersion_BG
        Mean and inverse dispersion of the negative binomial: the variance is ``mean + mean**2 / dispersion``.
    zero_BG
        Logit of the probability of an added zero.
    """
    ratio_BG = (mean_BG / dispersion_BG).clamp(min=1e-20)
    ways_BG = torch.lgamma(counts_BG + dispersion_BG) - torch.lgamma(dispersion_BG) - torch.lgamma(counts_BG + 1)
    likelihood_BG = ways_BG + counts_BG * ratio_BG.log() - (counts_BG + dispersion_BG) * ratio_BG.log1p()
    likelihood_BG = F.logsigmoid(-zero_BG) + likelihood_BG
    with_zeros_BG = torch.logaddexp(F.logsigmoid(zero_BG), likelihood_BG)
    return -torch.where(counts_BG > 0, likelihood_BG, with_zeros_BG).mean()


class Counts(nn.Module):
    """Parameters of :func:`zinb_loss` per gene, from ``(n_spots, dim)`` and the size factors of the spots."""

    def __init__(self, dim: int, n_genes: int) -> None:
        super().__init__()
        self.mean, self.dispersion, self.zero = (Head(dim, n_genes) for _ in range(3))

    def forward(self, h_BD: Tensor, size_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean_BG = self.mean(h_BD).clamp(log(1e-5), log(1e6)).exp() * size_B[:, None]
        return mean_BG, F.softplus(self.dispersion(h_BD)).clamp(1e-4, 1e4), self.zero(h_BD)


class Mixer(nn.Module):
    """Block of ConvMixer: mixes cells per channel, with a residual connection, and then channels per cell."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        layers = (
            (
                nn.Conv2d(channels, channels, kernel, groups=channels, padding="same"),
                nn.BatchNorm2d(channels),
                nn.GELU(),
            )
            for _ in range(2)
        )
        self.of_cells = nn.Sequential(*(layer for three in layers for layer in three))
        self.of_channels = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels))

    def forward(self, x_NCPP: Tensor) -> Tensor:
        return self.of_channels(x_NCPP + self.of_cells(x_NCPP))


class SAGE(nn.Module):
    """GraphSAGE layer: mean of the neighbours, linear layer, normalisation to length 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BD: Tensor, layout: Layout) -> Tensor:
        share_BK = layout.share_BK.to(x_BD.dtype)
        mean_BD = F.embedding_bag(layout.nearest_BK, x_BD, per_sample_weights=share_BK, mode="sum")
        return F.normalize(self.linear(mean_BD).relu())


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the published code (any size and depths) to :class:`Hist2ST`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    ours = renamed(state, _published_names(state), model="Hist2ST")
    # published crops are transposed
    return {name: kernel.mT if kernel.ndim == 4 else kernel for name, kernel in ours.items()}


_LAYERS = {
    "norm": "gene_head.0",
    "head": "gene_head.1",
    "counts.mean": "mean.0",
    "counts.dispersion": "disp.0",
    "counts.zero": "pi.0",
    "weigh.0": "coef.0",
    "weigh.2": "coef.2",
    "cells.0": "patch_embedding",
}
_TRUNK = "vit.transformer"


def _published_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    mixers, depth, graph = (
        len({name.split(".")[3] for name in state if name.startswith(f"{_TRUNK}.layer{stage}.")}) for stage in (1, 2, 3)
    )
    layers = _LAYERS | {f"cells.{mixers + 2}": f"{_TRUNK}.down.0"}
    norms: dict[str, str] = {}
    names = {"positions.columns.weight": "x_embed.weight", "positions.rows.weight": "y_embed.weight"}
    for b in range(mixers):
        ours, theirs = f"cells.{b + 2}", f"{_TRUNK}.layer1.{b}"
        layers |= {f"{ours}.of_cells.{n}": f"{theirs}.dw.{n}" for n in (0, 3)} | {
            f"{ours}.of_channels.0": f"{theirs}.pw.0"
        }
        norms |= {f"{ours}.of_cells.{n}": f"{theirs}.dw.{n}" for n in (1, 4)} | {
            f"{ours}.of_channels.2": f"{theirs}.pw.2"
        }
    for b in range(depth):
        ours, theirs = f"blocks.{b}", f"{_TRUNK}.layer2.{b}"
        names[f"{ours}.attention.qkv.weight"] = f"{theirs}.attn.fn.to_qkv.weight"
        layers |= {
            f"{ours}.attention.norm": f"{theirs}.attn.norm",
            f"{ours}.attention.out": f"{theirs}.attn.fn.to_out.0",
        }
        layers |= {
            f"{ours}.mlp.{n}": f"{theirs}.ff.{name}" for n, name in ((0, "norm"), (1, "fn.net.0"), (4, "fn.net.3"))
        }
    names |= {f"graph.{b}.linear.weight": f"{_TRUNK}.layer3.{b}.weight" for b in range(graph)}
    names |= {f"lstm.{name}": f"{_TRUNK}.jknet.0.{name}" for name, _ in nn.LSTM(1, 1, num_layers=2).named_parameters()}
    names |= {f"{o}.{part}": f"{t}.{part}" for o, t in (layers | norms).items() for part in ("weight", "bias")}
    counters = ("running_mean", "running_var", "num_batches_tracked")
    return names | {f"{o}.{part}": f"{t}.{part}" for o, t in norms.items() for part in counters}


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer hyper-parameters from the shapes of converted weights."""
    channels, _, patch, _ = state["cells.0.weight"].shape
    n_pos, dim = state["positions.rows.weight"].shape
    kernels = {name: x.shape[-1] for name, x in state.items() if name.endswith(".of_cells.0.weight")}
    width, c = len(state["blocks.0.attention.qkv.weight"]) // 3, Hist2STConfig()
    published = width == c.heads * c.head_dim  # at any size of the crop, and so of a token
    return {
        "size": patch * isqrt(8 * dim // channels),
        "patch": patch,
        "channels": channels,
        **({"kernel": next(iter(kernels.values()))} if kernels else {}),
        "mixers": len(kernels),
        "n_pos": n_pos,
        "depth": count_layers(state, "blocks"),
        "graph": count_layers(state, "graph"),
        "heads": c.heads if published else None,
        "head_dim": c.head_dim if published else None,
    }


SPEC = ModelSpec(
    name="hist2st",
    summary="Convolutions in each crop, a transformer over the section and a graph of its lattice.",
    citation="Zeng2022",
    license="none (github.com/biomed-AI/Hist2ST)",
    family="section",
    build=Hist2ST,
    config=Hist2STConfig,
    crop=Hist2STConfig().crop,
    crop_of=lambda **hparams: Hist2STConfig(**hparams).crop,
    pixels=PixelSpec(std=(1 / 255, 1 / 255, 1 / 255)),
    scope="section",
    needs=("grid", "counts"),
    check_of=lambda grids, **hparams: check_lattice(grids, Hist2STConfig(**hparams).n_pos),
    hparams={"size": 112, "n_pos": 64, "max_distance": 2.0, "drop": 0.2, "zinb": 0.25, "distill": 0.5, "views": 5},
    paper=Preset(
        hparams={"size": 224},
        notes="Crops of 224 px, with which a network for 250 genes has 759,917,997 parameters, as in the paper's Table 3: its "
        "675.50 M leave out the graph. They need about 12 GB for weights, gradients and the state of Adam.",
    ),
    original=Preset(
        training={"lr": 1e-5, "epochs": 350, "augment": False, "start_at_mean": False},
        target=TargetSpec(transform="log10_total", total=1e4),
        panel="hvg",
        notes="Not reproduced: the list of 785 "
        "genes, the learning rate that falls by a tenth every 50 epochs, and keeping the last epoch instead of the best. "
        "Published scores are for sections whose neighbours from the same patient were in training.",
    ),
    tiny={
        "size": 32,
        "patch": 8,
        "channels": 8,
        "kernel": 3,
        "mixers": 1,
        "depth": 1,
        "heads": 2,
        "head_dim": 8,
        "graph": 2,
        "views": 2,
    },
    convert=convert,
    hparams_of=hparams_of,
)
