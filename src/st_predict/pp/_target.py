"""Counts to the values that a model predicts, and back."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._containers import check_table
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, StPredictError
from st_predict._on_tissue import on_tissue
from st_predict._reprs import ShortRepr
from st_predict._validated import Count, Flag, Natural, Text, check
from st_predict.pp._counts import check_counts, dense, read_counts
from st_predict.pp._panel import PanelMatch, align_panel
from st_predict.pp._residuals import pearson_residuals
from st_predict.specs import FITTED, Reference, TargetSpec, refuse_constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Target",
    "apply_limits",
    "fit_limits",
    "fit_target",
    "from_target",
    "make_target",
    "to_log1p_10k",
    "to_target",
]

logger = logging.getLogger(__name__)

FEW_GENES, OTHER = 20, 3.0
"""The share of a panel of at least so many genes in all counts does not differ by such a factor between tissues of a kind."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Target(ShortRepr):
    """What the spots of a table have to be predicted as.

    Parameters
    ----------
    values
        ``(n_spots, n_genes)`` float32, in the units of ``spec``.
    genes
        The ``n_genes`` names of the panel, in order.
    rows
        ``(n_spots,)`` int64: row of the table that each row of ``values`` comes from.
    counts
        ``(n_spots, n_genes)`` float32: raw counts of the panel.
    totals
        ``(n_spots,)`` float64: sum of counts of each spot, over the genes that ``spec.over`` says.
    table_totals
        ``(n_spots,)`` float64: sum of counts of each spot, over all genes of the table.
    dropped
        Names of the spots that were left out because their sum is zero.
    spec
        Units.
    n_summed
        Number of genes that ``totals`` runs over.
    """

    values: NDArray[np.float32]
    genes: tuple[str, ...]
    rows: NDArray[np.int64]
    counts: NDArray[np.float32]
    totals: NDArray[np.float64]
    table_totals: NDArray[np.float64]
    dropped: tuple[str, ...]
    spec: TargetSpec
    n_summed: int

    def __len__(self) -> int:
        return len(self.rows)


def make_target(
    adata: AnnData,
    panel: Sequence[str] | PanelMatch,
    spec: TargetSpec,
    *,
    layer: str | None = None,
    min_counts: int = 0,
    tissue_only: bool = True,
    label: str | None = None,
) -> Target:
    """Turn the counts of a table into targets; spots without a count are left out.

    Parameters
    ----------
    adata
        Table with raw counts; it is not changed.
    panel
        Genes to predict, in order. A list is matched as :func:`align_panel` does by default; for other choices pass
        what :func:`align_panel` returned.
    spec
        Units of the target.
    layer
        Layer with the counts; by default ``adata.X``.
    min_counts
        Least sum of the counts of the panel; spots with fewer are left out.
    tissue_only
        Whether to leave out spots whose ``in_tissue`` in ``.obs`` is 0.
    label
        Name of the section, for messages.

    Returns
    -------
    The target. Spots beside the tissue are left out; how many is logged. Spots whose sum, over the genes that ``spec.over`` says, is zero are dropped whatever the transform:
    nothing was measured there. How many is logged.

    Raises
    ------
    KeyError
        If the layer does not exist, or panel genes are missing.
    ValueError
        If the table is empty, counts are negative, not whole or not finite, genes are duplicated, no spot has a count,
        ``panel`` was matched with another table, ``spec`` lacks what training has to set, or is relative to a sum over one
        gene.
    """
    check_table(adata)
    _check_spec(spec)
    if not adata.n_obs:
        raise InvalidValueError("The table has no spots.")
    match = panel if isinstance(panel, PanelMatch) else _match(adata, panel)
    if not match.var_names.equals(adata.var_names):
        raise InvalidValueError("This PanelMatch was made with a table of other genes; call align_panel on this table.")
    counts = read_counts(adata, layer=layer)
    panel_counts = match.take(counts)
    totals, n_summed = _totals(counts, panel_counts, spec)
    refuse_constant(spec, n_summed)
    label = check("label", label, Text | None)
    on = on_tissue(adata.obs, only=check("tissue_only", tissue_only, Flag), label=label or "")
    enough = on & (totals > 0) & (panel_counts.sum(axis=1) >= min_counts)
    rows, dropped = np.flatnonzero(enough), tuple(adata.obs_names[on & ~enough])
    least = check("min_counts", min_counts, Natural)
    _report(dropped, n_spots=int(on.sum()), spec=spec, min_counts=least, label=label)
    values = _transform(panel_counts, totals, spec, n_summed=n_summed, rows=rows)
    return Target(
        values=values,
        genes=match.matched,
        rows=rows,
        counts=panel_counts[rows].astype(np.float32),
        totals=totals[rows],
        table_totals=_sums(counts)[rows],
        dropped=dropped,
        spec=spec,
        n_summed=n_summed,
    )


