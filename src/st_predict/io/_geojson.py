"""Objects of QuPath, with the values of a result as measurements."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import shapely

from st_predict._errors import NotFoundError
from st_predict._files import whole
from st_predict._validated import Number, Text, check
from st_predict.io._areas import Outline, read_areas
from st_predict.io._colours import Colours, category_colours, check_colours, number_colours
from st_predict.io._columns import check_target, read_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


__all__ = ["write_geojson"]

ObjectType: TypeAlias = Literal["detection", "annotation", "cell", "tile"]

DECIMALS = 2
"""Decimals of coordinates in pixels."""

DIGITS = 6
"""Significant digits of measurements, as many as float32 has."""


def write_geojson(  # noqa: PLR0913  # every one is a keyword
    adata: AnnData,
    path: str | PathLike[str],
    *,
    sdata: SpatialData | None = None,
    genes: Sequence[str] | str | None = None,
    layer: str | None = None,
    color: str | None = None,
    cmap: Colours | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    radius_px: float | None = None,
    outline: Outline | None = None,
    object_type: ObjectType = "detection",
    origin: tuple[float, float] = (0, 0),
    image_key: str | None = None,
    region: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a prediction as objects of QuPath: spots, bins or cells with a colour, and a measurement per gene.

    Coordinates are level-0 pixels of the H&E image, from its upper left corner, x right and y down, as in QuPath. With
    ``sdata``, the outlines are its circles or polygons, mapped to the image through the coordinate system that they
    share. Without it, ``adata.obsm["spatial"]`` is taken as pixels of the full-resolution image, as scanpy and squidpy
    keep them.

    Parameters
    ----------
    adata
        A prediction, as :func:`st_predict.get.prediction` returns it.
    path
        File to write, ``.geojson`` or ``.json``.
    sdata
        Object with the image and the shapes, points or labels that the rows of ``adata`` are linked to.
    genes
        Genes to write as measurements; all by default.
    layer
        Layer of the measurements, such as ``"std"``; by default ``.X``.
    color
        Gene, or column of ``.obs``, for the colours of the objects; by default the first of ``genes``. Categories
        become the class of the objects, in the colours of ``.uns["{column}_colors"]`` if there are any.
    cmap
        Function from numbers of 0 to 1 to colours, such as a colour map of matplotlib. By default viridis.
    vmin
        Lower end of the colour scale; by default the 2nd percentile.
    vmax
        Upper end of the colour scale; by default the 98th percentile.
    radius_px
        Radius of the rows in level-0 pixels; by default the shapes' own. Without any, objects are points.
    outline
        Outline of a row with a centre and a radius: ``"circle"``, the default, as a polygon of 32 corners, ``"square"``
        for bins, or ``"point"``. Polygons and labels keep their outline.
    object_type
        Type of the objects in QuPath. Detections are quick to draw, and coloured by measurement maps; annotations can
        be edited.
    origin
        Corner of the area that QuPath shows, ``(x, y)`` in level-0 pixels, which is subtracted. For slides that QuPath crops to
        the scanned area, such as ``.mrxs``, it is ``openslide.bounds-x`` and ``openslide.bounds-y``.
    image_key
        Image whose pixels are meant; may be left out if there is only one.
    region
        Section to write, if ``adata`` annotates several.
    overwrite
        Whether an existing file is replaced.

    Returns
    -------
    Path
        The path. Values that are NaN are left out, as JSON has none; objects without any value have no colour.

    Raises
    ------
    FileExistsError
        If the file exists and ``overwrite`` is false.
    FileNotFoundError
        If the folder of the file does not exist.
    KeyError
        If a gene, column, layer or element does not exist.
    TypeError
        If ``adata``, ``sdata`` or ``cmap`` is something else.
    ValueError
        If outlines or centres are not known, or an argument is not one of its choices.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2"], out=folder)
    ...     stp.tl.predict(sdata, result)
    ...     prediction = stp.get.prediction(sdata)
    ...     path = stp.io.write_geojson(prediction, Path(folder) / "P1S1.geojson", sdata=sdata, color="GENE1")
    ...     path.name
    'P1S1.geojson'
    """
    target, _ = check_target(path, (".geojson", ".json"), overwrite=overwrite)
    kind = check("object_type", object_type, ObjectType)
    corner = np.array(check("origin", origin, tuple[Number, Number]))
    check_colours(cmap, vmin, vmax)
    values = read_columns(adata, genes, layer)
    areas = read_areas(adata, sdata, image_key=image_key, region=region, radius_px=radius_px, outline=outline)
    values = values.iloc[areas.rows]
    painted = _paint(adata, values, areas.rows, color, layer=layer, cmap=cmap, ends=(vmin, vmax))
    with whole(target, keep_old=not overwrite) as fresh, fresh.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        file.writelines(_separated(_features(values, areas.outlines, painted, kind=kind, origin=corner)))
        file.write("\n]}\n")
    return target


def _paint(
    adata: AnnData,
    values: pd.DataFrame,
    rows: NDArray[np.int64],
    color: str | None,
    *,
    layer: str | None,
    cmap: Colours | None,
    ends: tuple[float | None, float | None],
) -> list[dict[str, Any]]:
    """Properties of each object that are about its colour."""
    color = check("color", color, Text | None) or values.columns[0]
    if color in values or color in adata.var_names:
        column = (values if color in values else read_columns(adata, color, layer).iloc[rows])[color]
    elif color in adata.obs:
        column = adata.obs[color].iloc[rows]
    else:
        raise NotFoundError(
            f"color {color!r} is neither a gene nor a column of .obs; the columns are {sorted(adata.obs)}."
        )
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return _classes(column, adata.uns.get(f"{color}_colors"))
    numbers = column.to_numpy(np.float64)
    colours = number_colours(numbers, cmap=cmap, vmin=ends[0], vmax=ends[1]).tolist()
    return [{"color": one} if there else {} for one, there in zip(colours, np.isfinite(numbers), strict=True)]


def _classes(column: pd.Series, known: Any) -> list[dict[str, Any]]:
    categories = column.astype("category")
    names = [str(name) for name in categories.cat.categories]
    colours = category_colours(names, known)
    classes = [{"classification": {"name": name, "color": colours[name]}} for name in names]
    return [{} if code < 0 else classes[code] for code in categories.cat.codes]


def _features(
    values: pd.DataFrame,
    outlines: NDArray[np.object_],
    painted: list[dict[str, Any]],
    *,
    kind: str,
    origin: NDArray[np.float64],
) -> Iterator[str]:
    geometries = shapely.to_geojson(shapely.transform(outlines, lambda xy: np.round(xy - origin, DECIMALS)))
    genes, numbers = list(values.columns), values.to_numpy()
    for name, geometry, row, colour in zip(values.index, geometries, numbers, painted, strict=True):
        there = np.flatnonzero(np.isfinite(row))
        measured = {genes[place]: float(f"{row[place]:.{DIGITS}g}") for place in there}
        properties = {"objectType": kind, "name": str(name), **colour, "measurements": measured}
        yield f'{{"type": "Feature", "geometry": {geometry}, "properties": {json.dumps(properties)}}}'


def _separated(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f",\n{line}" if number else line
