"""Counts of some spots that a network may read when it predicts the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict.models import get_spec, list_models
from st_predict.pp import align_panel, make_target
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.models import ModelCard

__all__ = ["is_context", "read_context"]


def read_context(
    sdata: SpatialData, column: str | None, card: ModelCard, *, table_key: str | None
) -> NDArray[np.float32] | None:
    """Read raw counts of the panel, ``(n_obs, n_genes)``: NaN for spots that are to be predicted without.

    Genes that the table has not are 0, as for a spot in which none was counted.

    Raises
    ------
    KeyError
        If there is no such column, or no gene of the panel in the table.
    ValueError
        If the network reads no counts, there is no table, the column is not of true and false, or no spot is to be read.
    """
    if column is None:
        return None
    if not get_spec(card.model).reads_context:
        can = [name for name in list_models() if get_spec(name).reads_context]
        raise ValueError(f"{card.model!r} reads no counts of other spots: leave out context=; {can} can.")
    if table_key is None:
        raise ValueError("context= names a column of a table with counts; there is no table.")
    table = sdata.tables[table_key]
    rows = np.flatnonzero(is_context(table, column))
    if not len(rows):
        raise ValueError(f".obs[{column!r}] is true for no spot, so there is no context.")
    match = align_panel(table, card.genes, missing="drop")
    target = make_target(table[rows], match, TargetSpec(transform="counts"))
    place = {gene: i for i, gene in enumerate(card.genes)}
    counts = np.full((table.n_obs, len(card.genes)), np.nan, dtype=np.float32)
    read = rows[target.rows]
    counts[read] = 0
    columns = np.array([place[gene] for gene in target.genes])
    counts[read[:, None], columns] = target.values
    return counts


def is_context(table: AnnData, column: str) -> NDArray[np.bool_]:
    """Return ``(n_obs,)``: which spots may be read.

    Raises
    ------
    KeyError, ValueError
        If there is no such column, or it is not of true and false.
    """
    if column not in table.obs:
        raise KeyError(f"There is no column {column!r} in .obs; there are {sorted(table.obs.columns)}.")
    if table.obs[column].dtype != bool:
        raise ValueError(f".obs[{column!r}] must be of true and false (bool), it is of {table.obs[column].dtype}.")
    return table.obs[column].to_numpy()
