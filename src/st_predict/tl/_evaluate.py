"""How good is a prediction, and is it better than a constant?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from st_predict import metrics
from st_predict._errors import InvalidValueError
from st_predict._keys import Keys
from st_predict._runtime import Inference
from st_predict._sections import (
    as_list,
    encoder_of,
    inputs_of,
    measured_table,
    observe,
    read_held_out,
    read_stored,
    refuse_same_sections,
    store_of,
)
from st_predict._training import TrainConfig, solve
from st_predict.models import get_spec
from st_predict.pp import align_panel
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._sections import HeldOutSection, Observed, Sections, StoredPrediction
    from st_predict.encoders import Encoder
    from st_predict.models import SpotModel

__all__ = ["Evaluation", "evaluate"]

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")

PREDICTORS = {
    "global_mean": "Mean of each gene over all spots of the training sections: the model 'mean'.",
    "patient_mean": "Mean of each gene over the spots of training sections of the same patient; "
    "left out for a patient who is not among them.",
    "section_mean": "Mean of each gene over the spots of the section itself. Uses what is to be predicted: no method can "
    "have it, and no constant has a smaller squared error.",
    "ridge": "Ridge regression on colour, stain and texture in fields of view of 128, 256 and 512 um, fitted on the training "
    "sections: the model 'ridge' on the encoder 'rgb'. Left out where the mpp of an image is unknown or above 2 um/px.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of a prediction and of the baselines.

    Parameters
    ----------
    summary
        A row for each section and predictor; columns are the scores that ``definitions`` explains.
    genes
        Tidy: ``section``, ``predictor``, ``gene``, ``pearson``, ``spearman``. NaN where a correlation is undefined.
    definitions
        What each score and each predictor is, in a sentence.
    """

    summary: pd.DataFrame
    genes: pd.DataFrame
    definitions: Mapping[str, str]


