"""What a prediction has to be better than: constants, and ridge regression on colours."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from st_predict.crops import iter_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sklearn.base import BaseEstimator

    from st_predict.specs import CropSpec
    from st_predict.tl._observed import Observed

__all__ = ["PREDICTORS", "Baselines", "colour_features", "own_mean"]

PREDICTORS = {
    "global_mean": "Mean of each gene over all spots of the training sections.",
    "patient_mean": "Mean of each gene over the spots of training sections of the same patient; "
    "left out for a patient who is not among them.",
    "section_mean": "Mean of each gene over the spots of the section itself. Uses what is to be predicted: no method can "
    "have it, and no constant has a smaller squared error.",
    "ridge_colour": "Ridge regression on mean, standard deviation and the 10, 50 and 90 % quantiles of red, green and blue "
    "of each crop that the model sees, fitted on the training sections; penalty by cross-validation over sections.",
}

_QUANTILES = (10, 50, 90)
_PENALTIES = np.logspace(0, 5, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """What can be learned from the training sections without a network."""

    means: dict[str, NDArray[np.float64]]
    global_mean: NDArray[np.float64]
    ridge: BaseEstimator

    @classmethod
    def fit(cls, training: Sequence[Observed], crop: CropSpec) -> Baselines:
        """Learn from measured sections."""
        targets = [section.target for section in training]
        of_patient = defaultdict(list)
        for section in training:
            if len(section.patients) == 1:
                of_patient[section.patients[0]].append(section.target)
        return cls(
            means={patient: np.concatenate(parts).mean(axis=0) for patient, parts in of_patient.items()},
            global_mean=np.concatenate(targets).mean(axis=0),
            ridge=_fit_ridge([colour_features(section, crop) for section in training], targets),
        )

    def predict(self, section: Observed, crop: CropSpec) -> dict[str, NDArray[np.float64]]:
        """Predict a section, ``(n_spots, n_genes)`` for each baseline."""
        constants = {"global_mean": self.global_mean}
        if len(section.patients) == 1 and section.patients[0] in self.means:
            constants["patient_mean"] = self.means[section.patients[0]]
        spread = {name: np.broadcast_to(mean, section.target.shape) for name, mean in constants.items()}
        return {**spread, "ridge_colour": self.ridge.predict(colour_features(section, crop))}


def own_mean(section: Observed) -> NDArray[np.float32]:
    """Return the mean of each gene over the section itself, ``(n_spots, n_genes)``."""
    return np.broadcast_to(section.target.mean(axis=0), section.target.shape)


def colour_features(observed: Observed, crop: CropSpec) -> NDArray[np.float64]:
    """Return ``(n_spots, n_levels * 15)``: mean, standard deviation and quantiles of each colour of each crop."""
    section = observed.section
    features = np.empty((len(section.rows), len(crop.levels) * 3 * (2 + len(_QUANTILES))))
    for batch in iter_batches(section.reader, section.plan(crop), pad_value=crop.pad_value):
        each = [_colours(level.numpy().reshape(len(batch), 3, -1)) for level in batch.crops]
        features[batch.index.numpy()] = np.concatenate(each, axis=1)
    return features[observed.rows]


def _colours(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    quantiles = np.percentile(pixels[..., ::7], _QUANTILES, axis=2)  # every 7th pixel tells as much
    return np.concatenate([pixels.mean(axis=2), pixels.std(axis=2), *quantiles], axis=1)


def _fit_ridge(features: Sequence[NDArray[np.float64]], targets: Sequence[NDArray[np.float32]]) -> BaseEstimator:
    """Fit to sections, each ``(n_spots, n_features)`` and ``(n_spots, n_genes)``."""
    several = len(targets) > 1
    groups = np.repeat(np.arange(len(targets)), [len(t) for t in targets]) if several else None
    folds = GroupKFold(min(5, len(targets))) if several else KFold(min(5, len(targets[0])))
    model = make_pipeline(StandardScaler(), Ridge())
    search = GridSearchCV(model, {"ridge__alpha": _PENALTIES}, cv=folds, scoring="neg_mean_squared_error")
    return search.fit(np.concatenate(features), np.concatenate(targets), groups=groups)