def _match(adata: AnnData, panel: Sequence[str]) -> PanelMatch:
    try:
        return align_panel(adata, panel)
    except StPredictError as error:
        if not error.arguments:
            raise
        ways = error.without(error.arguments).advice
        raise type(error)(
            error.found, *ways, "pass, as the panel, what st_predict.pp.align_panel returns for other choices"
        ) from None


def _check_spec(spec: TargetSpec) -> None:
    if not isinstance(spec, TargetSpec):
        raise InvalidTypeError(f"spec must be a TargetSpec, got {spec!r}.", "make one with st_predict.specs.TargetSpec")


def _report(dropped: tuple[str, ...], *, n_spots: int, spec: TargetSpec, min_counts: int, label: str | None) -> None:
    """Say how many spots were left out; refuse to leave out all."""
    genes = "all genes" if spec.over == "all" and not min_counts else "the panel"
    few = f"fewer than {min_counts} counts" if min_counts > 1 else "a sum of zero"
    if len(dropped) == n_spots:
        ways = (Advice("take spots with fewer counts with {}", "min_counts"),) if min_counts > 1 else ()
        raise InvalidValueError(
            f"All {n_spots} spots have {few} over {genes}.",
            *ways,
            Advice("name the layer with the raw counts with {}", "layer"),
            Advice("name the table of the counts with {}", "table_key"),
        )
    section = "" if label is None else f"{label}: "
    if 2 * len(dropped) > n_spots:
        way = f" (min_counts={min_counts}; fewer keeps more spots)" if min_counts > 1 else ""
        logger.warning(
            "%sMore than half of the spots are left out: %d of %d have %s over %s%s.",
            *(section, len(dropped), n_spots, few, genes, way),
        )
    elif dropped:
        logger.warning("%sDropped %d of %d spots with %s over %s.", section, len(dropped), n_spots, few, genes)


def to_target(
    counts: Any, spec: TargetSpec, *, panel_index: ArrayLike | None = None, totals: ArrayLike | None = None
) -> NDArray[np.float32]:
    """Turn counts into targets.

    Parameters
    ----------
    counts
        Raw counts, ``(n_spots, n_vars)``, dense or sparse; not changed.
    spec
        Units of the target.
    panel_index
        ``(n_genes,)`` columns of ``counts`` to predict, in order; by default all of them. With ``spec.over="all"`` the
        sum of a spot still runs over every column.
    totals
        ``(n_spots,)`` sums of counts over the genes that ``spec.over`` says; by default those of ``counts``.

    Returns
    -------
    ``(n_spots, n_genes)``.

    Raises
    ------
    ValueError
        If counts are negative, not whole or not finite, a spot has a sum of zero where one divides by it, or ``spec``
        lacks limits that it needs, or is relative to a sum over one gene.
    """
    _check_spec(spec)
    counts = check_counts(counts)
    panel_counts = dense(counts if panel_index is None else counts[:, _columns(panel_index, counts.shape[1])])
    sums, n_summed = _totals(counts, panel_counts, spec)
    if totals is not None:
        sums = _numbers("totals", totals)
        if sums.shape != panel_counts.shape[:1]:
            raise InvalidValueError(f"totals must be ({len(panel_counts)},), got the shape {sums.shape}.")
    else:
        refuse_constant(spec, n_summed)
    return _transform(panel_counts, sums, spec, n_summed=n_summed, rows=np.arange(len(sums)))


