"""Elements that readers of imaging assays keep in micrometres."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spatialdata.models import get_table_keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["in_micrometres", "table_in_micrometres"]

XENIUM_COLUMNS = {"cell_id", "transcript_counts", "cell_area"}
"""Columns of ``.obs`` that the Xenium software writes."""

XENIUM_ELEMENTS = ("cell_boundaries", "cell_circles", "nucleus_boundaries", "transcripts")
"""Elements of ``spatialdata_io.xenium`` whose vertices are in micrometres, as in the files of the instrument."""

SUFFIX = re.compile(r"-[^-]+$")


def in_micrometres(sdata: SpatialData, table: AnnData, region: str | None) -> tuple[str, str] | None:
    """Name of an element in micrometres, and of the assay that says so.

    Parameters
    ----------
    sdata
        What ``spatialdata_io.xenium`` or ``merscope`` has made, or what ``spatialdata.concatenate`` has made of it.
    table
        Its table of cells.
    region
        Region of the table, if it annotates several.

    Returns
    -------
    tuple of str and str or None
        ``None`` if this is not a table of these readers.
    """
    try:
        regions, region_key, instance_key = get_table_keys(table)
    except ValueError:
        return None
    names = [regions] if isinstance(regions, str) else list(regions or [])
    if not names or (region is not None and region not in names):
        return None
    cells = region or names[0]
    if set(table.obs.columns) >= XENIUM_COLUMNS and re.match(r"cell_(labels|boundaries|circles)(?=$|-)", cells):
        suffix = found[0] if (found := SUFFIX.search(cells)) else ""
        there = [name + suffix for name in XENIUM_ELEMENTS if name + suffix in sdata]
        return (there[0], "Xenium") if there else None
    if (region_key, instance_key) == ("cells_region", "EntityID") and cells in sdata.shapes:
        return cells, "MERSCOPE"
    return None


def table_in_micrometres(table: AnnData) -> str | None:
    """Name of the assay whose reader keeps the centres in ``.obsm`` in micrometres; ``None`` for other tables."""
    if set(table.obs.columns) >= XENIUM_COLUMNS:
        return "Xenium"
    try:
        _, region_key, instance_key = get_table_keys(table)
    except ValueError:
        return None
    return "MERSCOPE" if (region_key, instance_key) == ("cells_region", "EntityID") else None
