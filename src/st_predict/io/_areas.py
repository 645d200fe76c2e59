"""Outlines of the rows of a result, in level-0 pixels of an image, for files that other programs open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import shapely
from spatialdata import to_polygons
from xarray import DataArray, DataTree

from st_predict._containers import check_slide, check_table
from st_predict._errors import Advice, InvalidValueError, StPredictError
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict._validated import Positive, Text, check
from st_predict.io._candidates import BINS
from st_predict.io._micrometres import table_in_micrometres
from st_predict.io._mpp import find_mpp
from st_predict.io._pyramid import open_pyramid
from st_predict.io._select import find_image, regions_of
from st_predict.io._spots import (
    annotated_rows,
    element_of,
    find_instances,
    named_centres,
    to_image_matrices,
    to_image_pixels,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["Areas", "Outline", "read_areas", "resolution_of"]

Outline: TypeAlias = Literal["circle", "square", "point"]

CORNERS = 8
"""Corners per quarter of a circle: the 32-gon is nowhere more than 0.5 % of the radius inside of it."""

_RADIUS = Advice("give their radius with {}", "radius_px")
_WHERE = Advice("name the object that the prediction is of with {}", "sdata")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Areas:
    """Where the rows of a result are, in level-0 pixels of an image.

    Parameters
    ----------
    rows
        ``(n,)``: rows of the result, rising.
    centres
        ``(n, 2)``: x and y.
    outlines
        ``(n,)``: a polygon per row, or a point if the row has no extent.
    shape
        ``(height, width)`` of level 0, if the image is known.
    image_key
        Name of the image, if there is one.
    region
        Name of the shapes, points or labels, if there are any.
    """

    rows: NDArray[np.int64]
    centres: NDArray[np.float64]
    outlines: NDArray[np.object_]
    shape: tuple[int, int] | None = None
    image_key: str | None = None
    region: str | None = None

    def check_extent(self) -> None:
        """Refuse rows without an area.

        Raises
        ------
        ValueError
            If a row is a point.
        """
        points = np.flatnonzero(shapely.get_dimensions(self.outlines) < 2)
        if points.size:
            raise InvalidValueError(
                f"{points.size} of {len(self.rows)} rows are points without an area.", _RADIUS, _WHERE
            )


def read_areas(
    adata: AnnData,
    sdata: SpatialData | None,
    *,
    image_key: str | None = None,
    region: str | None = None,
    radius_px: float | None = None,
    outline: Outline | None = None,
) -> Areas:
    """Find the outlines of the rows of a result.

    Parameters
    ----------
    adata
        The result. Without ``sdata``, ``.obsm["spatial"]`` are the centres in level-0 pixels.
    sdata
        Object whose shapes, points or labels the rows are.
    image_key
        Image whose pixels are meant.
    region
        Section of a result that annotates several.
    radius_px
        Radius of all rows, in level-0 pixels.
    outline
        How a row with a centre and a radius is drawn; by default as a circle, and without a radius as a point.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the outlines are not known; see :func:`st_predict.io.read_spots`.
    """
    check_table(adata)
    outline, radius_px = check("outline", outline, Outline | None), check("radius_px", radius_px, Positive | None)
    image_key, region = check("image_key", image_key, Text | None), check("region", region, Text | None)
    if sdata is None:
        for name, value in (("image_key", image_key), ("region", region)):
            if value is not None:
                raise InvalidValueError(f"{name} names an element of a SpatialData object, and none is given.", _WHERE)
        rows, centres = np.arange(adata.n_obs), _own_centres(adata)
        return Areas(rows=rows, centres=centres, outlines=_drawn(centres, radius_px, outline))
    check_slide(sdata)
    return _linked(adata, sdata, image_key, region, radius_px=radius_px, outline=outline)


def resolution_of(adata: AnnData, areas: Areas, sdata: SpatialData | None, mpp: float | None) -> float | None:
    """Micrometres per pixel of level 0: of the caller, of the prediction, or what the object says.

    Parameters
    ----------
    adata
        A result.
    areas
        Its rows.
    sdata
        Object that they are linked to.
    mpp
        Value of the caller.

    Returns
    -------
    float or None
        ``None`` if nothing says it.

    Raises
    ------
    ValueError
        If ``mpp`` is not positive, or what ``sdata`` says is impossible.
    """
    given: float | None = check("mpp", mpp, Positive | None)
    if sdata is None or areas.region is None:
        return given
    if given is None and (recorded := _recorded(adata, areas)) is not None:
        return recorded
    tables = sorted(
        name
        for name, table in sdata.tables.items()
        if areas.region in regions_of(table) and not Record.is_result(table.uns, name)
    )
    if not tables:
        found = find_mpp(sdata, image_key=areas.image_key, mpp=given)
    else:
        found = find_mpp(sdata, image_key=areas.image_key, table_key=tables[0], shapes_key=areas.region, mpp=given)
    return None if found is None else found.value


def _recorded(adata: AnnData, areas: Areas) -> float | None:
    """Resolution that the image was read at for a prediction; ``None`` unless its record names the image."""
    found = set()
    for key in Record.keys(adata.uns):
        try:
            record = Record.read(adata.uns, key)
        except StPredictError:  # of a newer version
            continue
        sections = [] if record is None else record.params.get("sections", [])
        found |= {
            s.get("mpp") for s in sections if (s.get("region"), s.get("image")) == (areas.region, areas.image_key)
        }
    return float(found.pop()) if len(found) == 1 and None not in found else None


def _own_centres(adata: AnnData) -> NDArray[np.float64]:
    """``(n, 2)``: centres as scanpy and squidpy keep them, in pixels of the full-resolution image."""
    if Keys.SPATIAL not in adata.obsm:
        raise InvalidValueError(f"adata has no centres in .obsm[{Keys.SPATIAL!r}].", _WHERE)
    if (assay := table_in_micrometres(adata)) is not None:
        raise InvalidValueError(
            f".obsm[{Keys.SPATIAL!r}] of {assay} is in micrometres, not in pixels of the image.", _WHERE
        )
    centres = np.asarray(adata.obsm[Keys.SPATIAL], np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise InvalidValueError(
            f".obsm[{Keys.SPATIAL!r}] must be (n_obs, 2) finite numbers, got the shape {centres.shape}.", _WHERE
        )
    return centres


def _linked(
    adata: AnnData,
    sdata: SpatialData,
    image_key: str | None,
    region: str | None,
    *,
    radius_px: float | None,
    outline: Outline | None,
) -> Areas:
    obs, region, instance_key = annotated_rows(adata, "adata", region)
    image_key = find_image(sdata, image_key, region=region)
    image, element = sdata.images[image_key], element_of(sdata, region)
    index, centres = named_centres(element, region)
    place = find_instances(index, obs[instance_key], region)
    xy, _ = to_image_pixels(centres[place], obs.index, element=element, image=image, key=region)
    if radius_px is not None or outline == "point":
        outlines = _drawn(xy, radius_px, outline)
    else:
        matrix = next(iter(to_image_matrices(element, image, region).values()))
        outlines = _moved(_own_outlines(element, region, obs[instance_key], place, outline=outline), matrix)
    return Areas(
        rows=_rows_of(adata, region),
        centres=xy,
        outlines=outlines,
        shape=open_pyramid(sdata, image_key).level_shapes[0],
        image_key=image_key,
        region=region,
    )


def _rows_of(adata: AnnData, region: str) -> NDArray[np.int64]:
    return np.flatnonzero(adata.obs[adata.uns["spatialdata_attrs"]["region_key"]] == region)


def _own_outlines(
    element: Any, region: str, instances: pd.Series, place: NDArray[np.intp], *, outline: Outline | None
) -> NDArray[np.object_]:
    """Outlines of instances in the coordinates of their element."""
    if isinstance(element, DataArray | DataTree):
        _check_round(region, outline)
        # to_polygons counts from the centre of a pixel, as spatialdata.rasterize_bins does
        shift = 0.0 if BINS.search(region) else 0.5
        polygons = to_polygons(element).geometry.loc[instances].to_numpy()
        return np.asarray(shapely.transform(polygons, lambda xy: xy + shift))
    if not hasattr(element, "geometry"):
        xy = named_centres(element, region)[1][place]
        return _drawn(xy, None, outline)
    shapes = element.iloc[place]
    if (shapes.geom_type != "Point").any():
        _check_round(region, outline)
        return shapes.geometry.to_numpy()
    radius = shapes["radius"].to_numpy(np.float64) if "radius" in shapes else None
    if radius is not None and not (np.isfinite(radius) & (radius > 0)).all():
        raise InvalidValueError(f"Radii of {region!r} must be positive and finite.", _RADIUS)
    return _drawn(shapes.get_coordinates().to_numpy(), radius, outline)


def _check_round(region: str, outline: Outline | None) -> None:
    if outline is not None:
        raise InvalidValueError(
            f"{region!r} has outlines of its own, so no {outline} is drawn.", Advice("leave out {}", "outline"), _RADIUS
        )


def _drawn(
    centres: NDArray[np.float64], radius: NDArray[np.float64] | float | None, outline: Outline | None
) -> NDArray[np.object_]:
    """Circles, squares or points around centres."""
    if outline in {"circle", "square"} and radius is None:
        raise InvalidValueError(f"A {outline} needs a radius, and the rows have none.", _RADIUS, _WHERE)
    points = shapely.points(centres)
    if radius is None or outline == "point":
        return points
    if outline == "square":
        (x, y), half = centres.T, np.asarray(radius, np.float64)
        return np.asarray(shapely.box(x - half, y - half, x + half, y + half))
    return np.asarray(shapely.buffer(points, radius, quad_segs=CORNERS))


def _moved(outlines: NDArray[np.object_], matrix: NDArray[np.float64]) -> NDArray[np.object_]:
    """Outlines under a ``(3, 3)`` transformation."""
    return np.asarray(shapely.transform(outlines, lambda xy: xy @ matrix[:2, :2].T + matrix[:2, 2]))
