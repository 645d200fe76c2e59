"""Take results out of AnnData and SpatialData."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from st_predict._keys import Keys
from st_predict._record import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["prediction", "table_of"]


_TABLE_ATTRS = "spatialdata_attrs"


def prediction(data: AnnData | SpatialData, key: str = "pred_m2ost", *, table_key: str | None = None) -> AnnData:
    """Return a prediction as an object of its own, with the gene panel as variables.

    Small panels are stored in ``.obsm`` of the table of the spots, large ones as a table of their own; both are read
    the same way. Nothing is shared with ``data``: changing the result does not change it.

    Parameters
    ----------
    data
        What :func:`st_predict.tl.predict` has written to, or its table if the prediction is in ``.obsm``.
    key
        Key of the prediction, ``pred_{model}`` unless it was given another one.
    table_key
        Table of the spots. Needed if several tables have a prediction of this key.

    Returns
    -------
    ``.X`` : ``(n_obs, n_genes)``, float32
        The prediction; rows of spots that could not be predicted are NaN.
    ``.layers["std"]`` : ``(n_obs, n_genes)``, float32
        Standard deviations, if the prediction has any.
    ``.layers["lower"]``, ``.layers["upper"]`` : ``(n_obs, n_genes)``, float32
        Bounds of its intervals, if :func:`st_predict.tl.calibrate` was applied.
    ``.obs``, ``.obsm["spatial"]``
        As in the table of the spots, as far as there are any.
    ``.uns["st_predict"][key]``
        Card and version of the model, if they are known.

    Raises
    ------
    KeyError
        If there is no such prediction or table; the message lists those that there are.
    ValueError
        If several tables have a prediction of this key.
    TypeError
        If ``data`` is neither AnnData nor SpatialData, or if what is stored under ``key`` does not name its genes.

    Examples
    --------
    >>> prediction = st_predict.get.prediction(sdata, "pred_m2ost")  # doctest: +SKIP
    >>> scanpy.pp.pca(prediction)  # doctest: +SKIP
    """
    if isinstance(data, AnnData):
        return _from_obsm(data, key)
    if not isinstance(data, SpatialData):
        raise TypeError(f"data must be AnnData or SpatialData, got {type(data).__name__}.")
    holder = table_of(data, key, table_key=table_key)
    if key in data.tables[holder].obsm:
        return _from_obsm(data.tables[holder], key)
    spots = spots_table_of(data, holder, table_key=table_key)
    return _from_table(data.tables[holder], key, spots=None if spots is None else data.tables[spots])


def _from_obsm(table: AnnData, key: str) -> AnnData:
    if key not in table.obsm:
        raise _unknown(key, _listed(table))
    frame = table.obsm[key]
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f".obsm[{key!r}] is a {type(frame).__name__}; a prediction is a DataFrame whose columns are the genes. "
            f"The predictions are {_listed(table)}."
        )
    result = _build(frame.to_numpy(np.float32, copy=True), frame.columns, key=key, stored=table, spots=table)
    derived = Record.derived_of(table.uns, key)
    for layer, name in ((Keys.STD, Keys.std(key)), (Keys.LOWER, Keys.lower(key)), (Keys.UPPER, Keys.upper(key))):
        if name in derived and name in table.obsm:  # else it was deleted
            result.layers[layer] = table.obsm[name].to_numpy(np.float32, copy=True)
    return result


def _from_table(table: AnnData, key: str, *, spots: AnnData | None) -> AnnData:
    values = table.X.toarray() if sparse.issparse(table.X) else table.X
    # what is known of the spots is in their own table, if the prediction has another one
    described = table if spots is None else spots[table.obs_names]
    result = _build(np.array(values, np.float32), table.var_names, key=key, stored=table, spots=described)
    for layer in {Keys.STD, Keys.LOWER, Keys.UPPER} & set(table.layers):
        result.layers[layer] = np.array(table.layers[layer], np.float32)
    return result


def _build(values: NDArray[np.float32], genes: pd.Index, *, key: str, stored: AnnData, spots: AnnData) -> AnnData:
    result = AnnData(values, obs=spots.obs.copy(), var=pd.DataFrame(index=genes.astype(str)))
    if Keys.SPATIAL in spots.obsm:
        result.obsm[Keys.SPATIAL] = np.array(spots.obsm[Keys.SPATIAL])
    # with these the result can be put into a SpatialData object again
    if _TABLE_ATTRS in spots.uns:
        result.uns[_TABLE_ATTRS] = deepcopy(dict(spots.uns[_TABLE_ATTRS]))
    Record.copy(stored.uns, result.uns, key)
    return result


def table_of(sdata: SpatialData, key: str, *, table_key: str | None = None) -> str:
    """Name of the table that holds a prediction, in ``.obsm`` or as itself.

    Parameters
    ----------
    sdata
        Holds the tables.
    key
        Key of the prediction.
    table_key
        Table of the spots; by default all are searched.

    Returns
    -------
    A key of ``sdata.tables``.

    Raises
    ------
    KeyError
        If there is no such prediction or table.
    ValueError
        If several tables have a prediction of this key.
    """
    if table_key is not None and table_key not in sdata.tables:
        raise KeyError(f"No table {table_key!r}; there are {sorted(sdata.tables)}.")
    searched = list(sdata.tables) if table_key is None else [table_key]
    holders = [name for name in searched if key in sdata.tables[name].obsm]
    if _is_linked(sdata, key) and (table_key is None or table_key == key or _same_spots(sdata, key, table_key)):
        holders.append(key)
    if not holders:
        raise _unknown(key, _listed_everywhere(sdata))
    if len(holders) > 1:
        raise ValueError(f"Several tables have a prediction {key!r}: pass table_key=, one of {sorted(holders)}.")
    return holders[0]


def spots_table_of(sdata: SpatialData, holder: str, *, table_key: str | None = None) -> str | None:
    """Name of the table with the counts and annotations of the spots of a prediction.

    Parameters
    ----------
    sdata
        Holds the tables.
    holder
        Table that holds the prediction, from :func:`table_of`.
    table_key
        Table of the spots, if it is known.

    Returns
    -------
    ``holder``, or for a prediction that is a table of its own the one other table of the same spots; ``None`` if there
    is none.

    Raises
    ------
    ValueError
        If several tables could be meant.
    """
    if not _is_linked(sdata, holder):
        return holder
    if table_key not in {None, holder}:
        return table_key
    others = [name for name in sdata.tables if not _is_linked(sdata, name) and _same_spots(sdata, holder, name)]
    if len(others) > 1:
        raise ValueError(f"Several tables are of the spots of {holder!r}: pass table_key=, one of {sorted(others)}.")
    return others[0] if others else None


def _is_linked(sdata: SpatialData, key: str) -> bool:
    return key in sdata.tables and key in Record.keys(sdata.tables[key].uns) and key not in sdata.tables[key].obsm


def _same_spots(sdata: SpatialData, key: str, table_key: str) -> bool:
    linked, table = sdata.tables[key], sdata.tables[table_key]
    regions = [set(np.atleast_1d(t.uns.get(_TABLE_ATTRS, {}).get("region", []))) for t in (linked, table)]
    return regions[0] <= regions[1] and bool(linked.obs_names.isin(table.obs_names).all())


def _listed(table: AnnData) -> list[str]:
    return sorted(key for key in Record.keys(table.uns) if isinstance(table.obsm.get(key), pd.DataFrame))


def _listed_everywhere(sdata: SpatialData) -> list[str]:
    inside = {key for table in sdata.tables.values() for key in _listed(table)}
    return sorted(inside | {key for key in sdata.tables if _is_linked(sdata, key)})


def _unknown(key: str, there: list[str]) -> KeyError:
    if not there:
        return KeyError(f"No prediction {key!r}; there are none yet. st_predict.tl.predict makes them.")
    return KeyError(f"No prediction {key!r}; there are {there}.")
