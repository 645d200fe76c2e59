"""Which element of a :class:`~spatialdata.SpatialData` object is meant when none, or one, is named."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from xarray import DataArray

from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict._validated import check

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

__all__ = ["find_image", "find_shapes", "find_table"]


def find_image(sdata: SpatialData, image_key: str | None) -> str:
    """Name of the image to read.

    Parameters
    ----------
    sdata
        Holds the image.
    image_key
        Name of the image; ``None`` takes the only one, or the only one that is 8-bit RGB.

    Raises
    ------
    KeyError
        If there is no image of that name.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If no name is given, and there is none or several could be meant.
    """
    check_slide(sdata)
    names = sorted(sdata.images)
    if image_key is not None:
        return _named(image_key, names, what="image", argument="image_key")
    if not names:
        raise InvalidValueError(
            "There is no image in sdata.", "add one to sdata.images", "read one with st_predict.io.read_image"
        )
    if len(names) == 1:
        return names[0]
    readable = [name for name in names if is_rgb(sdata.images[name])]
    if len(readable) == 1:
        logger.info("Of the images %s, only %r is 8-bit RGB.", names, readable[0])
        return readable[0]
    which = f", of which {readable} are 8-bit RGB" if readable else ", none of them 8-bit RGB"
    which = "" if readable == names else which
    raise InvalidValueError(
        f"There are several images in sdata: {names}{which}.", Advice("choose one with {}", "image_key")
    )


def is_rgb(image: Any) -> bool:
    """Whether an image element has three channels of 8 bits, without reading pixels."""
    levels = [image] if isinstance(image, DataArray) else _levels(image)
    return bool(levels) and all(
        set(level.dims) == {"c", "y", "x"} and level.sizes["c"] == 3 and level.dtype == np.uint8 for level in levels
    )


def _levels(image: Any) -> list[DataArray]:
    return [level for scale in image.children.values() for level in scale.data_vars.values()]


def find_table(sdata: SpatialData, table_key: str | None) -> str | None:
    """Name of the table of the spots.

    Predictions in tables of their own, and those that :func:`st_predict.get.prediction` has returned, are only taken if
    they are named.

    Parameters
    ----------
    sdata
        Holds the table.
    table_key
        Name of the table; ``None`` takes the only one, or the one called ``"table"``.

    Returns
    -------
    The name, or ``None`` if none was asked for and there is none.

    Raises
    ------
    KeyError
        If there is no table of that name.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If no name is given and several tables could be meant.
    """
    check_slide(sdata)
    if table_key is not None:
        return _named(table_key, sorted(sdata.tables), what="table", argument="table_key")
    names = sorted(name for name, table in sdata.tables.items() if not Record.is_result(table.uns, name))
    if not names:
        return None
    if len(names) == 1:
        return names[0]
    if Keys.TABLE in names:
        return Keys.TABLE
    raise InvalidValueError(
        f"There are several tables in sdata: {names}.",
        Advice("choose one with {}", "table_key"),
        f"rename that of the spots to {Keys.TABLE!r}",
    )


def find_shapes(sdata: SpatialData, shapes_key: str | None) -> str:
    """Name of the shapes that are the spots of a slide without a table.

    Parameters
    ----------
    sdata
        Holds the shapes.
    shapes_key
        Name of the shapes; ``None`` takes the only ones, or those called ``"grid"``; never the cells of
        :func:`st_predict.tl.superresolve`.

    Raises
    ------
    KeyError
        If there are no shapes of that name.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If no name is given and several shapes, or none, could be meant.
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


def _named(name: str, names: list[str], *, what: str, argument: str) -> str:
    check(argument, name, str)
    if name not in names:
        raise NotFoundError(f"No {what} {name!r} in sdata; there are {names}.")
    return name
