"""Tables of Visium HD, as spatialdata-io names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatialdata.models import get_table_keys

from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._validated import Positive, check
from st_predict.io._candidates import BINS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["bin_side", "largest_bins", "one_or_other", "tables_of_bins"]


def bin_side(table: AnnData) -> float | None:
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
    sides = {name: side for name, table in sdata.tables.items() if (side := bin_side(table)) is not None}
    return max(sides, key=lambda name: sides[name], default=None)


def tables_of_bins(sdata: SpatialData, names: Sequence[str], bin_um: float) -> list[str]:
    """Names of the tables whose bins have a given side.

    Parameters
    ----------
    sdata
        Holds the tables.
    names
        Tables to choose from.
    bin_um
        Side of a bin, in micrometres.

    Raises
    ------
    KeyError
        If no table has such bins; the message lists the sizes that there are.
    ValueError
        If ``bin_um`` is not a positive number.
    """
    bin_um = check("bin_um", bin_um, Positive)
    sides = {name: side for name in names if (side := _side(sdata.tables[name])) is not None}
    if found := [name for name in names if sides.get(name) == bin_um]:
        return found
    if not sides:
        raise NotFoundError(
            f"There are no bins of {bin_um:g} um: no table of {list(names)} is one of bins of Visium HD.",
            Advice("leave out {}", "bin_um"),
            f"set .uns[{Keys.BIN_UM!r}] of a table of bins to the side of a bin",
        )
    there = ", ".join(f"{side:g} um (table {name!r})" for name, side in sorted(sides.items(), key=lambda item: item[1]))
    raise NotFoundError(
        f"There are no bins of {bin_um:g} um in sdata; there are bins of {there}.",
        Advice("choose one of these with {}", "bin_um"),
        f"read the section again with bin_size={bin_um:g} of spatialdata_io.visium_hd",
    )


def one_or_other(table_key: str | None, bin_um: float | None) -> None:
    """Refuse a name and a size of bins together.

    Raises
    ------
    ValueError
        If both are given.
    """
    if table_key is not None and bin_um is not None:
        raise InvalidValueError(
            f"The table {table_key!r} and bins of {bin_um} um are both named; either tells which table is meant.",
            Advice("leave out {}", "table_key"),
            Advice("leave out {}", "bin_um"),
            "name the table once",
        )


def _side(table: AnnData) -> float | None:
    """Side of the bins, by what :func:`st_predict.io.from_anndata` or the user has noted, or by the reader."""
    noted = table.uns.get(Keys.BIN_UM)
    try:
        return bin_side(table) if noted is None else float(noted)
    except (TypeError, ValueError):  # said where it is needed
        return None
