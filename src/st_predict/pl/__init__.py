"""Plots of sections, predictions, scores and crops."""

from __future__ import annotations

from st_predict.pl._crops import crops
from st_predict.pl._depth import depth
from st_predict.pl._pca import pca_map
from st_predict.pl._report import report
from st_predict.pl._scores import scores
from st_predict.pl._spatial import spatial

__all__ = ["crops", "depth", "pca_map", "report", "scores", "spatial"]
