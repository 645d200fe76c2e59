"""Scores of a cross-validation per model and unit: section or patient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd
from pandas.api.types import is_numeric_dtype

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Unit", "check_table", "unit_scores"]

Unit: TypeAlias = Literal["patient", "section"]


def check_table(table: Any, scores: Sequence[str]) -> pd.DataFrame:
    """Return the table of a cross-validation.

    Parameters
    ----------
    table
        Table to check.
    scores
        Columns with numbers that are needed.

    Raises
    ------
    TypeError
        If it is not a DataFrame.
    KeyError
        If a column is missing.
    ValueError
        If it is empty, a column is not numbers, or it holds several protocols.
    """
    if not isinstance(table, pd.DataFrame):
        raise InvalidTypeError(
            f"table must be the DataFrame of a cross-validation, got {type(table).__name__}.",
            "make one with st_predict.cohort.cross_validate",
        )
    for column in ("model", "fold", "seed", "section", "patient", "gene", *scores):
        if column not in table:
            raise NotFoundError(f"The table has no column {column!r}; it has {list(table)}.")
    if table.empty:
        raise InvalidValueError("The table has no rows.")
    for column in scores:
        if not is_numeric_dtype(table[column]):
            raise InvalidValueError(f"Column {column!r} of the table is not numbers.", "choose another score")
    protocols = table["protocol"].unique().tolist() if "protocol" in table else []
    if len(protocols) > 1:
        raise InvalidValueError(f"The table holds several protocols, {protocols}.", "take the rows of one")
    return table


def unit_scores(table: pd.DataFrame, score: str, unit: Unit) -> pd.DataFrame:
    """Return mean scores, one row per unit and one column per model, in the order of the table.

    Means are taken over genes with a defined score, then over seeds and folds, then over the sections of a patient, so
    that seeds and genes are not counted as units. NaN where nothing is defined.
    """
    cells = table.groupby(["model", "patient", "section", "seed", "fold"], sort=False)[score].mean()
    sections = cells.groupby(["model", "patient", "section"], sort=False).mean()
    units = sections if unit == "section" else sections.groupby(["model", "patient"], sort=False).mean()
    wide = units.unstack("model")
    if unit == "section":
        wide = wide.droplevel("patient")
    return wide.reindex(index=table[unit].unique(), columns=table["model"].unique())
