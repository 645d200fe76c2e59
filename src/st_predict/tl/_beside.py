"""Baselines of an evaluation: constants, depth, position, neighbours and ridge regression on colours."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from st_predict import metrics
from st_predict._keys import Keys
from st_predict._runtime import Compute, Inference
from st_predict._sections import encoder_of, inputs_of, store_of
from st_predict._training import TrainConfig, solve
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from st_predict._sections import HeldOutSection, Observed
    from st_predict.encoders import Encoder
    from st_predict.models import SpotModel

__all__ = ["FITTED", "PREDICTORS", "Baselines", "FittedBaseline"]

logger = logging.getLogger(__name__)

FittedBaseline = Literal["global_mean", "patient_mean", "position", "ridge"]
FITTED: tuple[FittedBaseline, ...] = get_args(FittedBaseline)
"""Baselines that are fitted to training sections."""

_CPU = Compute(device="cpu", precision="float32")
_NEIGHBOURS = 6

PREDICTORS = {
    "global_mean": "Mean of each gene over all spots of the training sections: the model 'mean'.",
    "patient_mean": "Mean of each gene over the spots of training sections of the same patient; "
    "left out for patients without training sections.",
    "section_mean": "Mean of each gene over the spots of the section itself. Uses the measured values, which a method "
    "does not have: the constant with the smallest squared error.",
    "log_total": "Log total count of each spot, the same for every gene. Uses the measured counts, not the image: a score near "
    "it comes from sequencing depth.",
    "position": "Cubic polynomial of a spot's position in the section, fitted on the training sections, without the "
    "image. Consecutive sections of a block have similar layouts.",
    "neighbours": "Mean of the six nearest measured spots. Uses the measured values: the score reachable by spatial smoothness only.",
    "ceiling": "Noise ceiling: correlation of a perfect predictor of expression rates with these counts.",
    "ridge": "Ridge regression on colour, stain and texture in fields of view of 128, 256 and 512 um, fitted on the training "
    "sections: the model 'ridge' on the encoder 'rgb'. Left out where the mpp of an image is unknown or above 2 um/px.",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baselines:
    """Baseline predictors, fitted to training sections or not needing any.

    Parameters
    ----------
    models
        Fitted closed-form models.
    position
        Polynomial of the position; ``None`` without training sections.
    """

    models: tuple[_Baseline, ...]
    position: _Position | None

    @classmethod
    def fit(
        cls,
        training: Sequence[Observed],
        card: ModelCard,
        *,
        scored: Sequence[Observed],
        names: Collection[str] = FITTED,
    ) -> Baselines:
        """Fit the named ones to training sections; without sections, only predictors that need no training are left."""
        if not training:
            return cls(models=(), position=None)
        position = _Position.fit(training) if "position" in names else None
        return cls(models=tuple(_fit_baselines(training, card, scored=scored, names=names)), position=position)

    def predict(self, section: HeldOutSection) -> dict[str, NDArray[Any]]:
        """Predict the spots of a section by each predictor, ``(n_spots, n_genes)``."""
        observed, shape = section.observed, section.target.shape
        found: dict[str, NDArray[Any]] = {
            "log_total": np.broadcast_to(np.log(observed.totals)[:, None], shape),
            "section_mean": np.broadcast_to(section.target.mean(axis=0), shape),
        }
        if len(section.target) > _NEIGHBOURS:
            weights = metrics.neighbour_weights(observed.section.spots.xy[observed.rows], k=_NEIGHBOURS)
            found["neighbours"] = weights @ section.target
        if self.position is not None:
            found["position"] = self.position.predict(observed)
        for baseline in self.models:
            if baseline.patient is None or section.patients == (baseline.patient,):
                found[baseline.name] = baseline.predict(observed)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Position:
    """Cubic polynomial of the position of a spot among the spots of its section."""

    weights: NDArray[np.float64]

    @classmethod
    def fit(cls, training: Sequence[Observed]) -> _Position:
        places = np.concatenate([_places(section) for section in training])
        target = np.concatenate([section.target for section in training]).astype(np.float64)
        return cls(weights=np.asarray(np.linalg.lstsq(_cubic(places), target, rcond=None)[0], np.float64))

    def predict(self, observed: Observed) -> NDArray[np.float64]:
        return np.asarray(_cubic(_places(observed)) @ self.weights)


def _places(observed: Observed) -> NDArray[np.float64]:
    """Centres of the spots, relative to their mean and spread over the section."""
    xy = observed.section.spots.xy[observed.rows]
    return np.asarray((xy - xy.mean(axis=0)) / np.maximum(xy.std(axis=0), 1e-9))


def _cubic(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = xy.T
    return np.column_stack([x**i * y**j for i in range(4) for j in range(4 - i)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baseline:
    """A closed-form model, fitted to the training sections.

    Parameters
    ----------
    name
        Name in the evaluation.
    card, network, encoder
        The model.
    patient
        Patient to whose sections the model applies; ``None`` for all.
    """

    name: str
    card: ModelCard
    network: SpotModel
    encoder: Encoder | None
    patient: str | None = None

    @classmethod
    def fit(
        cls, name: str, model: str, sections: Sequence[Observed], like: ModelCard, *, patient: str | None = None
    ) -> _Baseline:
        """Fit a closed-form model with the panel and the units of another card."""
        spec = get_spec(model)
        card = ModelCard(
            model=model,
            genes=like.genes,
            target=like.target,
            crop=spec.crop_for(spec.hparams),
            pixels=spec.pixels_for(spec.hparams),
            hparams=dict(spec.hparams),
        )
        encoder = encoder_of(card)
        store = store_of(sections, card, encoder, folder=Path(), compute=_CPU)
        network, _ = solve(card, store, config=TrainConfig(device="cpu", precision="float32"))
        return cls(name=name, card=card, network=network, encoder=encoder, patient=patient)

    def predict(self, observed: Observed) -> NDArray[np.float32]:
        """Predict the measured spots of a section, ``(n_spots, n_genes)``."""
        batches = inputs_of(observed.section, self.card, self.encoder, compute=_CPU, batch_size=None)
        inference = Inference(self.network, device=_CPU.place, precision=_CPU.precision, scope="section")
        ((_, prediction),) = inference.over(batches)
        return prediction.numpy()[observed.rows]


def _fit_baselines(
    training: Sequence[Observed], card: ModelCard, *, scored: Sequence[Observed], names: Collection[str]
) -> list[_Baseline]:
    """Fit ``mean`` and ``ridge`` to all training sections, and ``mean`` to each patient's training sections."""
    baselines = []
    if "global_mean" in names:
        baselines.append(_Baseline.fit("global_mean", "mean", training, card))
    if "patient_mean" in names:
        for patient in sorted({section.patients[0] for section in training if len(section.patients) == 1}):
            own = [section for section in training if section.patients == (patient,)]
            baselines.append(_Baseline.fit("patient_mean", "mean", own, card, patient=patient))
    if "ridge" not in names:
        return baselines
    if unfit := [reason for section in (*training, *scored) if (reason := _unfit_for_ridge(section))]:
        logger.warning("The baseline 'ridge' is left out: %s", unfit[0])
    else:
        baselines.append(_Baseline.fit("ridge", "ridge", training, card))
    return baselines


def _unfit_for_ridge(observed: Observed) -> str:
    """Return why fields of view of known size cannot be read; empty if they can."""
    mpp, crop = observed.section.mpp, get_spec("ridge").crop
    if mpp is None:
        return (
            f"the mpp of the image of {observed.name!r} is unknown. A transformation of the image to a coordinate system "
            f"called {Keys.UM!r} gives it, or the argument mpp."
        )
    try:
        observed.section.plan(crop)
    except ValueError:
        return f"the image of {observed.name!r} has {mpp.value:.4g} um/px, and colours are read at {crop.mpp:g} um/px."
    return ""
