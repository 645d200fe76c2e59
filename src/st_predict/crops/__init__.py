"""From spot centres to batches of multi-level crops."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.crops._augment import N_SYMMETRIES, apply_symmetry, augment, drop_levels
from st_predict.crops._batch import Batch
from st_predict.crops._batches import iter_batches
from st_predict.crops._plan import LevelPlan, plan_crops
from st_predict.crops._stain import jitter_stain

__all__ = [
    "N_SYMMETRIES",
    "Batch",
    "LevelPlan",
    "apply_symmetry",
    "augment",
    "drop_levels",
    "iter_batches",
    "jitter_stain",
    "plan_crops",
]

__dir__ = show_only(__all__)
