"""Preparation: gene panels, target units, lattices of spots, tissue and stain."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict._stain import Stain
from st_predict.pp._genes import select_panel
from st_predict.pp._grid import make_grid
from st_predict.pp._panel import PanelMatch, align_panel, read_panel
from st_predict.pp._residuals import THETA, pearson_residuals
from st_predict.pp._stain import fit_stain
from st_predict.pp._target import (
    Target,
    apply_limits,
    fit_limits,
    fit_target,
    from_target,
    make_target,
    to_log1p_10k,
    to_target,
)
from st_predict.pp._tissue import Tissue, find_tissue

__all__ = [
    "THETA",
    "PanelMatch",
    "Stain",
    "Target",
    "Tissue",
    "align_panel",
    "apply_limits",
    "find_tissue",
    "fit_limits",
    "fit_stain",
    "fit_target",
    "from_target",
    "make_grid",
    "make_target",
    "pearson_residuals",
    "read_panel",
    "select_panel",
    "to_log1p_10k",
    "to_target",
]

__dir__ = show_only(__all__)
