"""Tools: embed, train, predict, evaluate."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict._sections import LeakageError
from st_predict._training import TrainConfig
from st_predict.tl._calibrate import Calibration, calibrate
from st_predict.tl._embed import embed
from st_predict.tl._ensemble import Draws as Draws  # for cohorts
from st_predict.tl._ensemble import Ensemble as Ensemble
from st_predict.tl._evaluate import Evaluation, evaluate
from st_predict.tl._predict import predict
from st_predict.tl._predict import predict_with as predict_with
from st_predict.tl._superresolve import superresolve
from st_predict.tl._train import TrainResult, train

__all__ = [
    "Calibration",
    "Evaluation",
    "LeakageError",
    "TrainConfig",
    "TrainResult",
    "calibrate",
    "embed",
    "evaluate",
    "predict",
    "superresolve",
    "train",
]

__dir__ = show_only(__all__)
