"""STPath: a transformer over the spots of a section, which may read the counts of context spots :cite:p:`Huang2025b`.

Each spot is a token: the sum of embeddings of image, expression, organ and technology. Unknown expression is replaced by a mask.
Spots attend to all spots of their section, with a bias by distance.

Written from the paper and from the behaviour of the published code (https://github.com/Graph-and-Geometric-Learning/STPath, no
licence); :func:`for_panel` and :func:`convert` read its weights. Differences:

- The published network predicts and reads all genes of its vocabulary. Here a network has a panel; without context counts, its
  prediction for the panel equals the published network's.
- The published attention bias is a linear layer of offset and distance, averaged over all mirrored offsets
  (:cite:p:`Puny2022`). The offset cancels out and leaves a slope times the distance; here it is computed as such.
- Coordinates run from 0 to 100 along each axis, over a section's spots in the batch. In pretraining they ran over the whole
  section also if a batch had a part of it (``regions`` of :class:`st_predict.tl.TrainConfig`). A constant axis stays 0; in the
  published code it is NaN.
- Names of organs and technologies may have any letter case, and unknown ones are refused. The published code treats unknown
  ones, and ``"Others"``, as missing; here ``"Others"`` stands for known organs without their own entry (bladder).
- All genes of a panel are learned in all spots. In pretraining, genes with fewer than 3 counts in a section were left out, and
  four times out of five all but the 200 most variable. The technology is always given; there one time in five.
- The unit of context expression is ``total`` of :class:`STPathConfig`. The published weights take ``ln(1 + count)``, as ``"original"``;
  with the M2OST paper's preset it is ``ln(1 + 1e6 * count / sum over panel)``, the target there.

Shapes: N spots, M spots of a block, H heads, D channels, E channels per head, G genes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from st_predict._errors import InvalidValueError, NotFoundError
from st_predict._validated import Count, Positive, Probability, validated
from st_predict.encoders import get_encoder
from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._card import OF_ENCODER, choice
from st_predict.models._checks import count_layers
from st_predict.models._features import Reading, features_of, read_features
from st_predict.models._layers import Head, full_precision, renamed, rows_of_sections
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from st_predict.crops import Batch

__all__ = ["ORGANS", "SPEC", "TECHNOLOGIES", "STPath", "STPathConfig", "convert", "for_panel"]

TECHNOLOGIES = ("Spatial Transcriptomics", "Visium", "Xenium", "Visium HD")
ORGANS = (
    *("Spinal cord", "Brain", "Breast", "Bowel", "Skin", "Heart", "Kidney", "Prostate", "Lung", "Liver", "Uterus"),
    *("Bone", "Muscle", "Eye", "Pancreas", "Mouth", "Ovary", "Glioma", "Glioblastoma", "Stomach", "Colon", "Others"),
)
_NO_TECHNOLOGIES, _NO_ORGANS = 1, 3  # rows before the named ones; the first is for a missing name
_NO_GENES = 2  # columns before the genes, for nothing and for the mask
_MASK = 1
_PAIRS = 1 << 22  # pairs of spots computed at a time, per head


@validated
class STPathConfig(Reading):
    """Hyper-parameters of :class:`STPath`.

    Parameters
    ----------
    encoder
        Name of the encoder (:func:`st_predict.tl.embed`); ``"gigapath"`` for the published weights.
    features
        Layer of the encoder: ``"head"`` for its output, ``"stages"`` for statistics of its middle layers; ``None`` for its default.
    fields
        Sides of several fields of view, in pixels at the encoder's resolution; empty for one field of view.
    neighbours
        Number of nearest spots whose mean features are appended to a spot's own.
    standardize
        Whether each feature is standardised over the spots of a section.
    n_features
        Number of features per spot. ``None`` if the encoder knows it, as encoders of timm and of
        :func:`st_predict.encoders.list_encoders` do.
    dim
        Channels per spot.
    depth
        Number of blocks.
    heads
        Attention heads.
    mlp_ratio
        Hidden channels of the MLP, in multiples of ``dim``.
    drop
        Dropout rate.
    organ
        Organ of the section, one of ``ORGANS``; ``None`` if it is unknown or not in the list. May change after training.
    technology
        Technology of the assay, one of ``TECHNOLOGIES``; ``None`` as for ``organ``. May change after training.
    total
        Unit of context counts, which must match the target: ``ln(1 + total * count / sum over panel)``, or ``ln(1 + count)`` if
        ``None``.
    """

    n_features: Count | None = None
    dim: Count = 512
    depth: Count = 4
    heads: Count = 4
    mlp_ratio: Annotated[Positive, Field(le=1000)] = 2
    drop: Probability = 0.1
    organ: str | None = None
    technology: str | None = None
    total: Positive | None = 1e6

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise InvalidValueError(f"dim must be a multiple of {self.heads}, the heads, got {self.dim}.")
        if self.mlp_ratio * self.dim < 1:
            raise InvalidValueError(f"mlp_ratio must be at least {1 / self.dim:.3g}, 1 over dim, got {self.mlp_ratio}.")
        for name, choices in (("organ", ORGANS), ("technology", TECHNOLOGIES)):
            if (value := getattr(self, name)) is not None and str(value).casefold() not in map(str.casefold, choices):
                raise InvalidValueError(f"{name} must be one of {choices} or None, got {value!r}.")


class STPath(SpotModel):
    """Network of STPath.

    Parameters
    ----------
    n_genes
        Size of the panel.
    hparams
        Fields of :class:`STPathConfig`.

    Raises
    ------
    ValueError
        If a hyper-parameter is invalid.
    """

    def __init__(self, n_genes: int, **hparams: Any) -> None:
        super().__init__()
        self.config = c = STPathConfig(**hparams)
        self.image = nn.Linear(c.count(c.n_features), c.dim)
        self.genes = nn.Linear(n_genes, c.dim, bias=False)
        self.mask_D = nn.Parameter(torch.zeros(c.dim))
        self.organ = nn.Embedding(_NO_ORGANS + len(ORGANS), c.dim)
        self.technology = nn.Embedding(_NO_TECHNOLOGIES + len(TECHNOLOGIES), c.dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.head = Head(c.dim, n_genes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``, also for context spots.

        Raises
        ------
        ValueError
            If the batch lacks positions, has no features or another number of them.
        """
        if batch.counts is None:
            return self.predict(batch, self.mask_D)
        return self.predict(batch, self.tokens(known(batch.counts, self.config.total), batch.counts.isnan().all(1)))

    def loss(self, batch: Batch) -> Tensor:
        """Squared error on spots with hidden expression, given the other spots; in validation on all spots, without context."""
        target_NG = batch.require("target")
        if not self.training:
            return F.mse_loss(self.predict(batch, self.mask_D), target_NG)
        seen_NG, hidden, masked = target_NG.clone(), torch.zeros_like(target_NG[:, 0], dtype=torch.bool), []
        for rows in rows_of_sections(batch):
            whole, partly, lost = draw_masks(len(rows), seen_NG)
            hidden[rows[whole]] = True
            seen_NG[rows[partly, None], lost] = 0
            masked += [rows[whole], rows[partly]]
        rows = torch.cat(masked)
        return F.mse_loss(self.predict(batch, self.tokens(seen_NG, hidden))[rows], target_NG[rows])

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        self.head.start_at(mean_G)

    def tokens(self, seen_NG: Tensor, hidden_N: Tensor) -> Tensor:
        """Embed expression, or the mask where it is hidden."""
        return torch.where(hidden_N[:, None], self.mask_D, self.genes(seen_NG))

    def predict(self, batch: Batch, expression_ND: Tensor) -> Tensor:
        """Predict from images and embedded expression."""
        features_ND = read_features(batch, self.image.in_features, self.config.encoder)
        xy_N2 = batch.require("xy_um").float()
        organ_D = self.organ.weight[number(self.config.organ, ORGANS, _NO_ORGANS)]
        technology_D = self.technology.weight[number(self.config.technology, TECHNOLOGIES, _NO_TECHNOLOGIES)]
        x_ND = self.image(features_ND) + (organ_D + technology_D + expression_ND)
        sections = rows_of_sections(batch)
        out_ND = torch.cat([self.attend(x_ND[rows], scaled(xy_N2[rows])) for rows in sections])
        return self.head(self.norm(out_ND))[torch.cat(sections).argsort()]

    def attend(self, x_ND: Tensor, xy_N2: Tensor) -> Tensor:
        """Apply the blocks to the spots of one section."""
        for block in self.blocks:
            x_ND = block(x_ND, xy_N2)
        return x_ND


