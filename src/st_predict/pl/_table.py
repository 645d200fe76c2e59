"""Per-gene scores of an evaluation, for plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HasGenes", "check_scores", "predictors_of", "score_table", "scores_of"]


class HasGenes(Protocol):
    """The result of :func:`st_predict.tl.evaluate`."""

    @property
    def genes(self) -> pd.DataFrame:
        """One row per section, predictor and gene."""


def score_table(evaluation: HasGenes | pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the per-gene scores of an evaluation, with ``columns`` checked to be finite numbers or NaN."""
    frame = evaluation if isinstance(evaluation, pd.DataFrame) else getattr(evaluation, "genes", None)
    if not isinstance(frame, pd.DataFrame):
        raise InvalidTypeError(
            f"evaluation must be an Evaluation or its table of genes, got {type(evaluation).__name__}.",
            "make one with st_predict.tl.evaluate",
        )
    missing = [column for column in ("section", "predictor", "gene", *columns) if column not in frame]
    if missing:
        raise NotFoundError(f"The table of scores has no column {missing[0]!r}; it has {list(frame)}.")
    if frame.empty:
        raise InvalidValueError("The table of scores is empty.")
    check_scores(frame, columns)
    repeated = frame.duplicated(["section", "predictor", "gene"])
    if repeated.any():
        row = frame.loc[repeated, ["section", "predictor", "gene"]].iloc[0].tolist()
        raise InvalidValueError(
            f"{int(repeated.sum())} rows repeat the section, predictor and gene of another row, such as {row}."
        )
    return frame


def check_scores(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse columns that hold anything but finite numbers and NaN."""
    for column in columns:
        if not is_numeric_dtype(frame[column]) or np.isinf(frame[column].to_numpy(np.float64)).any():
            raise InvalidValueError(f"Column {column!r} of the table of scores should have finite numbers and NaN.")


def predictors_of(frame: pd.DataFrame) -> list[str]:
    """Names of the predictors, in the order of the table: the model is first."""
    return [str(name) for name in frame["predictor"].unique()]


def scores_of(frame: pd.DataFrame, section: str, predictor: str, column: str) -> pd.Series:
    """Scores of a predictor in a section, indexed by gene."""
    rows = frame[(frame["section"] == section) & (frame["predictor"] == predictor)]
    return rows.set_index("gene")[column]
