"""Plots of sections, predictions, scores and crops."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.pl._benchmark import benchmark
from st_predict.pl._cohort import cohort
from st_predict.pl._crops import crops
from st_predict.pl._depth import depth
from st_predict.pl._heatmap import heatmap
from st_predict.pl._pca import pca_map
from st_predict.pl._report import report
from st_predict.pl._scatter import scatter
from st_predict.pl._scores import scores
from st_predict.pl._spatial import spatial
from st_predict.pl._training import training

__all__ = [
    "benchmark",
    "cohort",
    "crops",
    "depth",
    "heatmap",
    "pca_map",
    "report",
    "scatter",
    "scores",
    "spatial",
    "training",
]

__dir__ = show_only(__all__)
