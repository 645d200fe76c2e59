"""Split-conformal prediction intervals per gene, on arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from st_predict._errors import Advice, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict.specs import TargetSpec

__all__ = ["Intervals"]

_MIN_SD = 0.1  # minimum standard deviation, relative to the root mean square over the gene's spots


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Intervals:
    """Prediction intervals: the prediction plus and minus ``quantile * max(sd, floor)``.

    All arrays are ``(n_spots, n_genes)``. ``sd`` is ``None`` for intervals of one width per gene, where ``floor`` is 1.

    Parameters
    ----------
    genes
        Columns ``quantile`` and ``floor``, one row per gene.
    units
        Units of the predictions; bounds are limited to their range.
    """

    genes: pd.DataFrame
    units: TargetSpec

    @classmethod
    def fit(
        cls,
        target: NDArray[np.float32],
        mean: NDArray[np.float32],
        sd: NDArray[np.float32] | None,
        *,
        coverage: float,
        genes: Sequence[str],
        units: TargetSpec,
    ) -> Intervals:
        """Calibrate on spots with measured values ``target`` and predictions ``mean``.

        Raises
        ------
        ValueError
            If there are too few spots for this coverage.
        """
        rank = _rank(len(target), coverage)
        floor = _floor(sd, len(genes))
        errors = np.abs(target.astype(np.float64) - mean) / _spread(sd, floor)
        quantile = np.partition(errors, rank - 1, axis=0)[rank - 1]
        table = pd.DataFrame({"quantile": quantile, "floor": floor}, index=pd.Index(genes, name="gene"))
        return cls(genes=table, units=units)

    def bounds(
        self, mean: NDArray[np.float32], sd: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return lower and upper bounds; NaN where the prediction is NaN."""
        half = self.genes["quantile"].to_numpy() * _spread(sd, self.genes["floor"].to_numpy())
        # rounded outwards: with small counts, many measured values lie exactly on a bound
        lower = np.nextafter((mean - half).astype(np.float32), np.float32(-np.inf))
        upper = np.nextafter((mean + half).astype(np.float32), np.float32(np.inf))
        least, largest = _range(self.units)
        return np.clip(lower, least, largest), np.clip(upper, least, largest)

    def coverage(
        self, target: NDArray[np.float32], mean: NDArray[np.float32], sd: NDArray[np.float32] | None
    ) -> pd.DataFrame:
        """Return one row per gene: ``coverage``, the share of ``target`` inside the bounds, and the mean ``width``.

        Both are NaN for a gene without intervals.
        """
        lower, upper = self.bounds(mean, sd)
        inside = ((lower <= target) & (target <= upper)).mean(axis=0)
        width = (upper - lower).mean(axis=0, dtype=np.float64)
        return pd.DataFrame(
            {"coverage": np.where(np.isnan(width), np.nan, inside), "width": width}, index=self.genes.index
        )


def _rank(n_spots: int, coverage: float) -> int:
    """Rank of the calibration error that is the quantile, from 1: ``ceil((n_spots + 1) * coverage)``."""
    share = Fraction(str(float(coverage)))  # in binary floating point, 0.55 * 100 exceeds 55
    rank = math.ceil((n_spots + 1) * share)
    if rank > n_spots:
        needed = math.ceil(share / (1 - share))
        raise InvalidValueError(
            f"A coverage of {coverage:g} needs at least {needed} calibration spots, got {n_spots}.",
            "calibrate on more sections",
            Advice("lower {}", "coverage"),
        )
    return rank


def _floor(sd: NDArray[np.float32] | None, n_genes: int) -> NDArray[np.float64]:
    """Minimum standard deviation, ``(n_genes,)``; 1 without standard deviations or where all are 0."""
    if sd is None:
        return np.ones(n_genes)
    floor = _MIN_SD * np.sqrt(np.square(sd, dtype=np.float64).mean(axis=0))
    return np.where(floor > 0, floor, 1.0)


def _spread(sd: NDArray[np.float32] | None, floor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale of the errors, broadcastable to ``(n_spots, n_genes)``."""
    return floor if sd is None else np.maximum(sd, floor)


def _range(units: TargetSpec) -> NDArray[np.float32]:
    """Smallest and largest possible value, ``(2, 1)`` or ``(2, n_genes)``."""
    bounds = {
        "pearson_residuals": (-(units.clip or math.inf), units.clip or math.inf),
        "log_fold": (-math.inf, math.inf),
        "log1p_10k": (0.0, math.log1p(units.total)),
        "log1p_total": (0.0, math.log1p(units.total)),
        "log10_total": (0.0, math.log10(1 + units.total)),
        "log_proportion": (-math.inf, 0.0),
        "log1p": (0.0, math.inf),
        "counts": (0.0, math.inf),
    }
    values = np.array(bounds[units.transform])[:, None]
    if units.limits is not None:
        low, high = np.asarray(units.limits)
        values = np.divide(values - low, high - low, out=np.zeros((2, len(low))), where=high > low)
    return values.astype(np.float32)
