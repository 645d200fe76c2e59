"""Result of an evaluation, as tables and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING, get_args

import numpy as np

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import check
from st_predict.specs import HeldOut
from st_predict.tl._reliability import reliability_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from st_predict.specs import ModelCard, Reliability
    from st_predict.tl._reliability import ScoredSection

__all__ = ["Evaluation", "words_of"]

DEPTH, BEYOND = 0.3, 0.1
"""A plain correlation above the first number, with a partial one below the second, comes from sequencing depth."""

TIE = 0.005
"""Mean correlations closer than this count as equal."""

_COLUMNS = {
    "gene_partial": "partial",
    "interval": "95 % interval",
    "gene_residual": "residual",
    "gene_pearson": "plain",
    "share_above": "> 0.3",
}

_LEGEND = (
    "partial: correlation with Pearson residuals given sequencing depth, mean over genes; residual: without depth regressed out; "
    "plain: in the units of the prediction; > 0.3: share of genes with a partial correlation above 0.3. log_total, neighbours and "
    "ceiling use the measured counts. More in .summary, .overall, .paper, .comparisons, .genes and .definitions."
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Evaluation:
    """Scores of a prediction and of the baselines, made by :func:`evaluate`.

    Parameters
    ----------
    summary
        One row per section and predictor: means over genes, explained in ``definitions``. ``gene_partial`` is the
        headline; ``gene_partial_low`` and ``gene_partial_high`` are its interval over blocks of spots.
    overall
        One row per predictor: means over sections. The interval of ``gene_partial`` draws sections with replacement,
        and blocks of spots in each; ``difference_low`` and ``difference_high`` are the interval of the prediction minus
        the predictor, from the same draws. Sections of one patient say little about other patients, however narrow the
        interval.
    paper
        One row per section and predictor: the scores of the M2OST paper, in the units of the prediction.
    comparisons
        One row per section and predictor: mean difference of ``gene_partial`` between the prediction and the predictor,
        its interval, and p-values of a paired test, corrected for the number of predictors.
    genes
        One row per section, predictor and gene: ``partial`` with the ends ``partial_low`` and ``partial_high`` of its
        95 % interval over blocks of spots, ``residual``, ``pearson``, ``spearman``, ``morans_i`` and ``ssim``, beside
        ``observed_morans_i``, and the noise ceilings ``ceiling_partial`` and ``ceiling_residual``. NaN where a score is
        undefined. ``held_out`` is the section's relation to the training: another ``"patient"``, another ``"section"``
        of a training patient, ``"training"``, ``"context"`` (the network read counts of some spots), or ``"unknown"``.
    definitions
        Meaning of each score and each predictor.
    words
        Conclusions from the scores, as sentences.
    card
        Card of the network behind the prediction.
    sections
        Scores of the prediction per section.

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
    >>> genes = evaluation.genes.query("predictor == 'pred_ridge'")
    >>> genes[["gene", "held_out"]].head(2)
        gene held_out
    0  GENE1  patient
    1  GENE2  patient
    >>> evaluation.definitions["n_genes"]
    'Number of scored genes.'
    """

    summary: pd.DataFrame
    overall: pd.DataFrame
    paper: pd.DataFrame
    comparisons: pd.DataFrame
    genes: pd.DataFrame
    definitions: Mapping[str, str]
    words: tuple[str, ...]
    card: ModelCard
    sections: tuple[ScoredSection, ...]

    def reliability(self, *, unknown: HeldOut | None = None) -> tuple[Reliability, ...]:
        """Return scores per gene on held-out sections, for the checkpoint's card.

        Training sections and sections with context spots are left out. Several sections of one kind are averaged; the
        intervals then resample sections as well as blocks of spots.

        Parameters
        ----------
        unknown
            Relation of the sections to the training if the card does not record the training sections: other patients
            (``"patient"``) or other sections of training patients (``"section"``). By default such sections are left
            out.

        Returns
        -------
        tuple of Reliability
            One entry for other patients and one for other sections of training patients, as far as there are any.

        Raises
        ------
        ValueError
            If no section is held out.
        """
        unknown = check("unknown", unknown, HeldOut | None)
        kinds = {s.name: unknown if unknown and s.relation == "unknown" else s.relation for s in self.sections}
        genes = list(dict.fromkeys(self.genes["gene"]))
        found = [
            reliability_of(own, held_out, genes=genes, panel=self.card.genes)
            for held_out in get_args(HeldOut)
            if (own := [section for section in self.sections if kinds[section.name] == held_out])
        ]
        if not found:
            raise InvalidValueError(
                f"No section is known to be held out: {kinds}.",
                "evaluate sections that the network was not trained on",
                *(
                    [Advice("declare their relation to the training with {}", "unknown")]
                    if "unknown" in kinds.values()
                    else []
                ),
            )
        return tuple(found)

    def __str__(self) -> str:
        parts = [f"{title}\n{table.to_string(float_format=_number, na_rep='-')}" for title, table in self._tables()]
        return "\n\n".join([*parts, *(fill(sentence, 80) for sentence in self._sentences())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [
            f"<h4>{escape(title)}</h4>" + table.to_html(float_format=_number, na_rep="-")
            for title, table in self._tables()
        ]
        return "".join(parts) + "".join(f"<p>{escape(sentence)}</p>" for sentence in self._sentences())

    def _sentences(self) -> list[str]:
        """Sentences below the tables."""
        found = _has_score(self.summary)
        constant = [name for name in self.summary["predictor"].unique() if name not in set(found["predictor"])]
        left_out = f"Not shown, because a constant has no correlation: {', '.join(constant)}." if constant else ""
        return [*self.words, *([left_out] if left_out else []), _LEGEND]

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        """Title and headline per section and over all sections: one row per predictor, at most 80 columns wide."""
        tables = [
            (f"Section {name}, {rows['n_spots'].iloc[0]} spots, {rows['n_genes'].iloc[0]} genes", _headline(rows))
            for name, rows in self.summary.groupby("section", sort=False)
        ]
        if len(tables) > 1:
            tables.append(
                (f"Mean of {len(tables)} sections, intervals over sections and spots", _headline(self.overall))
            )
        return tables


def _headline(rows: pd.DataFrame) -> pd.DataFrame:
    table = _has_score(rows).set_index("predictor")
    bounds = zip(table["gene_partial_low"], table["gene_partial_high"], strict=True)
    table["interval"] = [f"{low:z.2f} to {high:z.2f}" if np.isfinite(low) else "-" for low, high in bounds]
    return table[list(_COLUMNS)].rename(columns=_COLUMNS).rename_axis(index=None)


def _has_score(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of predictors that vary over spots."""
    return rows[rows[["gene_partial", "gene_pearson"]].notna().any(axis=1)]


