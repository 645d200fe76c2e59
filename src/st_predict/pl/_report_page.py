"""Content of a slide's report, from the prediction, the weights' card and measured values."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata import SpatialData

from st_predict import get, metrics
from st_predict._containers import share_arrays
from st_predict._errors import StPredictError
from st_predict._progress import track
from st_predict._record import Record
from st_predict._show_versions import versions
from st_predict.pl._report_figures import map_of_gene, overview
from st_predict.pl._view import read_section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from st_predict._where import Where
    from st_predict.pl._view import View
    from st_predict.specs import HeldOut, ModelCard, Reliability
    from st_predict.tl import Evaluation

__all__ = ["Page", "Shown", "page_of"]

N_NEIGHBOURS = 6
"""Number of neighbours per spot for Moran's I, which selects genes if the card has no scores."""

_NOT_FITTED = (
    "Baselines fitted to training sections are not shown; pass the result of st_predict.tl.evaluate(..., train=) as evaluation "
    "to include them."
)

_RELATIONS = {
    "patient": "of a patient that was not trained on",
    "section": "new, of a patient that was trained on",
    "training": "which was trained on, so that its scores do not hold for other slides",
    "context": "of which the network has read some counts",
    "unknown": "of which it is unknown whether it was trained on",
}
"""Relation of a scored section to the training."""

