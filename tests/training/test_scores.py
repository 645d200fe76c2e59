"""Scores that choose the best epoch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from st_predict._training._scores import best_row, monitored, validation_scores
from st_predict.tl import TrainConfig

SECTION = np.repeat([0, 1], 6)
TARGET = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
HISTORY = [
    {"val_pearson": 0.1, "val_loss": 1.0},
    {"val_pearson": 0.3, "val_loss": 3.0},
    {"val_pearson": 0.2, "val_loss": 2.0},
]


def test_constant_predictions_have_the_least_score() -> None:
    """Worse than any that vary, so that an epoch before the collapse is kept."""
    constant = np.full_like(TARGET, 0.5)
    scores = validation_scores(constant, TARGET, SECTION)
    assert scores["val_pearson"] == -1.0
    assert scores["val_mse"] == pytest.approx(np.mean((0.5 - TARGET) ** 2))
    collapsed = {"val_pearson": scores["val_pearson"]}
    for pearson in (0.2, 0.0, -0.2):
        assert best_row([collapsed, {"val_pearson": pearson}], TrainConfig())["val_pearson"] == pearson


def test_genes_and_sections_without_a_correlation_are_left_out() -> None:
    prediction = TARGET + np.random.default_rng(1).normal(size=TARGET.shape).astype(np.float32)
    prediction[:, 0] = 2.0
    prediction[:6, 1] = 3.0  # constant in one section only
    defined = [(slice(6), 2), (slice(6, 12), 1), (slice(6, 12), 2)]
    each = [pearsonr(prediction[spots, gene], TARGET[spots, gene]).statistic for spots, gene in defined]
    assert validation_scores(prediction, TARGET, SECTION)["val_pearson"] == pytest.approx(np.mean(each), abs=1e-6)


@pytest.mark.parametrize(
    ("monitor", "column", "mode", "best"), [("pearson", "val_pearson", "max", 1), ("loss", "val_loss", "min", 0)]
)
def test_the_best_epoch(monitor: str, column: str, mode: str, best: int) -> None:
    config = TrainConfig(monitor=monitor)
    assert monitored(config) == (column, mode)
    assert best_row(HISTORY, config) is HISTORY[best]
    assert best_row(HISTORY, config, validated=False) is HISTORY[-1]
