"""Spots that Space Ranger found to lie beside the tissue."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from st_predict._errors import InvalidValueError
from st_predict._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["off_tissue"]

logger = logging.getLogger(__name__)


def off_tissue(table: AnnData | None, rows: NDArray[np.int64], region: str) -> NDArray[np.bool_]:
    """Which rows of a table of Space Ranger have ``in_tissue`` 0; a message says how many.

    Parameters
    ----------
    table
        Table of the spots, if there is one. ``in_tissue`` only counts beside ``array_row`` and ``array_col``.
    rows
        ``(n_spots,)``: its rows of a region.
    region
        Name of the region, for messages.

    Returns
    -------
    ``(n_spots,)``, true beside the tissue.

    Raises
    ------
    ValueError
        If all of them are.
    """
    columns = [Keys.IN_TISSUE, Keys.ARRAY_ROW, Keys.ARRAY_COL]
    if table is None or not set(columns) <= set(table.obs.columns):
        return np.zeros(len(rows), bool)
    values = table.obs[Keys.IN_TISSUE]
    if not (is_numeric_dtype(values.dtype) or is_bool_dtype(values.dtype)):
        return np.zeros(len(rows), bool)
    off = (values.iloc[rows] == 0).to_numpy(dtype=bool, na_value=False)
    if off.all():
        raise InvalidValueError(
            f"All {len(rows)} spots of {region!r} lie beside the tissue: .obs[{Keys.IN_TISSUE!r}] is 0.",
            f"delete the column {Keys.IN_TISSUE!r} to take them all the same",
        )
    if off.any():
        logger.info(
            "%d of %d spots of %r lie beside the tissue (%s is 0) and are left out.",
            *(off.sum(), len(rows), region, Keys.IN_TISSUE),
        )
    return off
