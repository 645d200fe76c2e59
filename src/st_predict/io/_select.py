"""Which element of a :class:`~spatialdata.SpatialData` object is meant when none, or one, is named."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from spatialdata.models import get_table_keys

from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError, NotFoundError, StPredictError
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict._validated import Text, check
from st_predict.io._bins import one_or_other, tables_of_bins
from st_predict.io._candidates import choose_image, choose_table, split_tables

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["find_image", "find_region", "find_shapes", "find_table", "find_tables", "named_table", "regions_of"]

logger = logging.getLogger(__name__)


def find_image(sdata: SpatialData, image_key: str | None, *, region: str | None = None) -> str:
    """Find the image to read.

    Parameters
    ----------
    sdata
        Object with the image.
    image_key
        Name of the image. ``None`` takes the only one that is 8-bit RGB and shares a coordinate system with ``region``.
        If several images show the same area at different resolutions, the finest is taken.
    region
        Name of the shapes, points or labels of the spots.

    Returns
    -------
    str
        Name of the image.

    Raises
    ------
    KeyError
        If there is no image of that name.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If no name is given, and no image or several images fit.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.find_image(sdata, None)
    'he'
    """
    check_slide(sdata)
    if image_key is not None:
        return _named(image_key, sorted(sdata.images), what="image", argument="image_key")
    return choose_image(sdata, check("region", region, Text | None))


def find_table(sdata: SpatialData, table_key: str | None = None, *, bin_um: float | None = None) -> str | None:
    """Find the table of the spots.

    Tables of predictions, including the results of :func:`st_predict.get.prediction`, are only taken if they are named.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Name of the table. ``None`` takes the only one, the one called ``"table"``, or the table of the 8 um bins of a Visium HD
        section.
    bin_um
        Side of the bins of Visium HD in micrometres, instead of the name of their table.

    Returns
    -------
    str or None
        Name of the table, or ``None`` if no name is given and there is no table.

    Raises
    ------
    KeyError
        If there is no table of that name, or with bins of that size.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If no name is given and several tables fit, or both a name and a size are given.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.find_table(sdata)
    'table'
    """
    check_slide(sdata)
    one_or_other(table_key, bin_um)
    if table_key is not None:
        return _named(table_key, sorted(sdata.tables), what="table", argument="table_key")
    names = _spot_tables(sdata)
    if bin_um is not None:
        names = tables_of_bins(sdata, names, bin_um)
    if not names:
        return None
    return _only_table(names)


def named_table(sdata: SpatialData, table_key: str | None, bin_um: float | None) -> str | None:
    """Name of the table that a caller asked for, by name or by size of the bins.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Name of the table, or ``None``.
    bin_um
        Side of the bins of Visium HD in micrometres, or ``None``.

    Returns
    -------
    str or None
        Name of the table, or ``None`` if neither was given.

    Raises
    ------
    KeyError, TypeError, ValueError
        See :func:`find_table`.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.named_table(sdata, "table", None)
    'table'
    >>> stp.io.named_table(sdata, None, None) is None
    True
    """
    check_slide(sdata)
    return table_key if bin_um is None else find_table(sdata, table_key, bin_um=bin_um)


def find_tables(sdata: SpatialData, table_key: str | None, *, bin_um: float | None = None) -> list[str]:
    """Find the tables of the spots: one, or one per object that ``spatialdata.concatenate`` joined.

    Parameters
    ----------
    sdata
        Object with the tables.
    table_key
        Name of the table, without the suffix of ``spatialdata.concatenate``; by default as in :func:`find_table`.
    bin_um
        Side of the bins of Visium HD in micrometres, instead of the name of their table.

    Returns
    -------
    list of str
        Names of the tables.

    Raises
    ------
    KeyError, TypeError, ValueError
        See :func:`find_table`.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.find_tables(sdata, None)
    ['table']
    """
    check_slide(sdata)
    names = _spot_tables(sdata)
    if bin_um is not None and table_key is None:
        names = tables_of_bins(sdata, names, bin_um)
    groups = split_tables(names)
    if table_key is None and len(groups) > 1 and Keys.TABLE not in names and _annotate_others(sdata, names):
        return [_only_table(group) for group in groups]
    found = find_table(sdata, table_key, bin_um=bin_um)
    return [] if found is None else [found]


def _annotate_others(sdata: SpatialData, names: list[str]) -> bool:
    """Whether no two tables annotate the same spots."""
    regions = [region for name in names for region in regions_of(sdata.tables[name])]
    return len(regions) == len(set(regions)) >= len(names)


def _spot_tables(sdata: SpatialData) -> list[str]:
    return sorted(name for name, table in sdata.tables.items() if not Record.is_result(table.uns, name))


def _only_table(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if Keys.TABLE in names:
        return Keys.TABLE
    if (bins := choose_table(names)) is not None:
        logger.info("Table %r of %s is taken.", bins, names)
        return bins
    raise InvalidValueError(
        f"There are several tables in sdata: {names}.",
        Advice("choose one with {}", "table_key"),
        f"rename the table of the spots to {Keys.TABLE!r}",
        "join them with spatialdata.concatenate(..., concatenate_tables=True)",
    )


def find_shapes(sdata: SpatialData, shapes_key: str | None) -> str:
    """Find the shapes that are the spots of a slide without a table.

    Parameters
    ----------
    sdata
        Object with the shapes.
    shapes_key
        Name of the shapes. ``None`` takes the only ones, or those called ``"grid"``, but never the cells of
        :func:`st_predict.tl.superresolve`.

    Returns
    -------
    str
        Name of the shapes.

    Raises
    ------
    KeyError
        If there are no shapes of that name.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If no name is given, and no shapes or several fit.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.find_shapes(sdata, None)
    'spots'
    """
    check_slide(sdata)
    if shapes_key is not None:
        return _named(shapes_key, sorted(sdata.shapes), what="shapes element", argument="shapes_key")
    names = sorted(set(sdata.shapes) - {Keys.cell_grid(table) for table in sdata.tables})
    if len(names) == 1:
        return names[0]
    if Keys.GRID in names:
        return Keys.GRID
    if names:
        raise InvalidValueError(
            f"There is no table in sdata, and several shapes: {names}.",
            Advice("choose one with {}", "shapes_key"),
            f"rename those that are the spots to {Keys.GRID!r}",
        )
    raise InvalidValueError(
        "There are no spots: sdata has neither a table nor shapes.",
        "lay a grid of spots on the tissue with st_predict.pp.make_grid",
    )


def find_region(sdata: SpatialData, table_key: str | None = None, shapes_key: str | None = None) -> str | None:
    """Find the element of the spots, if it is unambiguous; :func:`find_image` uses it to choose the image.

    Parameters
    ----------
    sdata
        Object with table and spots.
    table_key
        Name of the table of the spots; by default the one of :func:`find_table`.
    shapes_key
        Name of the shapes, points or labels of the spots, if given.

    Returns
    -------
    str or None
        ``shapes_key``, or the only region of the table; ``None`` if neither is known.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.find_region(sdata)
    'spots'
    """
    if shapes_key is not None:
        return shapes_key
    if table_key is None and not sdata.tables:
        return find_shapes(sdata, None) if len(sdata.shapes) == 1 else None
    try:
        name = find_table(sdata, table_key)
    except StPredictError:  # not clear, and the caller may not need it
        return None
    regions = [] if name is None else regions_of(sdata.tables[name])
    return regions[0] if len(regions) == 1 else None


def regions_of(table: AnnData) -> list[str]:
    """Regions that a table annotates; none if it is not linked to any."""
    try:
        regions, *_ = get_table_keys(table)
    except ValueError:
        return []
    return [regions] if isinstance(regions, str) else list(regions or [])


def _named(name: str, names: list[str], *, what: str, argument: str) -> str:
    check(argument, name, str)
    if name not in names:
        raise NotFoundError(f"No {what} {name!r} in sdata; there are {names}.")
    return name
