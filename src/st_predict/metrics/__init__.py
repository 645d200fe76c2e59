"""Scores of a prediction: arrays in, arrays out."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.metrics._bootstrap import (
    bootstrap_mean,
    bootstrap_pearson,
    bootstrap_sections,
    percentile_interval,
    spatial_blocks,
)
from st_predict.metrics._ceiling import noise_ceiling, noise_ceilings
from st_predict.metrics._comparison import RankTest, holm, mean_interval, rank_test, wilcoxon_tests
from st_predict.metrics._correlation import depth_covariates, partial_pearson, pearson, share_above, spearman
from st_predict.metrics._definitions import DEFINITIONS
from st_predict.metrics._deviation import mae, rmse
from st_predict.metrics._maps import ssim
from st_predict.metrics._moran import morans_i, morans_i_pvalues, neighbour_weights
from st_predict.metrics._tests import PairedTest, benjamini_hochberg, bootstrap_pvalues, paired_test

__all__ = [
    "DEFINITIONS",
    "PairedTest",
    "RankTest",
    "benjamini_hochberg",
    "bootstrap_mean",
    "bootstrap_pearson",
    "bootstrap_pvalues",
    "bootstrap_sections",
    "depth_covariates",
    "holm",
    "mae",
    "mean_interval",
    "morans_i",
    "morans_i_pvalues",
    "neighbour_weights",
    "noise_ceiling",
    "noise_ceilings",
    "paired_test",
    "partial_pearson",
    "pearson",
    "percentile_interval",
    "rank_test",
    "rmse",
    "share_above",
    "spatial_blocks",
    "spearman",
    "ssim",
    "wilcoxon_tests",
]

__dir__ = show_only(__all__)
