"""Checks of the type of a first argument."""

from __future__ import annotations

from os import PathLike
from typing import Any

from anndata import AnnData
from spatialdata import SpatialData

from st_predict._errors import InvalidTypeError

__all__ = ["check_data", "check_slide", "check_table", "share_arrays"]


def check_slide(sdata: Any, *, argument: str = "sdata") -> None:
    """Refuse anything but a :class:`~spatialdata.SpatialData` object, with advice on how to make one.

    Parameters
    ----------
    sdata
        Value of the argument.
    argument
        Name of the argument, for the message.

    Raises
    ------
    InvalidTypeError
        If it has another type.
    """
    if isinstance(sdata, SpatialData):
        return
    found = f"{argument} must be a SpatialData object, got {_described(sdata)}."
    if isinstance(sdata, AnnData):
        raise InvalidTypeError(
            f"{found} Image and spots are needed too:",
            "add them with sdata = st_predict.io.from_anndata(adata, image=...)",
            "read the sample again with a reader of spatialdata-io",
        )
    raise InvalidTypeError(found, *_ways_out(sdata))


def check_data(data: Any, *, argument: str = "data") -> None:
    """Refuse anything but :class:`~anndata.AnnData` or :class:`~spatialdata.SpatialData`, with advice on how to make one.

    Parameters
    ----------
    data
        Value of the argument.
    argument
        Name of the argument, for the message.

    Raises
    ------
    InvalidTypeError
        If it has another type.
    """
    if not isinstance(data, AnnData | SpatialData):
        raise InvalidTypeError(f"{argument} must be AnnData or SpatialData, got {_described(data)}.", *_ways_out(data))


def check_table(adata: Any, *, argument: str = "adata") -> None:
    """Refuse anything but AnnData.

    Raises
    ------
    InvalidTypeError
        If it has another type.
    """
    if isinstance(adata, SpatialData):
        raise InvalidTypeError(
            f"{argument} must be AnnData, got a SpatialData object.",
            f"pass one of its tables: {sorted(adata.tables)}",
        )
    if not isinstance(adata, AnnData):
        raise InvalidTypeError(f"{argument} must be AnnData, got {_described(adata)}.", *_ways_out(adata))


def _ways_out(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | PathLike):
        return "read a .zarr store with spatialdata.read_zarr", "read a slide or picture with st_predict.io.read_image"
    if isinstance(value, list | tuple | dict):
        members = "sections.values()" if isinstance(value, dict) else "sections"
        return (f"call this function once per member: for section in {members}: ...",)
    return ()


def _described(value: Any) -> str:
    if isinstance(value, str | PathLike):
        return f"the path {str(value)!r}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"


def share_arrays(table: AnnData) -> AnnData:
    """Return an object that shares arrays, but whose columns and keys can be changed."""
    shared = AnnData(
        table.X,
        obs=table.obs.copy(),
        var=table.var.copy(),
        uns=dict(table.uns),
        obsm=dict(table.obsm),
        varm=dict(table.varm),
        layers=dict(table.layers),
        obsp=dict(table.obsp),
        varp=dict(table.varp),
    )
    if table.raw is not None:
        shared.raw = table.raw.to_adata()
    return shared
