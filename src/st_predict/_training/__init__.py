"""Train networks on arrays: this package knows no image, table or slide."""

from __future__ import annotations

from st_predict._training._config import TrainConfig, configure, get_preset
from st_predict._training._learn import learn, solve
from st_predict._training._loss import check_objective
from st_predict._training._run import Run
from st_predict._training._scores import best_row, monitored
from st_predict._training._store import CropStore, measure_colours

__all__ = [
    "CropStore",
    "Run",
    "TrainConfig",
    "best_row",
    "check_objective",
    "configure",
    "get_preset",
    "learn",
    "measure_colours",
    "monitored",
    "solve",
]
