"""Comparison of several models over patients or sections: ranks, paired tests, intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict._reprs import ShortRepr
from st_predict._validated import Probability, check
from st_predict.metrics._arrays import as_array, as_pvalues

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["RankTest", "holm", "mean_interval", "rank_test", "wilcoxon_tests"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class RankTest(ShortRepr):
    """Comparison of models by their ranks; returned by :func:`rank_test`.

    Parameters
    ----------
    mean_ranks
        Mean rank of each model, ``(n_models,)``; 1 is the best.
    p_value
        P-value of the Friedman test that no model differs; NaN for two models.
    critical_difference
        Least difference of two mean ranks that the Nemenyi test calls significant.
    n_units
        Number of units with a score of every model.

    Examples
    --------
    >>> from st_predict.metrics import rank_test
    >>> rank_test([[0.5, 0.4, 0.1], [0.6, 0.3, 0.2], [0.4, 0.3, 0.2]]).n_units
    3
    """

    mean_ranks: NDArray[np.float64]
    p_value: float
    critical_difference: float
    n_units: int


def rank_test(scores: ArrayLike, *, alpha: float = 0.05) -> RankTest:
    """Rank models in each unit, with the tests of Friedman :cite:p:`Friedman1937` and Nemenyi :cite:p:`Nemenyi1963`.

    Parameters
    ----------
    scores
        Scores, ``(n_units, n_models)``; higher is better. Units are independent samples, such as patients. Genes of a
        section are not: they share its spots. Units with NaN are left out.
    alpha
        Significance level of the critical difference.

    Returns
    -------
    RankTest
        Mean ranks, p-value, critical difference and number of units.

    Raises
    ------
    TypeError
        If ``scores`` is sparse.
    ValueError
        If ``scores`` is not numbers, ``(n_units, n_models)``, has fewer than two models, or fewer than two units without
        NaN.

    Notes
    -----
    The critical difference follows :cite:t:`Demsar2006`. With few units it is large: for five models, it is 2.2 ranks
    with eight patients, and 4.3 with two.

    Examples
    --------
    >>> from st_predict.metrics import rank_test
    >>> scores = [[0.5, 0.4, 0.1], [0.6, 0.3, 0.2], [0.4, 0.3, 0.2], [0.5, 0.2, 0.3]]
    >>> found = rank_test(scores)
    >>> found.mean_ranks, round(found.p_value, 3), round(found.critical_difference, 2)
    (array([1.  , 2.25, 2.75]), 0.039, 1.66)
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    values = _complete(scores)
    alpha = check("alpha", alpha, Probability)
    n_units, n_models = values.shape
    ranks = rankdata(-values, axis=1)
    tied = (ranks == ranks[:, :1]).all()
    p = 1.0 if tied else float(friedmanchisquare(*values.T).pvalue) if n_models > 2 else float("nan")
    quantile = studentized_range.ppf(1 - alpha, n_models, np.inf) / np.sqrt(2)
    difference = float(quantile * np.sqrt(n_models * (n_models + 1) / (6 * n_units)))
    return RankTest(mean_ranks=ranks.mean(axis=0), p_value=p, critical_difference=difference, n_units=n_units)


def wilcoxon_tests(scores: ArrayLike) -> NDArray[np.float64]:
    """Two-sided Wilcoxon signed-rank test :cite:p:`Wilcoxon1945` of each pair of models, corrected by :func:`holm`.

    Parameters
    ----------
    scores
        Scores, ``(n_units, n_models)``, as for :func:`rank_test`. Units with NaN are left out.

    Returns
    -------
    ndarray
        ``(n_models, n_models)``: adjusted p-values, symmetric, NaN on the diagonal.

    Raises
    ------
    TypeError
        If ``scores`` is sparse.
    ValueError
        If the scores are not numbers or of another shape; see :func:`rank_test`.

    Notes
    -----
    With n units, no p-value is below ``2 ** (1 - n)``: with fewer than six, nothing can be significant at 0.05.

    Examples
    --------
    >>> import numpy as np
    >>> from st_predict.metrics import wilcoxon_tests
    >>> scores = np.arange(8)[:, None] + [0.3, 0.2, 0.1]
    >>> wilcoxon_tests(scores)[0].round(4)
    array([   nan, 0.0234, 0.0234])
    """
    from scipy.stats import wilcoxon

    values = _complete(scores)
    n_models = values.shape[1]
    pairs = [(i, j) for i in range(n_models) for j in range(i + 1, n_models)]
    p = []
    for i, j in pairs:
        difference = values[:, i] - values[:, j]
        # scipy warns if all differences are 0
        p.append(float(wilcoxon(difference).pvalue) if difference.any() else 1.0)
    found = np.full((n_models, n_models), np.nan)
    for (i, j), adjusted in zip(pairs, holm(p), strict=True):
        found[i, j] = found[j, i] = adjusted
    return found


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values so that a threshold on them bounds the probability of any false discovery :cite:p:`Holm1979`.

    Parameters
    ----------
    p
        P-values, ``(n_tests,)``; NaN is undefined and not counted as a test.

    Returns
    -------
    ndarray
        ``(n_tests,)``: adjusted p-values, NaN where ``p`` is.

    Raises
    ------
    TypeError
        If ``p`` is sparse.
    ValueError
        If ``p`` is not numbers, not one-dimensional, empty, or not between 0 and 1.

    Examples
    --------
    >>> from st_predict.metrics import holm
    >>> holm([0.01, 0.04, float("nan"), 0.03])
    array([0.03, 0.06,  nan, 0.06])
    """
    p = as_pvalues(p)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1) if len(order) else []
    return adjusted


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a mean over independent units, by Student's t distribution.

    Parameters
    ----------
    values
        One value per unit, ``(n_units,)``; NaN is left out.
    level
        Coverage.

    Returns
    -------
    tuple of float and float
        Lower and upper end; NaN for fewer than two units.

    Raises
    ------
    TypeError
        If ``values`` is sparse.
    ValueError
        If ``values`` is not numbers, empty or infinite, or ``level`` is not between 0 and 1.

    Examples
    --------
    >>> from st_predict.metrics import mean_interval
    >>> low, high = mean_interval([0.2, 0.3, 0.4])
    >>> round(low, 3), round(high, 3)
    (0.052, 0.548)
    """
    from scipy.stats import t

    values = as_array(values, "values", ("n_units",), undefined=True)
    values, level = values[~np.isnan(values)], check("level", level, Probability)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def _complete(scores: ArrayLike) -> NDArray[np.float64]:
    """Return units with a score of every model."""
    values = as_array(scores, "scores", ("n_units", "n_models"), undefined=True)
    if values.shape[1] < 2:
        raise InvalidValueError(f"scores must have at least two models, got the shape {values.shape}.")
    kept = values[~np.isnan(values).any(axis=1)]
    if len(kept) < 2:
        raise InvalidValueError(
            f"scores must have at least two units with a score of every model; {len(kept)} of {len(values)} have."
        )
    return kept
