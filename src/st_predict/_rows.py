"""Rows of tables of the same spots, joined by region and name because names are unique only within a region."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["regions_of", "rows_called", "rows_in"]

_ATTRS = "spatialdata_attrs"


def regions_of(table: AnnData) -> NDArray[np.object_]:
    """Return the region of each row, ``(n_obs,)``; empty strings for a table that annotates nothing."""
    key = table.uns.get(_ATTRS, {}).get("region_key")
    if key is None or key not in table.obs:
        return np.full(table.n_obs, "", dtype=object)
    return table.obs[key].astype(str).to_numpy(dtype=object)


def rows_in(source: AnnData, target: AnnData) -> NDArray[np.int64]:
    """Find the spots of a table in another one.

    Parameters
    ----------
    source
        Table with some of the spots.
    target
        Table to find them in.

    Returns
    -------
    ndarray
        ``(source.n_obs,)``: rows of ``target``, -1 for missing spots.

    Raises
    ------
    ValueError
        If the names in a region of ``target`` are not unique.
    """
    if source is target:
        return np.arange(source.n_obs)
    if target.obs_names.is_unique:
        return np.asarray(target.obs_names.get_indexer(source.obs_names), dtype=np.int64)
    there = _identities(regions_of(target), target.obs_names)
    if not there.is_unique:
        raise InvalidValueError(
            f"Spot names are not unique; the first repeated one is {there[there.duplicated()][0]} (region, name).",
            "make them unique with .obs_names_make_unique()",
        )
    return np.asarray(there.get_indexer(_identities(regions_of(source), source.obs_names)), dtype=np.int64)


def rows_called(table: AnnData, names: Sequence[str], regions: Sequence[str]) -> NDArray[np.bool_]:
    """Return the rows with these names, ``(n_obs,)``.

    Parameters
    ----------
    table
        Table of the spots.
    names
        Names of spots.
    regions
        Region of each name; empty if names are unique in the table.
    """
    if not regions:
        return np.asarray(table.obs_names.isin(names))
    return np.asarray(_identities(regions_of(table), table.obs_names).isin(_identities(regions, names)))


def _identities(regions: Sequence[str] | NDArray[np.object_], names: Sequence[str] | pd.Index) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([np.asarray(regions, dtype=object), np.asarray(names, dtype=object)])
