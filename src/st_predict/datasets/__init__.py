"""Example data: simulated and downloaded sections, published gene panels and splits."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.datasets._catalogues import hest, list_hest, list_stimage
from st_predict.datasets._expression import SectionTruth
from st_predict.datasets._her2st import her2st
from st_predict.datasets._legacy import cscc, hbc
from st_predict.datasets._panels import list_panels, panel
from st_predict.datasets._simulate import Simulation, simulate, toy
from st_predict.datasets._splits import Fold, list_splits, splits

__all__ = [
    "Fold",
    "SectionTruth",
    "Simulation",
    "cscc",
    "hbc",
    "her2st",
    "hest",
    "list_hest",
    "list_panels",
    "list_splits",
    "list_stimage",
    "panel",
    "simulate",
    "splits",
    "toy",
]

__dir__ = show_only(__all__)
