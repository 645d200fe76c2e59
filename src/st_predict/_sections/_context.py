"""Counts of context spots, which a network may read to predict the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._rows import regions_of
from st_predict._sections._measured import match_genes
from st_predict.models import get_spec, list_models
from st_predict.pp import make_target
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._where import Where
    from st_predict.specs import ModelCard

__all__ = ["Context", "read_context", "spots_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Context spots and their counts.

    Parameters
    ----------
    column
        Boolean column of ``.obs`` that selects the context spots.
    spots
        Names of the context spots.
    regions
        Regions of the context spots, for a table whose names are not unique.
    counts
        ``(n_obs, n_genes)``: raw counts of the panel, NaN for all other spots.
    """

    column: str
    spots: tuple[str, ...]
    regions: tuple[str, ...]
    counts: NDArray[np.float32]

    def describe(self) -> dict[str, Any]:
        """Return the entries for the record of a result."""
        return {"column": self.column, "spots": list(self.spots)} | (
            {"regions": list(self.regions)} if self.regions else {}
        )


def read_context(
    sdata: SpatialData, column: str | None, cards: Sequence[ModelCard], where: Where, *, table_key: str | None
) -> Context | None:
    """Read the context counts for networks with the same panel; ``None`` without context.

    Genes that the table lacks are 0.

    Raises
    ------
    KeyError
        If the column does not exist, or the table lacks all panel genes.
    ValueError
        If a network does not read counts, the slide lacks a table, or the column is not boolean or does not select any
        spots.
    """
    if column is None:
        return None
    if without := sorted({card.model for card in cards if not get_spec(card.model).reads_context}):
        can = [name for name in list_models() if get_spec(name).reads_context]
        raise InvalidValueError(
            f"{without} cannot read counts of other spots; {can} can.", Advice("leave out {}", "context")
        )
    if table_key is None:
        raise InvalidValueError(
            f"The column {column!r} is not found: the slide has no table.", Advice("leave out {}", "context")
        )
    table = sdata.tables[table_key]
    rows = np.flatnonzero(spots_of(table, column))
    if not len(rows):
        raise InvalidValueError(f".obs[{column!r}] is false for all spots; context must select at least one.")
    genes = cards[0].genes
    match = match_genes(table, cards[0], where, drop=True)
    target = make_target(table[rows], match, TargetSpec(transform="counts"), layer=where.layer, tissue_only=False)
    place = {gene: i for i, gene in enumerate(genes)}
    counts = np.full((table.n_obs, len(genes)), np.nan, dtype=np.float32)
    read = rows[target.rows]
    counts[read] = 0
    columns = np.array([place[gene] for gene in target.genes])
    counts[read[:, None], columns] = target.values
    regions = () if table.obs_names.is_unique else tuple(regions_of(table)[read])
    return Context(column=column, spots=tuple(table.obs_names[read]), regions=regions, counts=counts)


def spots_of(table: AnnData, column: str) -> NDArray[np.bool_]:
    """Return the spots for which a column is true, ``(n_obs,)``.

    Raises
    ------
    KeyError, ValueError
        If the column does not exist or is not boolean.
    """
    if column not in table.obs:
        raise NotFoundError(f"No column {column!r} in .obs; it has {sorted(table.obs.columns)}.")
    values = table.obs[column]
    if values.dtype not in (bool, "boolean") or values.isna().any():
        raise InvalidValueError(
            f".obs[{column!r}] must be true or false for every spot; its type is {values.dtype}.",
            "convert it with .astype(bool)",
        )
    return values.to_numpy(dtype=bool)
