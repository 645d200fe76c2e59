"""Targets: counts in the units that a model predicts, and back."""

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
    from scipy.sparse import sparray, spmatrix

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
"""Panels of at least this many genes whose share of all counts differs by more than this factor have tables with other genes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Target(ShortRepr):
    """Targets of the spots of a table; returned by :func:`make_target`.

    Parameters
    ----------
    values
        ``(n_spots, n_genes)`` float32: targets in the units of ``spec``.
    genes
        Names of the panel's genes, in order.
    rows
        ``(n_spots,)`` int64: row of the table for each row of ``values``.
    counts
        ``(n_spots, n_genes)`` float32: raw counts of the panel.
    totals
        ``(n_spots,)`` float64: total count of each spot, over the genes of ``spec.over``.
    table_totals
        ``(n_spots,)`` float64: total count of each spot, over all genes of the table.
    dropped
        Names of the spots left out because of their zero total.
    spec
        Units of the targets.
    n_summed
        Number of genes in ``totals``.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> from anndata import AnnData
    >>> table = AnnData(np.array([[1, 3], [0, 0]]), var=pd.DataFrame(index=["ERBB2", "VIM"]))
    >>> target = stp.pp.make_target(table, ["VIM"], stp.specs.TargetSpec(transform="log1p", over="all"))
    >>> len(target), target.rows, target.dropped
    (1, array([0]), ('1',))
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
    """Turn the counts of a table into targets, without empty spots.

    Parameters
    ----------
    adata
        Table with raw counts; it is not changed.
    panel
        Genes to predict, in order: a list, matched by the defaults of :func:`align_panel`, or the result of
        :func:`align_panel`.
    spec
        Units of the target.
    layer
        Layer with the counts; by default ``adata.X``.
    min_counts
        Minimum panel counts per spot; spots with fewer are left out.
    tissue_only
        Whether to leave out spots off the tissue (``in_tissue`` in ``.obs`` is 0).
    label
        Name of the section, for messages.

    Returns
    -------
    Target
        Targets, without spots off the tissue and without spots whose total over the genes of ``spec.over`` is zero,
        whatever the transform. The numbers left out are logged.

    Raises
    ------
    KeyError
        If the layer does not exist, or panel genes are missing.
    ValueError
        If the table is empty, counts are negative, not whole or not finite, genes are duplicated, all spots are empty,
        ``panel`` was matched with another table, or ``spec`` lacks statistics of training spots or is relative to a sum
        over one gene.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> from anndata import AnnData
    >>> table = AnnData(np.array([[1, 3], [2, 2]]), var=pd.DataFrame(index=["ERBB2", "VIM"]))
    >>> stp.pp.make_target(table, ["VIM"], stp.specs.TargetSpec(transform="log1p_10k")).values.round(2)
    array([[8.92],
           [8.52]], dtype=float32)
    """
    check_table(adata)
    _check_spec(spec)
    if not adata.n_obs:
        raise InvalidValueError("The table has no spots.")
    match = panel if isinstance(panel, PanelMatch) else _match(adata, panel)
    if not match.var_names.equals(adata.var_names):
        raise InvalidValueError("The PanelMatch belongs to a table with other genes; call align_panel with this table.")
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
            error.found, *ways, "pass the result of st_predict.pp.align_panel, with other choices, as the panel"
        ) from None


def _check_spec(spec: TargetSpec) -> None:
    if not isinstance(spec, TargetSpec):
        raise InvalidTypeError(f"spec must be a TargetSpec, got {spec!r}.", "make one with st_predict.specs.TargetSpec")


