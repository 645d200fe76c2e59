"""Rows and columns of spots on the lattice of an assay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict._keys import Keys

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["read_lattice"]

OFF = 0.25
"""Largest distance from a whole number that is rounded: places that were measured in the image are off by less."""

LARGEST = 1_000_000
"""Largest row or column; an array of bins of 2 um has about 3,350."""


def read_lattice(obs: pd.DataFrame) -> NDArray[np.int64] | None:
    """Row and column of each spot, ``(n_spots, 2)``; ``None`` where a column is missing or incomplete.

    Parameters
    ----------
    obs
        Table with the columns ``array_row`` and ``array_col``. Numbers within 0.25 of a whole number are rounded.

    Raises
    ------
    ValueError
        If a value is text, infinite, out of range or between whole numbers; the message names column and spot.
    """
    columns = [Keys.ARRAY_ROW, Keys.ARRAY_COL]
    if not set(columns) <= set(obs.columns) or obs[columns].isna().to_numpy().any():
        return None
    return np.column_stack([_whole(obs[column]) for column in columns])


def _whole(column: pd.Series) -> NDArray[np.int64]:
    try:
        values = column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):  # some are text
        values = np.array([_number(value) for value in column], dtype=np.float64)
    bad = ~(np.abs(values) <= LARGEST)  # also true for NaN
    bad[~bad] = np.abs(values[~bad] - np.rint(values[~bad])) > OFF
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InvalidValueError(
            f".obs[{column.name!r}] must be whole numbers; {int(bad.sum())} of {len(values)} values are not, the first is "
            f"{column.tolist()[first]!r} of {column.index[first]!r}.",
            f"correct the column {column.name!r}",
            "delete it if no model needs it",
        )
    return np.rint(values).astype(np.int64)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
