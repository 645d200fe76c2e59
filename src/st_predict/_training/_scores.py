"""Validation scores, which choose the best epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_predict.metrics import pearson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig

__all__ = ["best_row", "monitored", "validation_scores"]


def validation_scores(prediction: NDArray[Any], target: NDArray[Any], section: NDArray[np.int64]) -> dict[str, float]:
    """Score validation spots, ``(n_spots, n_genes)``, given their section, ``(n_spots,)``.

    Returns
    -------
    dict of str to float
        ``val_pearson``, mean over genes and sections of the correlation within a section (-1 if all predictions are
        constant), and ``val_mse``.
    """
    each = np.stack([pearson(prediction[section == s], target[section == s], axis=0) for s in np.unique(section)])
    defined = each[np.isfinite(each)]
    return {
        "val_pearson": float(defined.mean()) if len(defined) else -1.0,
        "val_mse": float(np.mean((prediction - target) ** 2)),
    }


def monitored(config: TrainConfig) -> tuple[str, Literal["max", "min"]]:
    """Return the monitored column of the history, and whether its largest or least value is best."""
    return ("val_pearson", "max") if config.monitor == "pearson" else ("val_loss", "min")


def best_row(history: list[dict[str, float]], config: TrainConfig, *, validated: bool = True) -> dict[str, float]:
    """Return the scores of the best epoch by the monitored score; without validation, of the last epoch."""
    if not validated:
        return history[-1]
    column, mode = monitored(config)
    return (max if mode == "max" else min)(history, key=lambda row: row[column])
