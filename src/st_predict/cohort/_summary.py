"""Summary of a cross-validation: means over patients or sections, with intervals and paired tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from st_predict import metrics
from st_predict._unit_scores import Unit, check_table, unit_scores
from st_predict._validated import Text, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["summarize"]


def summarize(table: pd.DataFrame, *, score: str = "partial", unit: Unit = "patient") -> pd.DataFrame:
    """Summarise a cross-validation: one row per model, from the best to the worst.

    The unit of intervals and tests is the patient or the section. Genes are averaged first: genes of a section share its
    spots, so they are not independent. So are seeds.

    Parameters
    ----------
    table
        Result of :func:`cross_validate`, of one protocol.
    score
        Column to summarise; higher is better.
    unit
        ``"patient"``, or ``"section"``: more units, but sections of one patient are alike, so that intervals and p-values
        are too small.

    Returns
    -------
    DataFrame
        One row per model:

        ``model``, ``score``, ``unit``, ``n_units``
            Names, and number of units with a defined score.
        ``mean``, ``low``, ``high``
            Mean over units with its 95 % interval (:func:`st_predict.metrics.mean_interval`).
        ``seed_sd``
            Standard deviation over seeds of the mean over units; NaN for one seed.
        ``ceiling``
            Mean noise ceiling, for ``"partial"`` and ``"residual"``.
        ``mean_rank``
            Mean rank over units; 1 is the best.
        ``p_to_best``
            Holm-adjusted p-value of the difference to the first row (:func:`st_predict.metrics.wilcoxon_tests`).

        Constants, which have no correlation, have NaN and no rank.

    Raises
    ------
    TypeError
        If ``table`` is not a DataFrame.
    KeyError
        If a column is missing.
    ValueError
        If the table is empty, holds several protocols, or ``score`` is not numbers.

    Examples
    --------
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> names = [(m, p) for m in ("a", "b") for p in ("P1", "P2", "P3")]
    >>> table = pd.DataFrame(names, columns=["model", "patient"])
    >>> table = table.assign(
    ...     section=table["patient"], fold="1", seed=0, gene="VIM", partial=[0.1, 0.2, 0.3, 0.3, 0.4, 0.5]
    ... )
    >>> stp.cohort.summarize(table)[["model", "mean", "mean_rank"]].round(2).to_numpy().tolist()
    [['b', 0.4, 1.0], ['a', 0.2, 2.0]]
    """
    score, unit = check("score", score, Text), check("unit", unit, Unit)
    table = check_table(table, [score])
    units = unit_scores(table, score, unit)
    order = units.mean().sort_values(ascending=False, kind="stable", na_position="last").index
    units = units[order]
    ranks, p = _ranked(units)
    ceiling = f"ceiling_{score}"
    ceilings = unit_scores(check_table(table, [ceiling]), ceiling, unit).mean() if ceiling in table else None
    rows = [
        {
            "model": name,
            "score": score,
            "unit": unit,
            "n_units": int(units[name].notna().sum()),
            "mean": units[name].mean(),
            **dict(zip(("low", "high"), metrics.mean_interval(units[name]), strict=True)),
            "seed_sd": _seed_sd(table[table["model"] == name], score, unit),
            "ceiling": float("nan") if ceilings is None else ceilings[name],
            "mean_rank": rank,
            "p_to_best": p_value,
        }
        for name, rank, p_value in zip(order, ranks, p, strict=True)
    ]
    return pd.DataFrame(rows)


def _ranked(units: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean ranks, and p-values of the difference to the first model; NaN where they are undefined."""
    ranks, p = np.full((2, units.shape[1]), np.nan)
    defined = units.notna().any().to_numpy()
    values = units.loc[:, defined].dropna()
    if defined.sum() > 1 and len(values) > 1:
        ranks[defined] = metrics.rank_test(values).mean_ranks
        p[defined] = metrics.wilcoxon_tests(values)[0]
    return ranks, p


def _seed_sd(table: pd.DataFrame, score: str, unit: Unit) -> float:
    means = [unit_scores(rows, score, unit).mean().iloc[0] for _, rows in table.groupby("seed")]
    return float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")
