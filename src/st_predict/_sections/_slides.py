"""Open all slides of an argument: one object, a list or a mapping, each with one or several tables of spots."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from st_predict._sections._section import as_list, each, open_sdata
from st_predict.io import find_tables

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from st_predict._sections._section import Sections, Slide
    from st_predict._where import Where

__all__ = ["open_slides"]


def open_slides(sdatas: Sections, where: Where, *, need_mpp: bool) -> list[Slide]:
    """Open one slide per table of spots, before anything is computed.

    All tables of an object are used if ``spatialdata.concatenate`` made it: each annotates other spots.

    Raises
    ------
    KeyError, TypeError, ValueError
        See :func:`open_sdata`; messages name the object if there are several.
    """

    def of_one(sdata: SpatialData) -> list[Slide]:
        if where.shapes_key is not None:
            return [open_sdata(sdata, where, need_mpp=need_mpp)]
        names: list[str | None] = [*find_tables(sdata, where.table_key, bin_um=where.bin_um)] or [None]
        return [open_sdata(sdata, replace(where, table_key=name, bin_um=None), need_mpp=need_mpp) for name in names]

    return [slide for slides in each(as_list(sdatas, "sdata"), of_one, named=sdatas) for slide in slides]
