"""Tables of Visium HD, as spatialdata-io names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatialdata.models import get_table_keys

from st_predict._keys import Keys
from st_predict.io._candidates import BINS

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["bin_um", "largest_bins"]


def bin_um(table: AnnData) -> float | None:
    """Side of the bins of a table of ``spatialdata_io.visium_hd``, in micrometres; ``None`` for other tables.

    That reader numbers its bins in a column ``location_id``, and writes the side into the name of the region.
    """
    try:
        regions, *_ = get_table_keys(table)
    except ValueError:
        return None
    if not {"location_id", Keys.IN_TISSUE, Keys.ARRAY_ROW, Keys.ARRAY_COL} <= set(table.obs.columns):
        return None
    names = [regions] if isinstance(regions, str) else list(regions or [])
    found = {int(match[1]) if (match := BINS.search(name)) else None for name in names}
    side = found.pop() if len(found) == 1 else None
    return None if side is None else float(side)


def largest_bins(sdata: SpatialData) -> str | None:
    """Name of the table with the largest bins, which has the fewest rows; ``None`` if there is none."""
    sides = {name: side for name, table in sdata.tables.items() if (side := bin_um(table)) is not None}
    return max(sides, key=lambda name: sides[name], default=None)
