"""Train networks on arrays: this package knows no image, table or slide."""

from __future__ import annotations

from st_predict._training._config import TrainConfig, configure, get_preset
from st_predict._training._learn import learn, solve
from st_predict._training._loss import check_objective
from st_predict._training._notes import colours_of, describe_pixels, describe_training
from st_predict._training._ranks import Ranks, Strategy
from st_predict._training._run import Run
from st_predict._training._store import CropStore
from st_predict._training._teacher import teach

__all__ = [
    "CropStore",
    "Ranks",
    "Run",
    "Strategy",
    "TrainConfig",
    "check_objective",
    "colours_of",
    "configure",
    "describe_pixels",
    "describe_training",
    "get_preset",
    "learn",
    "solve",
    "teach",
]