def known(counts_NG: Tensor, total: float | None) -> Tensor:
    """Transform counts into the network's input; unknown counts become zeros."""
    counts_NG = counts_NG.nan_to_num(0.0)
    if total is not None:
        counts_NG = counts_NG * (total / counts_NG.sum(1, keepdim=True).clamp_min(1))
    return counts_NG.log1p()


def number(name: str | None, names: Sequence[str], n_before: int) -> int:
    """Row of a name in an embedding."""
    return 0 if name is None else n_before + [n.casefold() for n in names].index(name.casefold())


def scaled(xy_N2: Tensor) -> Tensor:
    """Coordinates of a section from 0 to 100, along each axis."""
    low_2, high_2 = xy_N2.aminmax(dim=0)
    extent_2 = high_2 - low_2
    return (xy_N2 - low_2) / torch.where(extent_2 > 0, extent_2, 1) * 100


def draw_masks(n_spots: int, like_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw masks of the hidden expression in a section, with torch's global generator.

    Returns
    -------
    tuple of Tensor, Tensor and Tensor
        Spots that are hidden completely: nine tenths of a share drawn from Beta(10, 1), at least one spot. The
        remaining spots of this share. And half of the genes, which are hidden in the remaining spots.
    """
    share = float(torch.rand(())) ** 0.1  # by the inverse of the distribution function, x**10
    masked = torch.randperm(n_spots, device=like_NG.device)[: max(1, int(share * n_spots))]
    n_whole = int(0.9 * len(masked))
    lost = torch.randperm(like_NG.shape[1], device=like_NG.device)[: like_NG.shape[1] // 2]
    return masked[:n_whole], masked[n_whole:], lost


class Attention(nn.Module):
    """Attention of a spot to all spots of its section."""

    def __init__(self, c: STPathConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm = nn.LayerNorm(c.dim)
        self.qkv = nn.Linear(c.dim, 3 * c.dim)
        self.slope_H = nn.Parameter(torch.empty(c.heads).uniform_(-(3**-0.5), 3**-0.5))
        self.out = nn.Linear(c.dim, c.dim)
        self.drop = nn.Dropout(c.drop)

    def forward(self, x_ND: Tensor, xy_N2: Tensor) -> Tensor:
        qkv_3HNE = self.qkv(self.norm(x_ND)).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        step = max(1, _PAIRS // len(x_ND))
        with full_precision(x_ND):  # biases reach 100, where steps of bfloat16 are 0.5
            q_HNE, *kv = qkv_3HNE.to(self.slope_H.dtype).unbind(0)
            parts = zip(torch.split(q_HNE, step, 1), torch.split(xy_N2, step), strict=True)
            read = [self._read(q_HME, (xy_M2, xy_N2), kv) for q_HME, xy_M2 in parts]
        return self.drop(self.out(torch.cat(read)))

    def _read(self, q_HME: Tensor, places: tuple[Tensor, Tensor], kv: list[Tensor]) -> Tensor:
        """Attend for a block of spots; for gradients, arrays over all pairs are recomputed, not kept."""
        if torch.is_grad_enabled():
            return checkpoint(self._attend, q_HME, places, kv, use_reentrant=False)
        return self._attend(q_HME, places, kv)

    def _attend(self, q_HME: Tensor, places: tuple[Tensor, Tensor], kv: list[Tensor]) -> Tensor:
        distance_MN = torch.cdist(*places, compute_mode="donot_use_mm_for_euclid_dist")
        bias_1HMN = (self.slope_H[:, None, None] * distance_MN)[None]
        rate = self.drop.p if self.drop.training else 0.0
        q_1HME, k_1HNE, v_1HNE = (x[None] for x in (q_HME, *kv))
        read_1HME = F.scaled_dot_product_attention(q_1HME, k_1HNE, v_1HNE, attn_mask=bias_1HMN, dropout_p=rate)
        return read_1HME[0].transpose(0, 1).flatten(1)


class Block(nn.Module):
    """Attention and an MLP with its norm after the first layer."""

    def __init__(self, c: STPathConfig) -> None:
        super().__init__()
        hidden = int(c.mlp_ratio * c.dim)
        self.attention = Attention(c)
        self.mlp = nn.Sequential(
            nn.Linear(c.dim, hidden),
            nn.GELU(),
            nn.Dropout(c.drop),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, c.dim),
            nn.Dropout(c.drop),
        )

    def forward(self, x_ND: Tensor, xy_N2: Tensor) -> Tensor:
        x_ND = x_ND + self.attention(x_ND, xy_N2)
        return x_ND + self.mlp(x_ND)


_STEM = {"image": "input_encoder.image_embed", "norm": "gene_exp_head.0", "head": "gene_exp_head.1"}
_WEIGHTS = {
    "genes.weight": "input_encoder.gene_embed.weight",
    "organ.weight": "input_encoder.organ_embed.weight",
    "technology.weight": "input_encoder.tech_embed.weight",
}
_OF_A_BLOCK = {
    "attention.norm": "attn.layernorm_qkv.0",
    "attention.qkv": "attn.layernorm_qkv.1",
    "attention.out": "attn.W_output.0",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.norm",
    "mlp.4": "mlp.fc2",
}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the published code to :class:`STPath` for all genes of its vocabulary, in its order.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    blocks = {found[1] for name in state if (found := re.match(r"model\.blks\.(\d+)\.", name))}
    layers = _STEM | {
        f"blocks.{i}.{ours}": f"model.blks.{i}.{theirs}" for i in blocks for ours, theirs in _OF_A_BLOCK.items()
    }
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers.items() for kind in ("weight", "bias")}
    slopes = {f"blocks.{i}.attention.slope_H": f"model.blks.{i}.attn.edge_bias.0.weight" for i in blocks}
    ours = renamed(state, names | _WEIGHTS | slopes, model="STPath")
    ours |= {name: ours[name][:, 2] for name in slopes}  # slope of the distance; the offset's slopes have no effect
    ours |= {"mask_D": ours["genes.weight"][:, _MASK], "genes.weight": ours["genes.weight"][:, _NO_GENES:]}
    return ours | {name: ours[name][_NO_GENES:] for name in ("head.weight", "head.bias")}


def for_panel(state: Mapping[str, Tensor], vocabulary: Mapping[str, str], genes: Sequence[str]) -> dict[str, Tensor]:
    """Convert a state dict of the published code to :class:`STPath` for a panel.

    Parameters
    ----------
    state
        Tensors by name, from ``stfm.pth``.
    vocabulary
        Ensembl id of each symbol, from the release's ``symbol2ensembl.json``.
    genes
        Gene panel, as symbols or Ensembl ids of the vocabulary.

    Raises
    ------
    KeyError
        If genes are not in the vocabulary.
    ValueError
        If names are missing or unknown, the vocabulary does not match the network, or two names mean the same gene.

    See Also
    --------
    st_predict.checkpoints.import_published : Make a checkpoint of the published weights.
    """
    found = convert(state)
    ids = {gene: row for row, gene in enumerate(sorted(set(vocabulary.values())))}
    if len(ids) != len(found["head.bias"]):
        raise InvalidValueError(
            f"The vocabulary has {len(ids)} genes, the network {len(found['head.bias'])}.",
            "use the vocabulary of its release",
        )
    kept = torch.tensor(_rows(genes, ids | {symbol: ids[gene] for symbol, gene in vocabulary.items()}))
    found |= {"genes.weight": found["genes.weight"][:, kept]}
    return found | {name: found[name][kept] for name in ("head.weight", "head.bias")}


def _rows(genes: Sequence[str], row_of: Mapping[str, int]) -> list[int]:
    if missing := [gene for gene in genes if gene not in row_of]:
        folded = {name.casefold(): name for name in row_of}
        near = {gene: [folded[n] for n in get_close_matches(gene.casefold(), folded, n=1)] for gene in missing[:5]}
        raise NotFoundError(
            f"{len(missing)} of {len(genes)} genes are not in the vocabulary, which has human symbols and Ensembl ids without "
            f"version; the first, with the nearest names: {near}.",
            "leave them out of the panel",
            "use the names of the vocabulary",
        )
    rows = [row_of[gene] for gene in genes]
    times = Counter(rows)
    if twice := [gene for gene, row in zip(genes, rows, strict=True) if times[row] > 1]:
        raise InvalidValueError(
            f"{twice} are several names of the same genes in the vocabulary.", "keep one name per gene in the panel"
        )
    return rows


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer hyper-parameters from the shapes of converted weights."""
    dim, n_features = state["image.weight"].shape
    return {
        "n_features": n_features,
        "dim": dim,
        "depth": count_layers(state, "blocks"),
        "heads": len(state["blocks.0.attention.slope_H"]),
        "mlp_ratio": len(state["blocks.0.mlp.0.weight"]) / dim,
    }


SPEC = ModelSpec(
    name="stpath",
    summary="Transformer over all spots of a section, which can read the counts of measured spots.",
    citation="Huang2025b",
    license="none (github.com/Graph-and-Geometric-Learning/STPath)",
    family="section",
    build=STPath,
    config=STPathConfig,
    crop=get_encoder("rgb").crop,
    reads_of=features_of,
    of_card={**OF_ENCODER, "organ": choice(*ORGANS) | None, "technology": choice(*TECHNOLOGIES) | None},
    scope="section",
    needs=("xy_um",),
    reads_context=True,
    at_prediction=("organ", "technology"),
    hparams={**asdict(STPathConfig()), "fields": []},
    tiny={"encoder": "rgb", "dim": 32, "depth": 2, "heads": 2},
    original=Preset(
        training={
            "epochs": 500,
            "lr": 5e-4,
            "clip": 1.0,
            "patience": 40,
            "regions": 1,
            "regions_per_step": 2,
            "start_at_mean": False,
        },
        hparams={"encoder": "gigapath", "total": None},
        target=TargetSpec(transform="log1p"),
        panel="hvg",
        notes="Training starts from random weights, not from the published ones. Parts of a section have any number of spots; in "
        "the publication 64 to 1,023. Hidden expression is drawn as published, and the error covers the whole panel.",
    ),
    convert=convert,
    hparams_of=hparams_of,
    for_panel=for_panel,
)