def evaluate(
    sdatas: Sections,
    *,
    key: str = "pred_m2ost",
    train: Sections | None = None,
    group_key: str = Keys.PATIENT,
    image_key: Mapping[str, str] | str | None = None,
) -> Evaluation:
    """Compare a prediction with what was measured, beside the baselines.

    Scores are taken within each section; sections are never pooled, because a constant that knows the section or the
    patient would score high.

    Parameters
    ----------
    sdatas
        Measured sections that hold the prediction.
    key
        Key of the prediction.
    train
        Sections that the model was trained on. Baselines learn from these and from nothing else; without them, only
        the mean of the section itself is given. Features for the baseline ``ridge`` are kept on disk, as by :func:`embed`.
    group_key
        Column of ``.obs`` that names the patient.
    image_key
        RGB image of the sections, for the baseline ``ridge``; may be left out where there is one. A mapping from region to
        image, for tables of several sections.

    Returns
    -------
    Scores of ``key`` and of each baseline. Also adds to each table:

    ``.var["{key}_pearson"]``, ``.var["{key}_spearman"]`` : float64
        Per-gene correlation within the section, NaN where undefined (the mean, if the table has several sections).

    Spots that have no prediction, or no counts, are left out everywhere, as are those whose counts the network has read
    (``context`` of :func:`predict`).

    Raises
    ------
    KeyError
        If a section has no such prediction, or does not name its patients.
    LeakageError
        If a section is to be scored and is in ``train`` as well.
    ValueError
        If a table holds no counts, sections were predicted by networks with different panels or units, or ``key`` is the name of
        a baseline.
    """
    if key in PREDICTORS:
        raise InvalidValueError(
            f"key={key!r} is the name of a baseline, so the scores of both could not be told apart: store the prediction under "
            "another key (key_added of st_predict.tl.predict)."
        )
    slides = as_list(sdatas)
    stored = [read_stored(sdata, key, scaled=False) for sdata in slides]
    card = _common_card(stored, key)
    known: list[Observed] = []
    if train is not None:
        refuse_same_sections(slides, as_list(train), group_key=group_key, what="in train and to be scored")
        for sdata in as_list(train):
            known += observe(sdata, card, group_key=group_key, image_key=image_key, crops=False)
    measured = [
        read_held_out(sdata, found, group_key=group_key, image_key=image_key)
        for sdata, found in zip(slides, stored, strict=True)
    ]
    _check_sections([section for sections in measured for section in sections], key)
    baselines = _fit_baselines(known, card, scored=[s.observed for sections in measured for s in sections])
    genes, summary = [], []
    for sdata, sections in zip(slides, measured, strict=True):
        scored = [_score_section(section, card, key=key, baselines=baselines) for section in sections]
        _write_scores(sdata, [scores[scores["predictor"] == key] for scores, _ in scored], card.genes, key=key)
        genes += [scores for scores, _ in scored]
        summary += [row for _, rows in scored for row in rows]
    return Evaluation(
        summary=pd.DataFrame(summary), genes=pd.concat(genes, ignore_index=True), definitions=_definitions(key, card)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baseline:
    """A model that was fitted to training sections in a moment.

    Parameters
    ----------
    name
        What it is called beside the prediction.
    card, network, encoder
        The model.
    patient
        Patient whose sections it is for; ``None`` for all.
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
        """Fit a model in closed form to the panel and the units of another one's card."""
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
        store = store_of(sections, card, encoder, folder=Path(), device=_CPU, precision="float32")
        network, _ = solve(card, store, config=TrainConfig(device="cpu", precision="float32"))
        return cls(name=name, card=card, network=network, encoder=encoder, patient=patient)

    def predict(self, observed: Observed) -> NDArray[np.float32]:
        """Predict the measured spots of a section, ``(n_spots, n_genes)``."""
        batches = inputs_of(
            observed.section, self.card, self.encoder, batch_size=None, device=_CPU, precision="float32"
        )
        inference = Inference(self.network, device=_CPU, precision="float32", scope="section")
        ((_, prediction),) = inference.over(batches)
        return prediction.numpy()[observed.rows]


def _fit_baselines(training: Sequence[Observed], card: ModelCard, *, scored: Sequence[Observed]) -> list[_Baseline]:
    """Fit the models ``mean`` and ``ridge``, each to all training sections, and ``mean`` to those of each patient."""
    if not training:
        return []
    baselines = [_Baseline.fit("global_mean", "mean", training, card)]
    patients = sorted({section.patients[0] for section in training if len(section.patients) == 1})
    for patient in patients:
        own = [section for section in training if section.patients == (patient,)]
        baselines.append(_Baseline.fit("patient_mean", "mean", own, card, patient=patient))
    if unfit := [reason for section in (*training, *scored) if (reason := _unfit_for_ridge(section))]:
        logger.warning("The baseline 'ridge' is left out: %s", unfit[0])
    else:
        baselines.append(_Baseline.fit("ridge", "ridge", training, card))
    return baselines


def _unfit_for_ridge(observed: Observed) -> str:
    """Say why colours cannot be read in fields of known size; empty if they can."""
    mpp, crop = observed.section.mpp, get_spec("ridge").crop
    if mpp is None:
        return (
            f"the mpp of the image of {observed.name!r} is unknown. A transformation of the image to a coordinate system "
            f"called {Keys.UM!r} says it."
        )
    try:
        observed.section.plan(crop)
    except ValueError:
        return f"the image of {observed.name!r} has {mpp.value:.4g} um/px, and colours are read at {crop.mpp:g} um/px."
    return ""


def _check_sections(sections: Sequence[HeldOutSection], key: str) -> None:
    """Refuse sections without a spot to score, and sections of the same name."""
    names = [section.name for section in sections]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidValueError(
            f"Several sections are called {twice}, so their scores could not be told apart: give each a name of its own "
            f"in .obs[{Keys.SECTION!r}]."
        )
    for section in sections:
        if not len(section.spots):
            raise InvalidValueError(f"No spot of section {section.name!r} has both counts and a prediction {key!r}.")


def _common_card(stored: Sequence[StoredPrediction], key: str) -> ModelCard:
    """Card of the network that predicted all sections."""
    first, *others = [prediction.card for prediction in stored]
    for card in others:
        if (card.genes, card.target) != (first.genes, first.target):
            raise InvalidValueError(
                f"The predictions {key!r} differ in panel or units, so their scores can't stand side by side: "
                "evaluate the sections one by one."
            )
    return first


def _score_section(
    section: HeldOutSection, card: ModelCard, *, key: str, baselines: Sequence[_Baseline]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Score a prediction beside the baselines: a gene at a time, and in a row each."""
    own_mean = np.broadcast_to(section.target.mean(axis=0), section.target.shape)
    predictions: dict[str, NDArray[Any]] = {key: section.mean, "section_mean": own_mean}
    for baseline in baselines:
        if baseline.patient is None or section.patients == (baseline.patient,):
            predictions[baseline.name] = baseline.predict(section.observed)
    genes, rows = [], []
    for name, predicted in predictions.items():
        about = {"section": section.name, "predictor": name}
        scores, row = _score(predicted, section.target)
        genes.append(pd.DataFrame({**about, "gene": card.genes, **scores}))
        rows.append({**about, **row})
    return pd.concat(genes, ignore_index=True), rows


def _score(
    predicted: NDArray[Any], target: NDArray[np.float32]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    pearson, spearman = (score(predicted, target, axis=0) for score in (metrics.pearson, metrics.spearman))
    spots = metrics.pearson(predicted, target, axis=1)
    row = {
        "n_spots": len(target),
        "gene_pearson": _mean_defined(pearson),
        "gene_spearman": _mean_defined(spearman),
        "n_undefined_genes": int(np.isnan(pearson).sum()),
        "spot_pearson": _mean_defined(spots),
        "n_undefined_spots": int(np.isnan(spots).sum()),
        "spot_rmse": float(metrics.rmse(predicted, target, axis=1).mean()),
        "mae": float(metrics.mae(predicted, target, axis=1).mean()),
    }
    return {"pearson": pearson, "spearman": spearman}, row


def _mean_defined(scores: NDArray[np.float64]) -> float:
    """Mean of what is defined; NaN, not zero, if nothing is."""
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if len(defined) else float("nan")


def _write_scores(sdata: SpatialData, scores: Sequence[pd.DataFrame], genes: Sequence[str], *, key: str) -> None:
    """Add the scores of the sections of a table to its ``.var``; genes outside the panel get NaN."""
    table = measured_table(sdata)
    columns = align_panel(table, genes).columns
    mean = pd.concat(scores).groupby("gene", sort=False)[["pearson", "spearman"]].mean()
    for metric in mean:
        values = np.full(table.n_vars, np.nan)
        for column, value in zip(columns, mean[metric], strict=True):
            values[list(column)] = value
        table.var[Keys.score(key, metric)] = values


def _definitions(key: str, card: ModelCard) -> dict[str, str]:
    what = f"Prediction of a {card.model!r} network, in {card.target.units}."
    return {**metrics.DEFINITIONS, key: what, **PREDICTORS}