def _report(dropped: tuple[str, ...], *, n_spots: int, spec: TargetSpec, min_counts: int, label: str | None) -> None:
    """Log the number of spots left out; refuse if all are."""
    genes = "all genes" if spec.over == "all" and not min_counts else "the panel"
    few = f"fewer than {min_counts} counts" if min_counts > 1 else "a sum of zero"
    if len(dropped) == n_spots:
        ways = (Advice("lower {}", "min_counts"),) if min_counts > 1 else ()
        raise InvalidValueError(
            f"All {n_spots} spots have {few} over {genes}.",
            *ways,
            Advice("name the layer with the raw counts with {}", "layer"),
            Advice("name the table with the counts with {}", "table_key"),
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
    counts: ArrayLike | sparray | spmatrix,
    spec: TargetSpec,
    *,
    panel_index: ArrayLike | None = None,
    totals: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Turn an array of counts into targets.

    Parameters
    ----------
    counts
        ``(n_spots, n_vars)``: raw counts, dense or sparse; not changed.
    spec
        Units of the target.
    panel_index
        ``(n_genes,)``: columns of ``counts`` to predict, in order; by default all. With ``spec.over="all"``, totals
        still include every column.
    totals
        ``(n_spots,)``: total counts over the genes of ``spec.over``; by default computed from ``counts``.

    Returns
    -------
    ndarray
        ``(n_spots, n_genes)``.

    Raises
    ------
    ValueError
        If counts are negative, not whole or not finite, the transform divides by a zero total, or ``spec`` lacks limits
        that it needs or is relative to a sum over one gene.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.specs.TargetSpec(transform="log1p_10k")
    >>> stp.pp.to_target([[1, 3], [2, 2]], spec).round(2)
    array([[7.82, 8.92],
           [8.52, 8.52]], dtype=float32)
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


_ROWS = 1024  # spots per step, to limit memory for float64 intermediates


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
            f"{len(empty)} of {len(rows)} spots have a total of zero (rows {empty[:5].tolist()}...), but "
            f"{spec.units} divides by it.",
            "leave them out, or use st_predict.pp.make_target, which does so",
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


_RELATIVE = {"log1p_total", "log10_total", "log1p_10k"}  # divide by a spot's total


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
    """Warn that totals may include other genes than in training: patients differ in single genes, not in a whole panel."""
    here, training = sums.sum() / total if total else 0, proportions.sum()
    if len(proportions) >= FEW_GENES and here > 0 and training > 0 and not 1 / OTHER < here / training < OTHER:
        logger.warning(
            "The panel has %.2g %% of all counts of this table, but %.2g %% in the training spots. If this table or the training "
            "tables lack genes of the assay, total counts are not comparable and the target is wrong: use tables with the "
            "same genes.",
            *(100 * here, 100 * training),
        )


def _proportions(spec: TargetSpec, n_genes: int) -> NDArray[np.float64]:
    if spec.reference is None:
        raise InvalidValueError(
            f"The target {spec.transform!r} lacks statistics of training spots: training sets them, and "
            "st_predict.pp.fit_target computes them from counts."
        )
    if len(spec.reference.proportions) != n_genes:
        raise InvalidValueError(
            f"The target has proportions of {len(spec.reference.proportions)} genes, for a panel of {n_genes}."
        )
    return np.asarray(spec.reference.proportions, dtype=np.float64)


def _scale(values: NDArray[np.float32], spec: TargetSpec) -> NDArray[np.float32]:
    """Scale each gene's limits to 0 and 1; values beyond the limits are not clipped."""
    if spec.scale == "none":
        return values
    low, span = _low_and_span(spec, values.shape[1])
    # genes that are constant over the training spots cannot be learned
    return np.divide(values - low, span, out=np.zeros(values.shape), where=span > 0).astype(np.float32)


def _low_and_span(spec: TargetSpec, n_genes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if spec.limits is None:
        raise InvalidValueError(
            f"The target has the scale {spec.scale!r}, but no limits: training sets them, and "
            "st_predict.pp.fit_limits computes them from unscaled targets."
        )
    low, high = np.array(spec.limits, dtype=np.float64)
    if len(low) != n_genes:
        raise InvalidValueError(f"The TargetSpec has limits of {len(low)} genes, for a panel of {n_genes}.")
    return low, high - low


def fit_target(counts: ArrayLike, totals: ArrayLike, spec: TargetSpec) -> TargetSpec:
    """Compute a target's statistics of the training spots: gene proportions, median total, clip and limits.

    Parameters
    ----------
    counts
        ``(n_spots, n_genes)``: raw counts of the panel in all training spots, and only in these.
    totals
        ``(n_spots,)``: total counts over the genes of ``spec.over``.
    spec
        Units of the target.

    Returns
    -------
    TargetSpec
        Units with statistics; unchanged if none are needed.

    Raises
    ------
    ValueError
        If arrays are empty, or shapes do not agree.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.specs.TargetSpec(transform="pearson_residuals")
    >>> spec = stp.pp.fit_target([[1, 3], [2, 2]], [100, 300], spec)
    >>> spec.reference.proportions
    (0.0075, 0.0125)
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
    """Compute the limits per gene for ``TargetSpec(scale="minmax", limits=...)``, which scales them to 0 and 1.

    Parameters
    ----------
    values
        ``(n_spots, n_genes)``: unscaled targets of the training spots, without validation spots.

    Returns
    -------
    tuple of tuple and tuple
        Minimum and maximum of each gene.

    Raises
    ------
    ValueError
        If ``values`` is empty.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.pp.fit_limits([[0.0, 1.0], [2.0, 5.0]])
    ((0.0, 1.0), (2.0, 5.0))
    """
    array = _numbers("values", values)
    if array.ndim != 2 or not len(array):
        raise InvalidValueError(f"Limits need (n_spots, n_genes) with at least one spot, got {array.shape}.")
    return tuple(array.min(axis=0).tolist()), tuple(array.max(axis=0).tolist())


def apply_limits(values: ArrayLike, spec: TargetSpec) -> NDArray[np.float32]:
    """Scale targets by the limits of ``spec`` (:func:`fit_limits`).

    Parameters
    ----------
    values
        ``(n_spots, n_genes)``: unscaled targets.
    spec
        Units of the result.

    Returns
    -------
    ndarray
        ``(n_spots, n_genes)``: each gene's limits become 0 and 1; values beyond the limits are not clipped. Unchanged
        if ``spec`` is not scaled.

    Raises
    ------
    ValueError
        If ``spec`` is scaled and lacks limits, or has limits of another number of genes.

    Examples
    --------
    >>> import st_predict as stp
    >>> limits = stp.pp.fit_limits([[0.0, 1.0], [2.0, 5.0]])
    >>> spec = stp.specs.TargetSpec(scale="minmax", limits=limits)
    >>> stp.pp.apply_limits([[1.0, 5.0]], spec)
    array([[0.5, 1. ]], dtype=float32)
    """
    _check_spec(spec)
    array = _numbers("values", values).astype(np.float32)
    if array.ndim != 2:
        raise InvalidValueError(f"values must be (n_spots, n_genes), got the shape {array.shape}.")
    return _scale(array, spec)


def from_target(
    target: ArrayLike, spec: TargetSpec, totals: ArrayLike, *, n_summed: int | None = None
) -> NDArray[np.float64]:
    """Turn targets or predictions back into counts: the inverse of :func:`to_target`.

    Parameters
    ----------
    target
        ``(n_spots, n_genes)``: targets in the units of ``spec``.
    spec
        Units of ``target``.
    totals
        ``(n_spots,)``: total counts of the spots, measured or assumed.
    n_summed
        Number of genes in the total; required for ``log_proportion`` over all genes.

    Returns
    -------
    ndarray
        ``(n_spots, n_genes)``: counts, not rounded; for predictions these are expected counts.

    Raises
    ------
    ValueError
        If shapes do not agree, a total is negative or not finite, ``n_summed`` is required and missing, or ``spec``
        lacks limits that it needs.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.specs.TargetSpec(transform="log1p_10k")
    >>> target = stp.pp.to_target([[1, 3], [2, 2]], spec)
    >>> stp.pp.from_target(target, spec, totals=[4, 4]).round(2)
    array([[1., 3.],
           [2., 2.]])
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
    """Turn predictions into ``ln(1 + counts per 10,000)``, at the training spots' median total.

    Parameters
    ----------
    values
        ``(n_spots, n_genes)``: values in the units of ``spec``.
    spec
        Units of ``values`` (:attr:`st_predict.specs.TargetSpec.gives_rates`).

    Returns
    -------
    ndarray
        ``(n_spots, n_genes)``, like scanpy's ``normalize_total(target_sum=1e4)`` and ``log1p``; negative rates become
        0.

    Raises
    ------
    ValueError
        If the units cannot be converted to rates.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.specs.TargetSpec(transform="pearson_residuals")
    >>> spec = stp.pp.fit_target([[1, 3], [2, 2]], [100, 300], spec)
    >>> stp.pp.to_log1p_10k([[0.0, 0.0]], spec).round(1)
    array([[4.3, 4.8]], dtype=float32)
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