def _number(value: float) -> str:
    return f"{value:z.3f}"


def words_of(summary: pd.DataFrame, genes: pd.DataFrame, key: str, *, fitted: bool) -> tuple[str, ...]:
    """Return conclusions: correlations that come from sequencing depth, and baselines that are as good.

    Parameters
    ----------
    summary
        One row per section and predictor.
    genes
        One row per section, predictor and gene.
    key
        Key of the prediction.
    fitted
        Whether the prediction's units are relative to gene proportions of the training spots.
    """
    sentences = []
    for section, rows in summary.groupby("section", sort=False):
        table = rows.set_index("predictor")
        own = table.loc[key]
        if own["gene_pearson"] > DEPTH and not own["gene_partial"] > BEYOND:
            sentences.append(
                f"Section {section}: the correlation of {own['gene_pearson']:.2f} comes from sequencing depth. Given the log "
                f"total count of each spot, it is {own['gene_partial']:z.2f}; the log total count itself, without an image, "
                f"reaches {table.loc['log_total', 'gene_pearson']:.2f}."
            )
        depth = _size(genes[(genes["section"] == section) & (genes["predictor"] == "log_total")]["pearson"])
        if fitted and depth > DEPTH:
            sentences.append(
                f"Section {section}: genes have other shares of all counts than in the training spots, so measured values in "
                f"the units of the prediction follow the log total count (correlation of {depth:.2f} in size). Read partial "
                "and residual, not plain."
            )
        better = [
            name
            for name in ("position", "ridge")
            if name in table.index and table.loc[name, "gene_partial"] > own["gene_partial"] + TIE
        ]
        if better:
            sentences.append(f"Section {section}: {key!r} is not better than {' and '.join(map(repr, better))}.")
    return tuple(sentences)


def _size(scores: pd.Series) -> float:
    """Root mean square of defined scores; NaN without any."""
    return float(np.sqrt((scores**2).mean()))
