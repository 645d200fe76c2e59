"""Predicted values of a section, and the observed ones in the same units."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array, issparse

from st_predict import get, metrics, pp
from st_predict._errors import Advice, InvalidValueError, NotFoundError, StPredictError
from st_predict._keys import Keys
from st_predict._on_tissue import beside_tissue
from st_predict._record import Record
from st_predict._rows import rows_in
from st_predict._validated import Text, check
from st_predict.pl._view import read_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._where import GeneMatching, Where
    from st_predict.pl._view import View
    from st_predict.pp import PanelMatch
    from st_predict.specs import ModelCard, Reliability, TargetSpec

__all__ = ["Values", "read_map", "read_values"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Expression of the panel over the spots of a section.

    Parameters
    ----------
    genes
        The panel.
    predicted
        ``(n_spots, n_genes)``: predictions, NaN where a spot could not be predicted.
    observed
        ``(n_spots, n_genes)``: measured values in the same units; NaN where unmeasured, and everywhere if the table
        lacks panel genes that the units need.
    spec
        Units of both.
    std
        ``(n_spots, n_genes)``: standard deviations of the prediction, if it has any.
    counts
        ``(n_spots, n_genes)``: raw counts; NaN where ``observed`` is.
    totals
        ``(n_spots,)``: sums of counts over all genes of the table; NaN without counts.
    on_tissue
        ``(n_spots,)``: false for spots off the tissue, which correlations leave out.
    reliability
        Scores of each gene on held-out sections, if the card has them.
    """

    genes: pd.Index
    predicted: NDArray[np.float32]
    observed: NDArray[np.float32]
    spec: TargetSpec
    std: NDArray[np.float32] | None
    counts: NDArray[np.float32]
    totals: NDArray[np.float64]
    on_tissue: NDArray[np.bool_]
    reliability: Reliability | None

    @property
    def is_observed(self) -> NDArray[np.bool_]:
        """``(n_genes,)``, True for genes measured in at least one spot."""
        return np.asarray(np.isfinite(self.observed).any(axis=0))

    def columns(self, genes: Sequence[str]) -> list[int]:
        """Indices of genes in the panel."""
        if not genes:
            raise InvalidValueError("The list of genes is empty.", Advice("name at least one with {}", "genes"))
        unknown = [gene for gene in genes if gene not in self.genes]
        if unknown:
            raise NotFoundError(
                f"No gene {unknown[0]!r} in the panel of {len(self.genes)} genes, which begins with {list(self.genes[:5])}.",
                *_suggest(unknown[0], list(self.genes)),
            )
        return [int(self.genes.get_loc(gene)) for gene in genes]

    def pearson(self, column: int) -> float:
        """Correlation of a gene over the spots on tissue that have both values; NaN if it is not defined."""
        pair = np.column_stack([self.predicted[:, column], self.observed[:, column]])
        pair = pair[np.isfinite(pair).all(axis=1) & self.on_tissue]
        if len(pair) < 2:
            return float("nan")
        return float(metrics.pearson(pair[:, :1], pair[:, 1:], axis=0)[0])

    def partial(self, column: int) -> float:
        """Partial correlation of a gene given log total count, over all spots on tissue with counts; NaN if not defined.

        :func:`st_predict.tl.evaluate` leaves out spots with few counts, so that its value can differ.
        """
        both = np.isfinite(self.predicted[:, column]) & np.isfinite(self.counts[:, column]) & (self.totals > 0)
        both &= self.on_tissue
        if not both.any():
            return float("nan")
        counts, totals = self.counts[both][:, [column]].astype(np.float64), self.totals[both]
        reference, theta = self.spec.reference, pp.THETA
        shares = counts.sum(axis=0) / totals.sum()
        if reference is not None:
            shares, theta = np.asarray(reference.proportions)[[column]], self.spec.theta
        residuals = pp.pearson_residuals(counts, totals, shares, theta=theta, clip=np.sqrt(len(counts)))
        covariates = metrics.depth_covariates(totals)
        return float(metrics.partial_pearson(self.predicted[both][:, [column]], residuals, covariates)[0])


def _suggest(gene: str, genes: Sequence[str]) -> list[str]:
    upper = {name.upper(): name for name in genes}
    close = [upper[name] for name in difflib.get_close_matches(gene.upper(), upper, n=5, cutoff=0.6)]
    return [f"take one of {close}"] if close else []


def read_map(sdata: SpatialData, key: str, where: Where, *, margin: float | None) -> tuple[View, Values]:
    """Read the view of a section, and its predicted and observed values."""
    section = read_section(sdata, key, where, margin=margin)
    return section, read_values(sdata, key, where, rows=section.rows)


