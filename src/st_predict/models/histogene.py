"""HisToGene: the spots of a section as one sequence through a transformer :cite:p:`Pang2021`.

The pixels of a spot's crop are one token, to which learned vectors of its row and column on the lattice of the assay are
added.

Written from the paper and from the behaviour of the published code (https://github.com/maxpmx/HisToGene, MIT licence,
© 2021 maxpmx); :func:`convert` reads its weights. Differences and notes:

- Pixels are grey values from 0 to 255, as published. The mean over all crops then dominates each token, and training is
  slow: at a learning rate of 1e-4 it hardly leaves the mean of each gene. ``measure_pixels=True`` in
  :class:`st_predict.tl.TrainConfig` normalises them.
- The published code fails with an index error on a lattice of more than 64 rows or columns, such as Visium's 78 x 128;
  ``n_pos`` sets the limit.
- Attention is fused: memory grows with the number of spots, not with its square.
- A batch may hold several sections; spots attend only to their own section.
- The published super-resolution predicts crops every 56 pixels, half their width apart. Their rows and columns are pixels
  over a thirtieth of the section's extent, unlike in training. The result is averaged with the prediction for the measured
  spots. Here super-resolution predicts the spots of :func:`st_predict.pp.make_grid`, without averaging. The grid has rows
  and columns of its own: with a pitch other than the assay's, their learned vectors do not apply, either.

Shapes: B spots, N spots of a section, C colours, S pixels per side, D channels, H heads, E channels per head, G genes.
"""

from __future__ import annotations

from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from st_predict._validated import Count, Probability, validated
from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._checks import count_layers, heads_of
from st_predict.models._layers import (
    Head,
    Positions,
    SectionBlock,
    check_crops,
    check_lattice,
    renamed,
    rows_of_sections,
)
from st_predict.specs import CropSpec, LevelSpec, PixelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_predict.crops import Batch

__all__ = ["SPEC", "HisToGene", "HisToGeneConfig", "convert"]

_BLOCK = 256  # spots whose pixels are converted to floats at a time


@validated
class HisToGeneConfig:
    """Hyper-parameters of :class:`HisToGene`; the defaults are the published code's.

    Parameters
    ----------
    size
        Side of the crop, in pixels; 224 in the M2OST paper's comparison :cite:p:`Wang2025`.
    n_pos
        Largest number of rows, and of columns, of the lattice.
    dim
        Channels per token.
    depth
        Number of blocks; 8 in the publication's tutorial.
    heads, head_dim
        Attention heads, and channels per head.
    mlp_dim
        Hidden channels of the MLP.
    drop
        Dropout rate of tokens, in MLPs and after attention.
    """

    size: Count = 112
    n_pos: Count = 64
    dim: Count = 1024
    depth: Count = 4
    heads: Count = 16
    head_dim: Count = 64
    mlp_dim: Count = 2048
    drop: Probability = 0.1

    @property
    def crop(self) -> CropSpec:
        """Crops that the network reads."""
        return CropSpec(levels=(LevelSpec(size=self.size),))


