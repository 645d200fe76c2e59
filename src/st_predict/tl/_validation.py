"""What chooses the best epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict.metrics import pearson

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["validation_scores"]


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
