"""Definitions of the reported scores."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFINITIONS"]

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "gene_pearson": "Pearson correlation of prediction and observation over the spots of one section, per gene; "
        "sections are never pooled. A mean over genes leaves out undefined ones.",
        "gene_spearman": "Spearman correlation (Pearson correlation of ranks, ties share their mean rank) of prediction and "
        "observation over the spots of one section, per gene; sections are never pooled. A mean over genes leaves "
        "out undefined ones.",
        "gene_partial": "Pearson correlation of prediction and observation over the spots of one section, per gene, after both "
        "were regressed on the log total count of the spot and its square: agreement beyond sequencing depth.",
        "share_above": "Share of the genes with a defined score whose score is above the threshold (0.3 by default).",
        "morans_i": "Moran's I over the nearest neighbours of each spot, per gene: about 0 without spatial pattern, near 1 if "
        "neighbours are alike.",
        "ssim": "Structural similarity of the predicted and the observed map of a gene on the lattice of spots: the mean over "
        "windows, 1 for equal maps; places without a spot are left out of each window.",
        "noise_ceiling": "Correlation that a perfect predictor of expression rates would have with the observed values, per gene, "
        "estimated by splitting the counts at random into halves (binomial thinning, Spearman-Brown, square root).",
        "interval": "Bootstrap percentile interval of a score: blocks of neighbouring spots, and sections, are drawn with "
        "replacement.",
        "paired_p": "Two-sided p-value of the Wilcoxon signed-rank test of the differences per gene between two predictors; "
        "genes are correlated, so it is too small for conclusions about other sections.",
        "spot_pearson": "Pearson correlation of prediction and observation over the genes of the panel, per spot, then "
        "the mean over the spots where it is defined (the PCC of M2OST).",
        "spot_rmse": "Root of the mean squared error over the genes of the panel, per spot, then the mean over spots "
        "(the RMSE of M2OST).",
        "mae": "Mean absolute error over all spots and genes.",
        "n_undefined_genes": "Number of genes without a correlation over the spots of the section, because the prediction or the "
        "observation is constant there; they count as undefined, not as zero.",
        "n_undefined_spots": "Number of spots without a correlation over the genes, because the prediction or the observation is "
        "constant there; they count as undefined, not as zero.",
    }
)
"""Definition of each reported score, stored with the scores."""
