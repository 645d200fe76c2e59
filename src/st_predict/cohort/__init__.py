"""Many slides: predict or embed them on the cores of a machine or on a cluster, with a report."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.cohort._verbs import check_slides, embed_many, predict_many

__all__ = ["check_slides", "embed_many", "predict_many"]

__dir__ = show_only(__all__)
