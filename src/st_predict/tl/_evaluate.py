"""How good is a prediction, and is it better than a constant?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from st_predict import metrics
from st_predict._errors import InvalidValueError
from st_predict._keys import Keys
from st_predict._runtime import Compute, Inference
from st_predict._sections import (
    as_list,
    common_key,
    each,
    encoder_of,
    inputs_of,
    join_held_out,
    keep_common,
    measure_held_out,
    measure_training,
    observe,
    read_stored,
    refuse_scored_in_training,
    store_of,
    warn_of_missing,
)
from st_predict._training import TrainConfig, solve
from st_predict._where import Duplicates, GeneMatching, Missing, Where
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from st_predict._sections import HeldOutSection, Measured, Observed, Sections, StoredPrediction
    from st_predict.encoders import Encoder
    from st_predict.models import SpotModel

__all__ = ["Evaluation", "evaluate"]

logger = logging.getLogger(__name__)

_CPU = Compute(device="cpu", precision="float32")

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


def evaluate(  # noqa: PLR0913  # every one is a keyword
    sdatas: Sections,
    *,
    key: str | None = None,
    train: Sections | None = None,
    group_key: str = Keys.PATIENT,
    image_key: Mapping[str, str] | str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    layer: str | None = None,
    missing: Missing = "error",
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    mpp: float | Literal["spots"] | None = None,
) -> Evaluation:
    """Compare a prediction with what was measured, beside the baselines.

    Scores are taken within each section; sections are never pooled, because a constant that knows the section or the
    patient would score high.

    Parameters
    ----------
    sdatas
        Measured sections that hold the prediction.
    key
        Key of the prediction; by default the only one that there is.
    train
        Sections that the model was trained on. Baselines learn from these and from nothing else; without them, only
        the mean of the section itself is given. Features for the baseline ``ridge`` are kept on disk, as by :func:`embed`.
    group_key
        Column of ``.obs`` that names the patient.
    image_key
        RGB image of the sections, for the baseline ``ridge``; may be left out where there is one. A mapping from region to
        image, for tables of several sections.
    table_key
        Table of the counts; by default that of the predicted spots.
    shapes_key
        Shapes of the spots: selects the table that annotates them, and of a table of several sections this one.
    layer
        Layer of the table with the raw counts; by default ``.X``.
    missing
        What to do with genes of the panel that a table of ``sdatas`` or ``train`` lacks: refuse, or ``"drop"`` them from the
        scores. Units that are relative to the sum over the panel then run over the genes that are left; a message says how
        much that may matter.
    duplicates
        What to do with genes that several columns of a table carry: refuse, ``"sum"`` their counts, or take the
        ``"first"``.
    ignore_case
        Whether symbols that differ in case are the same gene.
    id_column
        Column of ``.var`` with identifiers like those of the panel. By default ``var_names``, or the one column that has
        genes of the panel.
    aliases
        Table of old symbols and Ensembl identifiers, in the form of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    mpp
        Micrometres per pixel of level 0 of the images, for the baseline ``ridge``; by default found as by
        :func:`st_predict.io.find_mpp`.

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
        If a section has no such prediction, table, layer or column, or genes are missing.
    LeakageError
        If a section is to be scored and is in ``train`` as well.
    ValueError
        If a table holds no counts, there are several predictions and ``key`` names none, sections were predicted by networks
        with different panels or units, or ``key`` is the name of a baseline.
    TypeError
        If a section is not a SpatialData object.
    """
    genes = GeneMatching(
        missing=missing, duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases
    )
    where = Where(
        image_key=image_key,
        table_key=table_key,
        shapes_key=shapes_key,
        layer=layer,
        mpp=mpp,
        group_key=group_key,
        genes=genes,
    )
    slides = as_list(sdatas)
    key = common_key(slides, key, where, named=sdatas)
    _refuse_name_of_baseline(key)
    stored = each(slides, lambda sdata: read_stored(sdata, key, where, scaled=False), named=sdatas)
    card = _common_card(stored, key)
    learned = [] if train is None else as_list(train, "train")
    known = measure_training(learned, card, where, table_key=stored[0].table_key, named=train)
    held_out = measure_held_out(slides, stored, where, named=sdatas)
    refuse_scored_in_training(held_out, known, group_key)
    return _evaluate(key, keep_common(card, [*known, *held_out]), held_out, stored, training=known)


def _evaluate(
    key: str,
    card: ModelCard,
    slides: Sequence[Measured],
    stored: Sequence[StoredPrediction],
    *,
    training: Sequence[Measured],
) -> Evaluation:
    """Score the genes of ``card``, of predictions and of baselines that were fitted to training slides."""
    warn_of_missing(stored, card)
    measured = [join_held_out(slide, found, card) for slide, found in zip(slides, stored, strict=True)]
    _check_sections([section for sections in measured for section in sections], key)
    known = [section for slide in training for section in observe(slide, card)]
    baselines = _fit_baselines(known, card, scored=[s.observed for sections in measured for s in sections])
    genes, summary = [], []
    for slide, sections in zip(slides, measured, strict=True):
        scored = [_score_section(section, card, key=key, baselines=baselines) for section in sections]
        _write_scores(slide, [scores[scores["predictor"] == key] for scores, _ in scored], card.genes, key=key)
        genes += [scores for scores, _ in scored]
        summary += [row for _, rows in scored for row in rows]
    return Evaluation(
        summary=pd.DataFrame(summary), genes=pd.concat(genes, ignore_index=True), definitions=_definitions(key, card)
    )


def _refuse_name_of_baseline(key: str) -> None:
    if key in PREDICTORS:
        raise InvalidValueError(
            f"The key {key!r} is the name of a baseline, so the scores of both could not be told apart.",
            "store the prediction under another key: st_predict.tl.predict(..., key_added=...)",
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
        store = store_of(sections, card, encoder, folder=Path(), compute=_CPU)
        network, _ = solve(card, store, config=TrainConfig(device="cpu", precision="float32"))
        return cls(name=name, card=card, network=network, encoder=encoder, patient=patient)

    def predict(self, observed: Observed) -> NDArray[np.float32]:
        """Predict the measured spots of a section, ``(n_spots, n_genes)``."""
        batches = inputs_of(observed.section, self.card, self.encoder, compute=_CPU, batch_size=None)
        inference = Inference(self.network, device=_CPU.place, precision=_CPU.precision, scope="section")
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
            f"called {Keys.UM!r} gives it, or the argument mpp."
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
            f"Several sections are called {twice}, so their scores could not be told apart.",
            f"give each a name of its own in .obs[{Keys.SECTION!r}]",
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
                f"The predictions {key!r} differ in panel or units, so their scores cannot stand side by side.",
                "evaluate the sections one by one",
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


def _write_scores(slide: Measured, scores: Sequence[pd.DataFrame], genes: Sequence[str], *, key: str) -> None:
    """Add the scores of the sections of a table to its ``.var``; genes that were not scored get NaN."""
    table, columns = slide.table, slide.match.only(genes).columns
    mean = pd.concat(scores).groupby("gene", sort=False)[["pearson", "spearman"]].mean()
    for metric in mean:
        values = np.full(table.n_vars, np.nan)
        for column, value in zip(columns, mean[metric], strict=True):
            values[list(column)] = value
        table.var[Keys.score(key, metric)] = values


def _definitions(key: str, card: ModelCard) -> dict[str, str]:
    what = f"Prediction of a {card.model!r} network, in {card.target.units}."
    return {**metrics.DEFINITIONS, key: what, **PREDICTORS}