class HisToGene(SpotModel):
    """Network of HisToGene.

    Parameters
    ----------
    n_genes
        Size of the panel.
    hparams
        Fields of :class:`HisToGeneConfig`.

    Raises
    ------
    ValueError
        If a hyper-parameter is invalid.
    """

    def __init__(self, n_genes: int, **hparams: Any) -> None:
        super().__init__()
        self.config = c = HisToGeneConfig(**hparams)
        self.crop = c.crop
        self.embed = nn.Linear(3 * c.size**2, c.dim)
        self.positions = Positions(c.n_pos, c.dim)
        self.drop = nn.Dropout(c.drop)
        block = partial(SectionBlock, c.dim, heads=c.heads, head_dim=c.head_dim, mlp_dim=c.mlp_dim, drop=c.drop)
        self.blocks = nn.Sequential(*(block() for _ in range(c.depth)))
        self.norm = nn.LayerNorm(c.dim)
        self.head = Head(c.dim, n_genes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Raises
        ------
        ValueError
            If the batch has no rows and columns, they are not from 0 to ``n_pos - 1``, or the crops have another size.
        """
        check_crops(batch, self.crop)
        sections = rows_of_sections(batch)
        x_BD = torch.cat([self.blocks(self._tokens(batch, rows_N)) for rows_N in sections])
        return self.head(self.norm(x_BD))[torch.cat(sections).argsort()]

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        self.head.start_at(mean_G)

    def _tokens(self, batch: Batch, rows_N: Tensor) -> Tensor:
        """Return the tokens of a section, ``(n, dim)``."""
        place_ND = self.positions(batch.require("grid")[rows_N])
        parts = [self.embed(self.pixels(batch.crops[0][rows]).flatten(1)) for rows in torch.split(rows_N, _BLOCK)]
        return self.drop(torch.cat(parts) + place_ND)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the published code (any size and depth) to :class:`HisToGene`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    depth = len({name.split(".")[3] for name in state if name.startswith("vit.transformer.layers.")})
    ours = renamed(state, _published_names(depth), model="HisToGene")
    weight_DL = ours["embed.weight"]  # published pixels are in the order column, row, colour
    size = isqrt(weight_DL.shape[1] // 3)
    ours["embed.weight"] = weight_DL.reshape(-1, size, size, 3).permute(0, 3, 2, 1).flatten(1)
    return ours


def _published_names(depth: int) -> dict[str, str]:
    layers = {"embed": "patch_embedding", "norm": "gene_head.0", "head": "gene_head.1"}
    names = {"positions.columns.weight": "x_embed.weight", "positions.rows.weight": "y_embed.weight"}
    for b in range(depth):
        ours, theirs = f"blocks.{b}", f"vit.transformer.layers.{b}"
        names[f"{ours}.attention.qkv.weight"] = f"{theirs}.0.fn.to_qkv.weight"
        layers |= {f"{ours}.attention.norm": f"{theirs}.0.norm", f"{ours}.attention.out": f"{theirs}.0.fn.to_out.0"}
        layers |= {
            f"{ours}.mlp.{n}": f"{theirs}.1.{name}" for n, name in ((0, "norm"), (1, "fn.net.0"), (4, "fn.net.3"))
        }
    return names | {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")
    }


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer hyper-parameters from the shapes of converted weights."""
    dim, n_values = state["embed.weight"].shape
    n_pos, width = len(state["positions.rows.weight"]), len(state["blocks.0.attention.qkv.weight"]) // 3
    return {
        "size": isqrt(n_values // 3),
        "n_pos": n_pos,
        "dim": dim,
        "depth": count_layers(state, "blocks"),
        "mlp_dim": len(state["blocks.0.mlp.1.weight"]),
        **heads_of(dim, width, like=HisToGeneConfig()),
    }


SPEC = ModelSpec(
    name="histogene",
    summary="Transformer over the spots of a section, each a flattened crop.",
    citation="Pang2021",
    license="MIT (github.com/maxpmx/HisToGene)",
    family="section",
    build=HisToGene,
    config=HisToGeneConfig,
    crop=HisToGeneConfig().crop,
    crop_of=lambda **hparams: HisToGeneConfig(**hparams).crop,
    pixels=PixelSpec(std=(1 / 255, 1 / 255, 1 / 255)),
    scope="section",
    needs=("grid",),
    check_of=lambda grids, **hparams: check_lattice(grids, HisToGeneConfig(**hparams).n_pos),
    hparams={
        "size": 112,
        "n_pos": 64,
        "dim": 1024,
        "depth": 4,
        "heads": 16,
        "head_dim": 64,
        "mlp_dim": 2048,
        "drop": 0.1,
    },
    paper=Preset(
        hparams={"size": 224},
        notes="Crops of 224 px, with which a network for 250 genes has the 188,118,266 parameters of the paper's Table 3.",
    ),
    original=Preset(
        training={"lr": 1e-5, "epochs": 100, "augment": False, "start_at_mean": False},
        hparams={"depth": 8},
        target=TargetSpec(transform="log10_total", total=1e4),
        panel="hvg",
        notes="Not reproduced: the "
        "list of 785 genes, keeping the last epoch instead of the best, and the mean with predictions for crops every 56 pixels. "
        "Published scores are for sections whose neighbours from the same patient were in training.",
    ),
    tiny={"size": 32, "dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 16, "drop": 0.1},
    convert=convert,
    hparams_of=hparams_of,
)
