"""How good is a prediction, and is it better than sequencing depth, position and a constant?"""

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
from st_predict.tl._beside import PREDICTORS, Baselines
from st_predict.tl._evaluation import Evaluation, words_of
from st_predict.tl._reliability import ScoredSection
from st_predict.tl._scoring import Truth, compare, over_sections, score_section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from st_predict._sections import HeldOutSection, Measured, Relation, Sections, StoredPrediction
    from st_predict.specs import ModelCard
    from st_predict.tl._scoring import SectionScores

__all__ = ["Evaluation", "evaluate"]

_COLUMNS = {
    "gene_partial": "Headline. Correlation over the spots of a section, per gene, of the prediction with the Pearson residuals of the "
    "counts, after both were regressed on the log total count of the spot and its square: what is predicted beyond sequencing "
    "depth. Residuals use the gene proportions of the network's training spots if its card has them, else those of the section.",
    "gene_partial_low": "Lower end of the 95 % interval of gene_partial, by resampling blocks of about 12 neighbouring spots, and "
    "sections where it is a mean over several.",
    "gene_partial_high": "Upper end of the 95 % interval of gene_partial, by resampling blocks of about 12 neighbouring spots, and "
    "sections where it is a mean over several.",
    "partial_low": "Lower end of the 95 % interval of the partial correlation of a gene, by resampling blocks of about 12 neighbouring "
    "spots.",
    "partial_high": "Upper end of the 95 % interval of the partial correlation of a gene, by resampling blocks of about 12 neighbouring "
    "spots.",
    "difference_low": "Lower end of the 95 % interval of gene_partial of the prediction minus that of the predictor, by resampling "
    "sections and blocks of spots in them.",
    "difference_high": "Upper end of the 95 % interval of gene_partial of the prediction minus that of the predictor, by resampling "
    "sections and blocks of spots in them.",
    "n_sections": "Number of sections with this predictor; each has the same weight in a mean, which leaves out undefined scores.",
    "gene_residual": "Correlation over the spots of a section, per gene, of the prediction with the Pearson residuals of the counts by "
    "the gene proportions of the section, without depth regressed out.",
    "observed_morans_i": "Moran's I of the Pearson residuals, mean over genes; morans_i beside it is that of the prediction.",
    "n_genes": "Number of genes that were scored.",
}


@shows_progress
def evaluate(  # noqa: PLR0913  # every one is a keyword
    sdatas: Sections,
    *,
    key: str | None = None,
    train: Sections | None = None,
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
    bin_um
        Side of the bins of Visium HD in micrometres, such as 16, instead of ``table_key``. By default bins of 8 um where there are
        several sizes.
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
    min_counts
        Least sum of the counts of the panel in a spot; spots with fewer are neither scored nor learned from. By default 50 in
        spots of 50 um and more, and 1 in bins, cells and spots of unknown size: a spot with few counts moves a
        correlation, and says nothing.
    tissue_only
        Whether to leave out spots that the assay found beside the tissue: ``in_tissue`` in ``.obs`` is 0. How many is logged.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Scores of ``key`` and of each baseline. Also adds to each table:

    ``.var["{key}_partial"]``, ``.var["{key}_residual"]``, ``.var["{key}_pearson"]``, ``.var["{key}_spearman"]`` : float64
        Per-gene scores within the section, NaN where undefined (the mean, if the table has several sections).

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
) -> Evaluation:
    """Score the genes of ``card``, of predictions and of baselines that were fitted to the slides ``known``."""
    warn_of_missing(stored, card)
    measured = [
        join_held_out(slide, found, card, min_counts=min_counts) for slide, found in zip(slides, stored, strict=True)
    ]
    _check_sections([section for sections in measured for section in sections], key)
    learned = [section for slide in known for section in observe(slide, card, min_counts=min_counts)]
    baselines = Baselines.fit(learned, card, scored=[s.observed for sections in measured for s in sections])
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
    """Join the scores of all sections; the card of the ``whole`` panel also has the genes that were not scored."""
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
    """Return what a card may keep of the scores of a section."""
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
            f"The key {key!r} is the name of a baseline, so the scores of both could not be told apart.",
            "store the prediction under another key: st_predict.tl.predict(..., key_added=...)",
        )


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