_SCORES = {
    "gene_partial": "partial",
    "gene_partial_low": "95 % interval, from",
    "gene_partial_high": "to",
    "gene_pearson": "plain",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Options of a page."""

    genes: list[str] | None
    n_genes: int
    held_out: HeldOut | None
    score: bool
    where: Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Content of the template, which escapes the texts.

    Parameters
    ----------
    title
        Name of the slide.
    key
        Key of the prediction.
    summary
        Facts about the prediction, by heading.
    weights
        Facts of the network's card, by heading.
    trust
        Sentences about the reliable genes.
    overview
        Figure of the slide, and its legend.
    thumbnail
        The overview, smaller.
    maps
        Genes and their figures.
    is_measured
        Whether maps show measured beside predicted values.
    genes
        One row per gene: scores on held-out sections.
    scores
        Title and table of each section.
    predictors
        Meaning of each row of the score tables.
    words
        Sentences about the scores.
    warnings
        Warnings that were logged when the prediction was made.
    versions
        Names and versions of software.
    code
        Code that reproduces the prediction and this page.
    """

    title: str
    key: str
    summary: dict[str, str]
    weights: dict[str, str]
    trust: list[str]
    overview: str
    thumbnail: str
    maps: list[tuple[str, str]]
    is_measured: bool
    genes: list[dict[str, str]]
    scores: list[tuple[str, list[dict[str, str]]]]
    predictors: dict[str, str]
    words: list[str]
    warnings: list[str]
    versions: Mapping[str, str]
    code: str

    def without_figures(self) -> Page:
        """Return what an index shows."""
        return replace(self, overview="", maps=[], genes=[])


def page_of(sdata: SpatialData, key: str | None, shown: Shown, *, title: str, evaluation: Evaluation | None) -> Page:
    """Collect the content of a slide's page."""
    key = get.only_key(sdata, key, table_key=shown.where.table_key)
    table_key = shown.where.table_key
    if shown.held_out is not None:
        get.reliability(sdata, key, table_key=table_key, held_out=shown.held_out)  # refuses sections without scores
    predicted = get.prediction(sdata, key, table_key=table_key, held_out=shown.held_out)
    view = read_section(sdata, key, shown.where, margin=None)
    predicted = predicted[view.rows]
    record = Record.read(predicted.uns, key)  # its card has the genes of the table, which may be fewer
    card = None if record is None else record.card
    scores = None if card is None else card.reliability_on(shown.held_out)
    evaluation, words = _evaluated(sdata, key, shown, evaluation)
    genes = shown.genes or _best_genes(predicted, view, shown.n_genes)
    large, small = overview(sdata, view, _is_predicted(predicted), shown.where)
    with _each_warning_once():
        maps = [
            (gene, map_of_gene(sdata, gene, key, shown.where))
            for gene in track(genes, "Drawing", len(genes), unit="gene")
        ]
    params = {} if record is None else record.params
    return Page(
        title=title,
        key=key,
        summary=_summary(predicted, record),
        weights={} if card is None else _weights(card, params),
        trust=_trust(card, scores),
        overview=large,
        thumbnail=small,
        maps=maps,
        is_measured=evaluation is not None,
        genes=_gene_rows(card, scores),
        scores=[] if evaluation is None else _score_tables(evaluation),
        predictors={} if evaluation is None else _meanings(evaluation),
        words=words,
        warnings=[str(one) for one in params.get("warnings", ())],
        versions=versions(),
        code=_code(key, params, title),
    )


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """Log each warning once, not for every gene."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = (message := record.getMessage()) in said
        said.add(message)
        return not known

    plots = logging.getLogger("st_predict.pl._values")
    plots.addFilter(is_new)
    try:
        yield
    finally:
        plots.removeFilter(is_new)


def _is_predicted(predicted: AnnData) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(predicted.X).any(axis=1))


def _summary(predicted: AnnData, record: Record | None) -> dict[str, str]:
    """Numbers of spots and genes, units, resolution and its source, device."""
    n_spots, n_done = predicted.n_obs, int(_is_predicted(predicted).sum())
    facts = {
        "spots": f"{n_done:,} of {n_spots:,} predicted, {n_spots - n_done:,} left out",
        "genes": f"{predicted.n_vars:,}",
        "values": "unknown units" if record is None or record.card is None else record.card.target.units,
    }
    if record is None:
        return facts
    sections = list(record.params.get("sections", ()))
    resolutions = {
        f"{one['mpp']:.4g} um per pixel, from {one['mpp_source']}" if one.get("mpp") else "unknown" for one in sections
    }
    facts["resolution"] = "; ".join(sorted(resolutions)) or "unknown"
    facts["image"] = ", ".join(dict.fromkeys(str(one.get("image")) for one in sections)) or "unknown"
    if stains := {str(one["stain"]["method"]) for one in sections if "stain" in one}:
        facts["stain normalisation"] = ", ".join(sorted(stains))
    facts["spots with a cut field of view"] = {"keep": "kept", "nan": "left out"}.get(
        str(record.params.get("cut_tissue")), "unknown"
    )
    facts["computed on"] = str(record.params.get("device", "unknown"))
    facts["made with"] = f"st_predict {record.version}"
    return facts


def _weights(card: ModelCard, params: Mapping[str, Any]) -> dict[str, str]:
    """Checkpoints with their hashes, and the card."""
    from st_predict.checkpoints import card_facts

    members = {
        f"{one.get('checkpoint')} (SHA-256 {str(one.get('sha256'))[:16]}...)" for one in params.get("members", ())
    }
    facts = {"checkpoint": "; ".join(sorted(members)) or "unknown", **card_facts(card)}
    return {"licence": "not stated by the card", **facts} if "licence" not in facts else facts


def _trust(card: ModelCard | None, scores: Reliability | None) -> list[str]:
    if card is None:
        return ["The weights' card is missing, so it is unknown which genes are reliable."]
    if scores is None:
        return [
            "The weights' card has no scores on held-out sections, so it is unknown which genes are reliable.",
            "The genes below are those whose predictions have the highest spatial autocorrelation.",
        ]
    from st_predict.checkpoints import score_sentence

    return [score_sentence(scores)]


def _best_genes(predicted: AnnData, view: View, n_genes: int) -> list[str]:
    """Reliable genes, the best first; without scores on the card, by Moran's I of the prediction."""
    if "partial" in predicted.var:
        reliable = predicted.var[predicted.var["partial_low"] > 0]
        return list(map(str, reliable.sort_values("partial", ascending=False).index[:n_genes]))
    done = np.flatnonzero(_is_predicted(predicted))
    if len(done) <= N_NEIGHBOURS:
        return [str(gene) for gene in predicted.var_names[:n_genes]]
    weights = metrics.neighbour_weights(view.spots.xy[done], k=N_NEIGHBOURS)
    moran = np.nan_to_num(metrics.morans_i(np.asarray(predicted.X)[done], weights), nan=-1.0)
    return [str(predicted.var_names[i]) for i in np.argsort(-moran, kind="stable")[:n_genes]]


def _gene_rows(card: ModelCard | None, scores: Reliability | None) -> list[dict[str, str]]:
    """Scores of all genes on held-out sections, best first."""
    if card is None or scores is None:
        return []
    from st_predict.checkpoints import rank_genes

    return [one.to_row() for one in rank_genes(card, scores)]


def _number(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:z.2f}"


def _evaluated(
    sdata: SpatialData, key: str, shown: Shown, evaluation: Evaluation | None
) -> tuple[Evaluation | None, list[str]]:
    """Scores of the prediction with sentences about them; without counts, the reason for their absence."""
    if evaluation is None and not shown.score:
        return None, ["The prediction was not scored."]
    if evaluation is None:
        try:
            evaluation = _evaluate(sdata, key, shown.where)
        except StPredictError as error:
            return None, [f"The prediction could not be scored. {error.found}"]
        return evaluation, [*evaluation.words, _NOT_FITTED]
    return evaluation, [*evaluation.words]


def _evaluate(sdata: SpatialData, key: str, where: Where) -> Evaluation:
    """Score a copy, as scores are written to the table; genes that were not measured have none."""
    from st_predict import tl

    return tl.evaluate(
        [_shared(sdata)],
        key=key,
        table_key=where.table_key,
        image_key=where.image_key if where.shapes_key is None else None,  # all sections of the table are scored
        layer=where.layer,
        missing="drop",
        duplicates=where.genes.duplicates,
        ignore_case=where.genes.ignore_case,
        id_column=where.genes.id_column,
        aliases=where.genes.aliases,
    )


def _shared(sdata: SpatialData) -> SpatialData:
    """Return a slide that shares arrays, but whose tables can be changed."""
    elements = {name: getattr(sdata, name) for name in ("images", "labels", "points", "shapes")}
    tables = {name: share_arrays(table) for name, table in sdata.tables.items()}
    return SpatialData(**{name: dict(found) for name, found in elements.items()}, tables=tables)


def _score_tables(evaluation: Evaluation) -> list[tuple[str, list[dict[str, str]]]]:
    """Scores of the prediction, baselines and ceilings per section."""
    tables, relations = [], {one.name: one.relation for one in evaluation.sections}
    for name, rows in evaluation.summary.groupby("section", sort=False):
        size = f"{rows['n_spots'].iloc[0]:,} spots, {rows['n_genes'].iloc[0]} genes"
        title = f"Section {name}, {_RELATIONS[relations[name]]}: {size}"
        tables.append((title, [_score_row(row) for _, row in rows.iterrows()]))
    return tables


def _score_row(row: pd.Series) -> dict[str, str]:
    numbers = {title: _number(float(row[name])) for name, title in _SCORES.items()}
    return {"predictor": str(row["predictor"]), **numbers}


def _meanings(evaluation: Evaluation) -> dict[str, str]:
    """Meaning of each predictor."""
    names = dict.fromkeys(map(str, evaluation.summary["predictor"]))
    return {name: evaluation.definitions[name] for name in names if name in evaluation.definitions}


def _code(key: str, params: Mapping[str, Any], title: str) -> str:
    """Python code that reproduces prediction and page, with the arguments that the record has."""
    members = list(params.get("members", ()))
    names = [str(one.get("checkpoint")) for one in members]
    sections = list(params.get("sections", ()))
    images = {one["image"] for one in sections if "image" in one}
    given = {
        "key_added": key,
        "mpp": next((one["mpp"] for one in sections if one.get("mpp_source") == "argument"), None),
        "n_samples": members[0].get("n_samples") if members else None,
        "seed": members[0].get("seed") if members else None,
        "symmetries": next((one["symmetries"] for one in members if one.get("symmetries", 1) != 1), None),
        "precision": next((one["precision"] for one in members if "precision" in one), None),
        "image_key": images.pop() if len(images) == 1 else None,
        "cut_tissue": params.get("cut_tissue"),
        "context": (params.get("context") or {}).get("column"),
    }
    arguments = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
    model = repr(names[0] if len(names) == 1 else names)
    return (
        "import spatialdata\nimport st_predict as stp\n\n"
        f"sdata = spatialdata.read_zarr({title + '.zarr'!r})\n"
        f"stp.tl.predict(sdata, {model}{arguments})\n"
        f"stp.pl.report(sdata, {key!r}, {title + '.html'!r})\n"
    )