def read_values(sdata: SpatialData, key: str, where: Where, *, rows: NDArray[np.int64]) -> Values:
    """Read a prediction and measured values, for some of its rows, in their order.

    Units that depend on the panel's sum or the number of genes cannot be computed from a table that lacks panel genes.
    Then measured values are NaN, and a warning is logged.

    Parameters
    ----------
    sdata
        Object with the prediction, and counts in the spots' table if there are any.
    key
        Key of the prediction.
    where
        Table of the spots, layer of the counts and gene matching.
    rows
        Rows of the prediction: spots of one section.
    """
    table_key = where.table_key
    try:
        prediction = get.stored_prediction(sdata, key, table_key=table_key)[rows]
    except StPredictError as error:
        raise error.without({"genes"}) from error  # the argument genes of plots is something else
    card = _card(prediction, key)
    spec = card.target
    holder = get.table_of(sdata, key, table_key=table_key)
    counted = get.spots_table_of(sdata, holder, table_key=table_key)
    observed, counts = (np.full(prediction.shape, np.nan, dtype=np.float32) for _ in range(2))
    totals = np.full(prediction.n_obs, np.nan)
    if counted is not None:
        _fill_observed(
            observed, counts, totals, prediction=prediction, table=sdata.tables[counted], spec=spec, where=where
        )
    return Values(
        genes=prediction.var_names,
        predicted=np.asarray(prediction.X, np.float32),
        observed=observed,
        spec=spec,
        std=np.asarray(prediction.layers[Keys.STD]) if Keys.STD in prediction.layers else None,
        counts=counts,
        totals=totals,
        on_tissue=~_beside(prediction, sdata.tables[counted or holder]),
        reliability=card.reliability_on() if tuple(prediction.var_names) == card.genes else None,
    )


def _beside(prediction: AnnData, table: AnnData) -> NDArray[np.bool_]:
    """Spots of a prediction that are off the tissue by the table with the counts."""
    rows = rows_in(prediction, table)
    return (rows >= 0) & beside_tissue(table.obs)[rows]


def _card(prediction: AnnData, key: str) -> ModelCard:
    record = Record.read(prediction.uns, key)
    if record is None or record.card is None:
        raise InvalidValueError(
            f"The units of {key!r} are unknown: .uns[{Keys.UNS!r}] lacks the card of its model.",
            'concatenate with anndata.concat(..., uns_merge="same") to keep it',
            "predict again",
        )
    return record.card


def _fill_observed(
    observed: NDArray[np.float32],
    panel_counts: NDArray[np.float32],
    totals: NDArray[np.float64],
    *,
    prediction: AnnData,
    table: AnnData,
    spec: TargetSpec,
    where: Where,
) -> None:
    """Write target, count and total count of the measured spots and genes."""
    counts = _counts(table, where.layer)
    if counts is None:
        return
    counts = counts.compute(scheduler="synchronous") if hasattr(counts, "compute") else counts
    match = _match_genes(table, prediction.var_names, where.genes)
    if match is None:
        return
    counts, columns = _join_duplicates(counts, match), np.full(prediction.n_vars, -1)
    columns[prediction.var_names.get_indexer(list(match.matched))] = [of_gene[0] for of_gene in match.columns]
    there = columns >= 0
    if not _are_comparable(there, spec):
        return
    counts = counts[rows_in(prediction, table)]
    summed = counts[:, columns[there]] if spec.over == "panel" else counts
    spec = spec.only(np.flatnonzero(there).tolist())
    # spots without counts count as unmeasured
    measured = np.asarray(summed.sum(axis=1)).ravel() > 0
    observed[np.ix_(measured, there)] = pp.to_target(counts[measured], spec, panel_index=columns[there])
    of_panel = counts[measured][:, columns[there]]
    panel_counts[np.ix_(measured, there)] = of_panel.toarray() if issparse(of_panel) else of_panel
    totals[measured] = np.asarray(counts.sum(axis=1)).ravel()[measured]


def _are_comparable(there: NDArray[np.bool_], spec: TargetSpec) -> bool:
    """Return whether the genes found can have the prediction's units; warn if some are missing."""
    n_missing, n_panel = int((~there).sum()), len(there)
    if n_panel == 1 and spec.is_relative and spec.over == "panel":
        logger.warning(
            "The units of the prediction, %s, are constant for a single gene: only the prediction is drawn.", spec.units
        )
        return False
    if not n_missing:
        return True
    if spec.transform == "log_proportion" or (spec.transform not in {"counts", "log1p"} and spec.over == "panel"):
        logger.warning(
            "%d of %d panel genes are not in the table. The units of the prediction, %s, need all of them, so observed "
            "values would not be comparable: only the prediction is drawn.",
            n_missing,
            n_panel,
            spec.units,
        )
        return False
    logger.warning("%d of %d panel genes are not in the table; they are not drawn as observed.", n_missing, n_panel)
    return True


def _counts(table: AnnData, layer: str | None) -> Any:
    if layer is None:
        return table.X
    if check("layer", layer, Text) not in table.layers:
        raise NotFoundError(
            f"No layer {layer!r}; the table has {sorted(filter(None, table.layers))}.",
            Advice("leave out {} to take X", "layer"),
        )
    return table.layers[layer]


def _match_genes(table: AnnData, panel: pd.Index, genes: GeneMatching) -> PanelMatch | None:
    """Match the panel to the table; ``None`` if it has none of the genes."""
    if table.n_vars == 0:
        return None
    try:
        return pp.align_panel(
            table,
            list(panel),
            id_column=genes.id_column,
            duplicates=genes.duplicates,
            missing="drop",
            ignore_case=genes.ignore_case,
            aliases=genes.aliases,
        )
    except KeyError:
        if genes.id_column is not None and genes.id_column not in table.var:
            raise
        return None


def _join_duplicates(counts: Any, match: PanelMatch) -> Any:
    """Return counts with all columns of a gene summed into its first column, and zeros in the others."""
    target = np.arange(counts.shape[1])
    for first, *others in match.columns:
        target[others] = first
    if (target == np.arange(len(target))).all():
        return counts
    joining = csr_array((np.ones(len(target), dtype=np.float64), (np.arange(len(target)), target)))
    return csr_array(counts) @ joining