def _numbers(argument: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{argument} must be an array of numbers, got {type(values).__name__}.") from error


def _columns(panel_index: ArrayLike, n_vars: int) -> NDArray[np.int64]:
    columns = _numbers("panel_index", panel_index)
    if columns.ndim != 1 or (columns != np.rint(columns)).any() or not ((columns >= 0) & (columns < n_vars)).all():
        raise InvalidValueError(f"panel_index must be whole numbers from 0 to {n_vars - 1}, got {panel_index!r:.200}.")
    return columns.astype(np.int64)


def _totals(counts: Any, panel_counts: NDArray[np.float64], spec: TargetSpec) -> tuple[NDArray[np.float64], int]:
    summed = panel_counts if spec.over == "panel" else counts
    return _sums(summed), summed.shape[1]


def _sums(counts: Any) -> NDArray[np.float64]:
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


_ROWS = 1024  # spots whose values are computed at a time: intermediate results are float64


def _transform(
    panel_counts: NDArray[np.float64],
    totals: NDArray[np.float64],
    spec: TargetSpec,
    *,
    n_summed: int,
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    empty = rows[totals[rows] == 0]
    if spec.transform in _RELATIVE and len(empty):
        raise InvalidValueError(
            f"{len(empty)} of {len(rows)} spots have a sum of zero (rows {empty[:5].tolist()}...), which "
            f"{spec.units} cannot divide by.",
            "leave them out, as st_predict.pp.make_target does",
        )
    if spec.transform in FITTED:
        _warn_of_other_totals(
            panel_counts[rows].sum(axis=0), totals[rows].sum(), _proportions(spec, panel_counts.shape[1])
        )
    values = np.empty((len(rows), panel_counts.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        unscaled = _unscaled(panel_counts[some], totals[some], spec, n_summed=n_summed)
        values[start : start + _ROWS] = _scale(unscaled.astype(np.float32), spec)
    return values


_RELATIVE = {"log1p_total", "log10_total", "log1p_10k"}  # divide by the sum of a spot


def _unscaled(
    counts: NDArray[np.float64], totals: NDArray[np.float64], spec: TargetSpec, *, n_summed: int
) -> NDArray[np.float64]:
    if spec.transform == "counts":
        return counts
    if spec.transform == "log1p":
        return np.log1p(counts)
    if spec.transform == "log_proportion":
        return np.log((1 + counts) / (n_summed + totals[:, None]))
    if spec.transform in FITTED:
        return _relative_to_training(counts, totals, spec)
    scaled = spec.total * counts / totals[:, None]
    return np.log10(1 + scaled) if spec.transform == "log10_total" else np.log1p(scaled)


def _relative_to_training(
    counts: NDArray[np.float64], totals: NDArray[np.float64], spec: TargetSpec
) -> NDArray[np.float64]:
    proportions = _proportions(spec, counts.shape[1])
    if spec.transform == "log_fold":
        return np.log((counts + 1) / (totals[:, None] * proportions + 1))
    return pearson_residuals(counts, totals, proportions, theta=spec.theta, clip=spec.clip)


def _warn_of_other_totals(sums: NDArray[np.float64], total: float, proportions: NDArray[np.float64]) -> None:
    """Say that totals may run over other genes than in training: patients differ in single genes, not in a whole panel."""
    here, training = sums.sum() / total if total else 0, proportions.sum()
    if len(proportions) >= FEW_GENES and here > 0 and training > 0 and not 1 / OTHER < here / training < OTHER:
        logger.warning(
            "The panel has %.2g %% of all counts of this table, and had %.2g %% in the training spots. If this table lacks genes "
            "of the assay, or training tables did, total counts are not comparable and the target is wrong: use tables with "
            "the same genes.",
            *(100 * here, 100 * training),
        )


def _proportions(spec: TargetSpec, n_genes: int) -> NDArray[np.float64]:
    if spec.reference is None:
        raise InvalidValueError(
            f"The target {spec.transform!r} has no statistics of training spots: training sets them, and "
            "st_predict.pp.fit_target computes them from counts."
        )
    if len(spec.reference.proportions) != n_genes:
        raise InvalidValueError(
            f"The target has proportions of {len(spec.reference.proportions)} genes, for a panel of {n_genes}."
        )
    return np.asarray(spec.reference.proportions, dtype=np.float64)


def _scale(values: NDArray[np.float32], spec: TargetSpec) -> NDArray[np.float32]:
    """Bring the limits of each gene to 0 and 1; values outside of them stay outside."""
    if spec.scale == "none":
        return values
    low, span = _low_and_span(spec, values.shape[1])
    # of a gene that does not vary among the training spots, nothing can be learned
    return np.divide(values - low, span, out=np.zeros(values.shape), where=span > 0).astype(np.float32)


def _low_and_span(spec: TargetSpec, n_genes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if spec.limits is None:
        raise InvalidValueError(
            f"The scale of the target is {spec.scale!r}, and it has no limits: training sets them, and "
            "st_predict.pp.fit_limits computes them from targets that are not scaled."
        )
    low, high = np.array(spec.limits, dtype=np.float64)
    if len(low) != n_genes:
        raise InvalidValueError(f"The TargetSpec has limits of {len(low)} genes, for a panel of {n_genes}.")
    return low, high - low


def fit_target(counts: ArrayLike, totals: ArrayLike, spec: TargetSpec) -> TargetSpec:
    """Find what a target has to know of the training spots: gene proportions, median total, clip and limits.

    Parameters
    ----------
    counts
        ``(n_spots, n_genes)`` raw counts of the panel in all training spots, and in no others.
    totals
        ``(n_spots,)`` sums of counts over the genes that ``spec.over`` says.
    spec
        Units of the target.

    Returns
    -------
    The units with their statistics; unchanged if they need none.

    Raises
    ------
    ValueError
        If there is no spot, or shapes do not agree.
    """
    _check_spec(spec)
    array, sums = _numbers("counts", counts), _numbers("totals", totals)
    if array.ndim != 2 or sums.shape != array.shape[:1] or not len(array):
        raise InvalidValueError(f"Expected (n_spots, n_genes) and (n_spots,), got {array.shape} and {sums.shape}.")
    if spec.transform in FITTED:
        reference = Reference(
            proportions=tuple((array.sum(axis=0) / sums.sum()).tolist()), median_total=float(np.median(sums))
        )
        clip = math.sqrt(len(array)) if spec.transform == "pearson_residuals" and spec.clip is None else spec.clip
        spec = replace(spec, reference=reference, clip=clip)
    if spec.scale == "none":
        return spec
    plain = replace(spec, scale="none", limits=None)
    values = _transform(array, sums, plain, n_summed=array.shape[1], rows=np.flatnonzero(sums > 0))
    return replace(spec, limits=fit_limits(values))


def fit_limits(values: ArrayLike) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find the limits that ``TargetSpec(scale="minmax", limits=...)`` scales to 0 and 1.

    Parameters
    ----------
    values
        ``(n_spots, n_genes)`` targets of the training spots, not scaled. Those of validation are not to be among them.

    Returns
    -------
    Least and largest value of each gene.

    Raises
    ------
    ValueError
        If there is no spot.
    """
    array = _numbers("values", values)
    if array.ndim != 2 or not len(array):
        raise InvalidValueError(f"Limits need (n_spots, n_genes) with at least one spot, got {array.shape}.")
    return tuple(array.min(axis=0).tolist()), tuple(array.max(axis=0).tolist())


def apply_limits(values: ArrayLike, spec: TargetSpec) -> NDArray[np.float32]:
    """Scale targets as ``spec`` says, by the limits of :func:`fit_limits`.

    Parameters
    ----------
    values
        ``(n_spots, n_genes)`` targets that are not scaled.
    spec
        Units of the result.

    Returns
    -------
    ``(n_spots, n_genes)``: the limits of each gene become 0 and 1, values outside of them stay outside. Unchanged if
    ``spec`` is not scaled.

    Raises
    ------
    ValueError
        If ``spec`` is scaled and has no limits, or those of another number of genes.
    """
    _check_spec(spec)
    array = _numbers("values", values).astype(np.float32)
    if array.ndim != 2:
        raise InvalidValueError(f"values must be (n_spots, n_genes), got the shape {array.shape}.")
    return _scale(array, spec)


def from_target(
    target: ArrayLike, spec: TargetSpec, totals: ArrayLike, *, n_summed: int | None = None
) -> NDArray[np.float64]:
    """Turn targets, or predictions in the same units, back into counts: the inverse of :func:`to_target`.

    Parameters
    ----------
    target
        ``(n_spots, n_genes)`` in the units of ``spec``.
    spec
        Units of ``target``.
    totals
        ``(n_spots,)`` sums of counts that the spots have or are to have.
    n_summed
        Number of genes that the sum runs over; needed for ``log_proportion`` over all genes.

    Returns
    -------
    ``(n_spots, n_genes)``; not rounded, so a prediction gives an expected count.

    Raises
    ------
    ValueError
        If shapes do not agree, a total is negative or not finite, ``n_summed`` is needed and was not given, or ``spec``
        lacks limits that it needs.
    """
    _check_spec(spec)
    values, sums = _numbers("target", target), _numbers("totals", totals)
    n_summed = check("n_summed", n_summed, Count | None)
    if values.ndim != 2 or sums.shape != values.shape[:1]:
        raise InvalidValueError(f"Expected (n_spots, n_genes) and (n_spots,), got {values.shape} and {sums.shape}.")
    if not (np.isfinite(sums) & (sums >= 0)).all():
        raise InvalidValueError("totals must be finite and not negative.")
    if spec.scale != "none":
        low, span = _low_and_span(spec, values.shape[1])
        values = low + span * values
    return _counts_of(values, sums, spec, n_summed=n_summed)


def to_log1p_10k(values: ArrayLike, spec: TargetSpec) -> NDArray[np.float32]:
    """Turn predictions into ``ln(1 + counts per 10,000)``, for a spot with the median total of training.

    Parameters
    ----------
    values
        ``(n_spots, n_genes)`` in the units of ``spec``.
    spec
        Units of ``values`` (:attr:`st_predict.specs.TargetSpec.gives_rates`).

    Returns
    -------
    ``(n_spots, n_genes)``, as scanpy's ``normalize_total(target_sum=1e4)`` and ``log1p`` give it; rates below 0 are 0.

    Raises
    ------
    ValueError
        If values of these units are not rates.
    """
    _check_spec(spec)
    if not spec.gives_rates:
        raise InvalidValueError(f"Values in the units {spec.units} cannot be turned into rates.")
    array = _numbers("values", values)
    total = spec.reference.median_total if spec.reference is not None else spec.total
    counts = from_target(array, spec, np.full(len(array), total))
    return np.log1p(1e4 * np.maximum(counts, 0) / total).astype(np.float32)


def _counts_of(
    values: NDArray[np.float64], sums: NDArray[np.float64], spec: TargetSpec, *, n_summed: int | None
) -> NDArray[np.float64]:
    if spec.transform == "counts":
        return values.copy()
    if spec.transform == "log1p":
        return np.expm1(values)
    if spec.transform == "log_proportion":
        return np.exp(values) * (_n_summed(n_summed, values.shape[1], spec) + sums[:, None]) - 1
    if spec.transform in FITTED:
        mean = sums[:, None] * _proportions(spec, values.shape[1])
        if spec.transform == "log_fold":
            return np.exp(values) * (mean + 1) - 1
        return mean + values * np.sqrt(mean + mean**2 / spec.theta)
    scaled = 10**values - 1 if spec.transform == "log10_total" else np.expm1(values)
    return scaled * sums[:, None] / spec.total


def _n_summed(n_summed: int | None, n_genes: int, spec: TargetSpec) -> int:
    if n_summed is not None:
        return n_summed
    if spec.over == "all":
        raise InvalidValueError(
            f"Targets in units of {spec.units!r} depend on the number of genes in the sum.",
            Advice("give it with {} (Target.n_summed)", "n_summed"),
        )
    return n_genes
