"""Scores of a prediction, compared with sequencing depth, position and constants."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from st_predict import metrics
from st_predict._errors import InvalidValueError
from st_predict._keys import Keys
from st_predict._progress import shows_progress, track
from st_predict._sections import (
    TrainingSections,
    as_list,
    common_key,
    each,
    join_held_out,
    keep_common,
    measure_held_out,
    measure_training,
    observe,
    read_stored,
    refuse_scored_in_training,
    warn_of_missing,
)
from st_predict._validated import Natural, check
from st_predict._where import Duplicates, GeneMatching, Missing, Where
from st_predict.tl._beside import FITTED, PREDICTORS, Baselines, FittedBaseline
from st_predict.tl._evaluation import Evaluation, words_of
from st_predict.tl._reliability import ScoredSection
from st_predict.tl._scoring import Truth, compare, over_sections, score_section

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from os import PathLike

    from st_predict._sections import HeldOutSection, Measured, Relation, Sections, StoredPrediction
    from st_predict.specs import ModelCard
    from st_predict.tl._scoring import SectionScores

__all__ = ["Evaluation", "evaluate"]

_COLUMNS = {
    "gene_partial": "Headline. Correlation over the spots of a section, per gene, of the prediction with the Pearson residuals of the "
    "counts, after both were regressed on the log total count of the spot and its square: prediction beyond sequencing depth. "
    "Residuals use the gene proportions of the network's training spots if its card has them, else the section's.",
    "gene_partial_low": "Lower end of the 95 % interval of gene_partial, by resampling blocks of about 12 neighbouring spots, and "
    "sections where it is a mean over several.",
    "gene_partial_high": "Upper end of the 95 % interval of gene_partial, by resampling blocks of about 12 neighbouring spots, and "
    "sections where it is a mean over several.",
    "partial_low": "Lower end of the 95 % interval of the partial correlation of a gene, by resampling blocks of about 12 neighbouring "
    "spots.",
    "partial_high": "Upper end of the 95 % interval of the partial correlation of a gene, by resampling blocks of about 12 neighbouring "
    "spots.",
    "difference_low": "Lower end of the 95 % interval of gene_partial of the prediction minus the predictor's, by resampling "
    "sections and blocks of spots in them.",
    "difference_high": "Upper end of the 95 % interval of gene_partial of the prediction minus the predictor's, by resampling "
    "sections and blocks of spots in them.",
    "n_sections": "Number of sections with this predictor; each has the same weight in a mean, which leaves out undefined scores.",
    "gene_residual": "Correlation over the spots of a section, per gene, of the prediction with the Pearson residuals of the counts by "
    "the gene proportions of the section, without depth regressed out.",
    "observed_morans_i": "Moran's I of the Pearson residuals, mean over genes; morans_i is the prediction's.",
    "n_genes": "Number of scored genes.",
}


@shows_progress
def evaluate(  # noqa: PLR0913  # every argument is a keyword
    sdatas: Sections,
    *,
    key: str | None = None,
    train: Sections | None = None,
    baselines: Sequence[FittedBaseline] | None = None,
    group_key: str = Keys.PATIENT,
    image_key: Mapping[str, str] | str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    shapes_key: str | None = None,
    layer: str | None = None,
    missing: Missing = "error",
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    mpp: float | Literal["spots"] | None = None,
    min_counts: int | None = None,
    tissue_only: bool = True,
    progress: bool | None = None,
) -> Evaluation:
    """Score a prediction and baselines against measured counts.

    Scores are computed within each section. Sections are never pooled: a constant per section or patient would then
    score high.

    Parameters
    ----------
    sdatas
        Measured sections that hold the prediction.
    key
        Key of the prediction; by default the only one.
    train
        Training sections of the model. Baselines are fitted to these sections only; without them, baselines that need
        training are left out. Features for the baseline ``ridge`` are cached on disk, as by :func:`embed`.
    baselines
        Baselines to fit to ``train``: ``"global_mean"``, ``"patient_mean"``, ``"position"`` and ``"ridge"``; by default all.
        Only ``"ridge"`` reads the images. Baselines that need no training are always scored.
    group_key
        Column of ``.obs`` that names the patient.
    image_key
        Key of the RGB image, for the baseline ``ridge``; optional where there is only one. For tables of several
        sections: mapping from region to image.
    table_key
        Key of the table with the counts; by default the predicted spots' table.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.
    shapes_key
        Key of the spots' shapes. Selects the table that annotates them and, in a table of several sections, their
        section.
    layer
        Layer with the raw counts; by default ``.X``.
    missing
        Handling of panel genes that a table of ``sdatas`` or ``train`` lacks: ``"error"`` refuses, ``"drop"`` does not
        score them. Units relative to the panel's sum then use the remaining genes; a message says how much that may
        matter.
    duplicates
        Handling of genes with several columns in a table: ``"error"`` refuses, ``"sum"`` adds their counts, ``"first"``
        takes the first.
    ignore_case
        Whether to ignore case when gene symbols are matched.
    id_column
        Column of ``.var`` with identifiers of the panel's type. By default ``var_names``, or the only column that has
        genes of the panel.
    aliases
        Table of previous symbols and Ensembl identifiers, in the format of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    mpp
        Micrometres per pixel (mpp) of the images at level 0, for the baseline ``ridge``; by default found by
        :func:`st_predict.io.find_mpp`.
    min_counts
        Minimum panel counts per spot; spots with fewer are neither scored nor used to fit baselines. By default 50 in
        spots of 50 um and more, and 1 in bins, cells and spots of unknown size. Spots with few counts add noise to a
        correlation.
    tissue_only
        Whether to leave out spots off the tissue (``in_tissue`` in ``.obs`` is 0). Their number is logged.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Evaluation
        Scores of ``key`` and of each baseline. Also adds to each table:

        ``.var["{key}_partial"]`` and the same with ``_residual``, ``_pearson`` and ``_spearman`` : float64
            Per-gene scores within the section, NaN where undefined (the mean, if the table has several sections).

        Spots without a prediction or without counts, and context spots (``context`` of :func:`predict`), are never
        scored.

    Raises
    ------
    KeyError
        If a section lacks the prediction, table, layer or column, or genes are missing.
    LeakageError
        If a scored section is also in ``train``.
    ValueError
        If a table has no raw counts, ``key`` is missing although there are several predictions, networks of the
        sections differ in panel or units, or ``key`` is the name of a baseline.
    TypeError
        If a section is not a SpatialData object.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> simulated = stp.datasets.simulate(2, 1, n_genes=8, shape=(720, 880), mpp=1.2)
    >>> train, test = simulated.sections.values()
    >>> panel = list(train["table"].var_names)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(train, "ridge", panel=panel, out=out)
    ...     stp.tl.predict(test, result)
    >>> evaluation = stp.tl.evaluate(test)
    >>> evaluation.summary["predictor"].tolist()
    ['pred_ridge', 'log_total', 'section_mean', 'neighbours', 'ceiling']
    >>> evaluation.comparisons.columns.tolist()
    ['section', 'predictor', 'difference', 'low', 'high', 'p', 'q']
    """
    genes = GeneMatching(
        missing=missing, duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases
    )
    fitted = FITTED if baselines is None else check("baselines", baselines, tuple[FittedBaseline, ...])
    where = Where(image_key=image_key, table_key=table_key, bin_um=bin_um, shapes_key=shapes_key, layer=layer, mpp=mpp)
    where = replace(where, group_key=group_key, tissue_only=tissue_only, genes=genes)
    slides = as_list(sdatas)
    key = common_key(slides, key, where, named=sdatas)
    _refuse_name_of_baseline(key)
    stored = each(slides, lambda sdata: read_stored(sdata, key, where, scaled=False), named=sdatas)
    card = _common_card(stored, key)
    learned = [] if train is None else as_list(train, "train")
    known = measure_training(learned, card, where, table_key=stored[0].table_key, named=train)
    held_out = measure_held_out(slides, stored, where, named=sdatas)
    refuse_scored_in_training(held_out, known, group_key)
    return _evaluate(
        key,
        keep_common(card, [*known, *held_out]),
        held_out,
        stored,
        training=TrainingSections.of(card, known, group_key),
        known=known,
        min_counts=check("min_counts", min_counts, Natural | None),
        fitted=fitted,
    )


def _evaluate(
    key: str,
    card: ModelCard,
    slides: Sequence[Measured],
    stored: Sequence[StoredPrediction],
    *,
    training: TrainingSections,
    known: Sequence[Measured],
    min_counts: int | None,
    fitted: Collection[str],
) -> Evaluation:
    """Score the genes of ``card`` for the predictions and for baselines fitted to the slides ``known``."""
    warn_of_missing(stored, card)
    measured = [
        join_held_out(slide, found, card, min_counts=min_counts) for slide, found in zip(slides, stored, strict=True)
    ]
    _check_sections([section for sections in measured for section in sections], key)
    learned = [section for slide in known for section in observe(slide, card, min_counts=min_counts)]
    observed = [section.observed for sections in measured for section in sections]
    baselines = Baselines.fit(learned, card, scored=observed, names=fitted)
    scored, described = [], []
    each_slide = zip(slides, stored, measured, strict=True)
    for slide, found, sections in track(each_slide, "Scoring", len(slides), unit="slide"):
        own = []
        for section in sections:
            relation = "context" if found.context else training.relation(section)
            predictions = {key: section.mean, **baselines.predict(section)}
            own.append(score_section(Truth.of(section, card), predictions, key=key, held_out=relation))
            described.append(_describe(own[-1], section, key, relation, chose=training.chose(section)))
        _write_scores(slide, [_of(key, scores.genes) for scores in own], card.genes, key=key)
        scored += own
    return _joined(key, card, scored, whole=stored[0].card, sections=described)


def _joined(
    key: str, card: ModelCard, scored: Sequence[SectionScores], *, whole: ModelCard, sections: Sequence[ScoredSection]
) -> Evaluation:
    """Join the scores of all sections; ``whole`` is the card of the whole panel, scored or not."""
    frame = pd.DataFrame([row for one in scored for row in one.summary])
    per_gene = pd.concat([one.genes for one in scored], ignore_index=True)
    compared = [compare(key, one.genes, one.samples, s.name) for one, s in zip(scored, sections, strict=True)]
    return Evaluation(
        summary=frame,
        overall=over_sections(key, frame, [one.samples for one in scored]),
        paper=pd.DataFrame([row for one in scored for row in one.paper]),
        comparisons=pd.DataFrame([row for rows in compared for row in rows]),
        genes=per_gene,
        definitions=_definitions(key, card),
        words=words_of(frame, per_gene, key, fitted=card.target.reference is not None),
        card=whole,
        sections=tuple(sections),
    )


def _of(key: str, genes: pd.DataFrame) -> pd.DataFrame:
    return genes[genes["predictor"] == key]


def _describe(
    scores: SectionScores, section: HeldOutSection, key: str, relation: Relation, *, chose: bool
) -> ScoredSection:
    """Return the scores of a section for a model card."""
    table = _of(key, scores.genes)
    return ScoredSection(
        name=section.name,
        patients=section.patients,
        relation=relation,
        chose_epoch=chose,
        n_spots=len(section.spots),
        partial=table["partial"].to_numpy(),
        ceiling=table["ceiling_partial"].to_numpy(),
        drawn=scores.drawn,
    )


def _refuse_name_of_baseline(key: str) -> None:
    if key in PREDICTORS:
        raise InvalidValueError(
            f"The key {key!r} is the name of a baseline, so their scores would have the same name.",
            "store the prediction under another key: st_predict.tl.predict(..., key_added=...)",
        )


def _check_sections(sections: Sequence[HeldOutSection], key: str) -> None:
    """Refuse sections without a spot to score, and sections of the same name."""
    names = [section.name for section in sections]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidValueError(
            f"Several sections are called {twice}, so their scores would have the same name.",
            f"give each its own name in .obs[{Keys.SECTION!r}]",
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
                f"The predictions {key!r} differ in panel or units, so their scores cannot be compared.",
                "evaluate the sections one by one",
            )
    return first


def _write_scores(slide: Measured, scores: Sequence[pd.DataFrame], genes: Sequence[str], *, key: str) -> None:
    """Add the scores of the sections of a table to its ``.var``; genes that were not scored get NaN."""
    table, columns = slide.table, slide.match.only(genes).columns
    mean = pd.concat(scores).groupby("gene", sort=False)[["pearson", "spearman", "partial", "residual"]].mean()
    for metric in mean:
        values = np.full(table.n_vars, np.nan)
        for column, value in zip(columns, mean[metric], strict=True):
            values[list(column)] = value
        table.var[Keys.score(key, metric)] = values


def _definitions(key: str, card: ModelCard) -> dict[str, str]:
    what = f"Prediction of a {card.model!r} network, in {card.target.units}."
    return {**metrics.DEFINITIONS, **_COLUMNS, key: what, **PREDICTORS}
