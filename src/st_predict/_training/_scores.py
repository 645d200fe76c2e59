"""The scores that choose the best epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict.metrics import pearson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig

__all__ = ["best_row", "validation_scores"]


def validation_scores(prediction: NDArray[Any], target: NDArray[Any], section: NDArray[np.int64]) -> dict[str, float]:
    """Score validation spots, ``(n_spots, n_genes)``, whose section ``(n_spots,)`` says.

    Returns
    -------
    ``val_pearson``, the mean over genes and sections of the correlation within a section, -1 while all predictions are
    constants; and ``val_mse``.
    """
    each = np.stack([pearson(prediction[section == s], target[section == s], axis=0) for s in np.unique(section)])
    defined = each[np.isfinite(each)]
    return {
        "val_pearson": float(defined.mean()) if len(defined) else -1.0,
        "val_mse": float(np.mean((prediction - target) ** 2)),
    }


def best_row(history: list[dict[str, float]], config: TrainConfig) -> dict[str, float]:
    """Return the figures of the best epoch by the score that ``config`` monitors."""
    if config.monitor == "pearson":
        return max(history, key=lambda row: row["val_pearson"])
    return min(history, key=lambda row: row["val_loss"])
