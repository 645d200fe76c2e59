"""View of a section for plots: coarse image and spots, in level-0 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import shapely
from matplotlib.collections import EllipseCollection, PolyCollection
from PIL import Image
from scipy.spatial import KDTree
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation

from st_predict import get
from st_predict._errors import InvalidValueError
from st_predict._rows import regions_of
from st_predict._validated import Flag, Fraction, NotNegative, Number, Positive, check
from st_predict.io import find_image, find_mpp, find_region, open_pyramid, read_spots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._where import Where
    from st_predict.io import PyramidReader, Spots

__all__ = [
    "PANEL_WIDTH",
    "MapStyle",
    "View",
    "draw_spots",
    "draw_tissue",
    "faded",
    "map_height",
    "read_section",
    "read_view",
]

PANEL_WIDTH = 2.0
"""Width of a map in inches."""

MAX_SIDE = 1200
"""Pixels of the longer side of a view; up to twice as many are read, more are invisible in a figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapStyle:
    """Look of a section in maps.

    Parameters
    ----------
    tissue
        Whether the H&E image is also drawn in its colours.
    strength
        Strength of the grey tissue under the spots: 0 is white, 1 is not faded.
    scale
        Size of the spots relative to their true size.
    percentiles
        Ends of colour scales, as percentiles of their values.
    margin
        Space around the spots, as a fraction of their extent; ``None`` shows the whole image.
    raster
        Whether spots are drawn as an image; ``None`` if they are many.
    """

    tissue: bool
    strength: float
    scale: float
    percentiles: tuple[float, float]
    margin: float | None
    raster: bool | None

    @classmethod
    def of(
        cls,
        *,
        tissue: bool,
        strength: float,
        scale: float,
        percentiles: tuple[float, float],
        margin: float | None,
        raster: bool | None,
    ) -> MapStyle:
        """Refuse invalid options before a figure is made."""
        low, high = check("percentiles", percentiles, tuple[Number, Number])
        if not 0 <= low < high <= 100:
            raise InvalidValueError(f"percentiles must be two rising numbers from 0 to 100, got {percentiles}.")
        return cls(
            tissue=check("tissue", tissue, Flag),
            strength=check("tissue_strength", strength, Fraction),
            scale=check("spot_scale", scale, Positive),
            percentiles=(low, high),
            margin=check("margin", margin, NotNegative | None),
            raster=check("raster", raster, Flag | None),
        )


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A section, ready to be drawn.

    Parameters
    ----------
    pixels
        ``(height, width, 3)`` uint8: image.
    box
        Left, top, right and bottom of ``pixels``, in level-0 pixels.
    spots
        Names and centres.
    rows
        ``(n_spots,)``: rows of the table of the prediction.
    outlines
        ``(n_spots,)`` radii, or one ``(n_corners, 2)`` polygon per spot, in level-0 pixels.
    mpp
        Micrometres per level-0 pixel, if known.
    """

    pixels: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    spots: Spots
    rows: NDArray[np.int64]
    outlines: NDArray[np.float64] | list[NDArray[np.float64]]
    mpp: float | None

    @property
    def width(self) -> float:
        """Width of the view in level-0 pixels."""
        return self.box[2] - self.box[0]

    @property
    def aspect(self) -> float:
        """Height of the view relative to its width."""
        return (self.box[3] - self.box[1]) / self.width


def map_height(aspect: float) -> float:
    """Return the height of a map in inches; a low one still has room for the numbers of a colour bar."""
    return max(PANEL_WIDTH * aspect, 0.8)


def read_section(
    sdata: SpatialData,
    key: str,
    where: Where,
    *,
    margin: float | None,
) -> View:
    """Read the view of a section that has a prediction.

    Parameters
    ----------
    sdata
        Object with image, spots and prediction.
    key
        Key of the prediction.
    where
        Table of the spots, image, and region of a table that annotates several.
    margin
        Space around the spots, as a fraction of their extent; ``None`` shows the whole image.
    """
    region, table_key = where.shapes_key, where.table_key
    holder = get.table_of(sdata, key, table_key=table_key)
    # plots do not accept a mapping
    image_key = find_image(sdata, cast("str | None", where.image_key), region=find_region(sdata, holder, region))
    reader = open_pyramid(sdata, image_key)
    spots = read_spots(sdata, image_key=image_key, table_key=holder, region=region)
    pixels, box = read_view(reader, _view(reader, spots, margin))
    # the table of the counts knows the assay
    described = get.spots_table_of(sdata, holder, table_key=table_key) or holder
    mpp = find_mpp(sdata, image_key=image_key, table_key=described, shapes_key=region)
    table = sdata.tables[holder]
    rows = np.arange(table.n_obs) if region is None else np.flatnonzero(regions_of(table) == region)
    outlines = _read_outlines(sdata, spots, rows, table_key=holder, image_key=image_key)
    return View(
        pixels=pixels, box=box, spots=spots, rows=rows, outlines=outlines, mpp=None if mpp is None else mpp.value
    )


def _view(reader: PyramidReader, spots: Spots, margin: float | None) -> tuple[float, float, float, float]:
    height, width = reader.level_shapes[0]
    if margin is None:
        return 0, 0, width, height
    low, high = spots.xy.min(axis=0), spots.xy.max(axis=0)
    # a single spot has no extent
    around = max(margin * float((high - low).max()), 0.01 * width)
    (left, top), (right, bottom) = low - around, high + around
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise InvalidValueError(
            f"All spots are outside the image ({width} x {height} px); the first is at {spots.xy[0]}."
        )
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def read_view(
    reader: PyramidReader, box: tuple[float, float, float, float]
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """Read a region of an image, no finer than a figure can show.

    Parameters
    ----------
    reader
        The image.
    box
        Left, top, right and bottom in level-0 pixels, inside the image.

    Returns
    -------
    tuple of ndarray and tuple
        Pixels ``(height, width, 3)`` uint8, and the exact box that they cover: ``box`` extended to whole pixels.
    """
    side = max(box[2] - box[0], box[3] - box[1])
    level = max((i for i, d in enumerate(reader.downsamples) if side / d >= MAX_SIDE), default=0)
    downsample, (height, width) = reader.downsamples[level], reader.level_shapes[level]
    left, top = (max(0, int(edge / downsample)) for edge in box[:2])
    right, bottom = min(width, -int(-box[2] // downsample)), min(height, -int(-box[3] // downsample))
    factor = max(1, max(right - left, bottom - top) // MAX_SIDE)
    # in bands, so that an image without coarse levels is never in memory whole
    band = factor * max(1, 1024 // factor)
    rows = [
        _reduce(reader.read(left, y, right - left, min(band, bottom - y), level=level), factor)
        for y in range(top, bottom, band)
    ]
    covered = (left * downsample, top * downsample, right * downsample, bottom * downsample)
    return np.concatenate(rows), covered


def _reduce(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))


def _read_outlines(
    sdata: SpatialData, spots: Spots, rows: NDArray[np.int64], *, table_key: str, image_key: str
) -> NDArray[np.float64] | list[NDArray[np.float64]]:
    """Radii of circles, or polygons, of the spots, in level-0 pixels."""
    obs = sdata.tables[table_key].obs.iloc[rows]
    _, region_key, instance_key = get_table_keys(sdata.tables[table_key])
    region = str(obs[region_key].iloc[0])
    if region not in sdata.shapes:
        return _display_radii(spots)
    if (radius := spots.check_radius(region)) is not None:
        return radius
    shapes = sdata.shapes[region].loc[obs[instance_key]]
    matrix = _to_image(sdata.shapes[region], sdata.images[image_key])
    return [corners @ matrix[:2, :2].T + matrix[:2, 2] for corners in _corners(shapes.geometry.to_numpy())]


def _display_radii(spots: Spots) -> NDArray[np.float64]:
    """Return display radii; points get a radius of a quarter of the distance to their neighbours."""
    if len(spots) < 2:
        return np.full(len(spots), 1.0)
    distances, _ = KDTree(spots.xy).query(spots.xy, k=2)
    return np.full(len(spots), np.median(distances[:, 1]) / 4)


def _to_image(element: Any, image: Any) -> NDArray[np.float64]:
    """Return the affine matrix ``(3, 3)``; reading the centres checked that shared coordinate systems agree."""
    of_element, of_image = get_transformation(element, get_all=True), get_transformation(image, get_all=True)
    system = min(of_element.keys() & of_image.keys())
    element_matrix, image_matrix = (t[system].to_affine_matrix(("x", "y"), ("x", "y")) for t in (of_element, of_image))
    return np.linalg.solve(np.asarray(image_matrix, np.float64), np.asarray(element_matrix, np.float64))


def _corners(shapes: Any) -> list[NDArray[np.float64]]:
    """Corners of polygons, or of the hulls of several polygons."""
    polygons = np.where(
        shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON, shapes, shapely.convex_hull(shapes)
    )
    corners, of_shape = shapely.get_coordinates(shapely.get_exterior_ring(polygons), return_index=True)
    return np.split(corners, np.flatnonzero(np.diff(of_shape)) + 1)


def draw_tissue(axes: Axes, section: View, *, strength: float = 1.0, grey: bool = False) -> None:
    """Draw the tissue without axes; ``strength`` 0 is white, 1 is not faded."""
    pixels = faded(section.pixels, strength=strength, grey=grey)
    left, top, right, bottom = section.box
    axes.imshow(pixels, extent=(left, right, bottom, top), interpolation="antialiased")
    axes.set_axis_off()


def faded(pixels: NDArray[np.uint8], *, strength: float, grey: bool) -> NDArray[np.uint8]:
    """Return pixels mixed with white; ``strength`` 0 is white, 1 is not faded."""
    if grey:
        pixels = np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., None], 3, axis=2)
    table = np.rint(255 - strength * (255.0 - np.arange(256))).astype(np.uint8)
    return table[pixels]


def draw_spots(axes: Axes, section: View, shown: NDArray[np.bool_], *, scale: float = 1.0, **style: Any) -> Collection:
    """Draw some of the spots in their shapes.

    Parameters
    ----------
    axes
        Axes with level-0 pixels as data units.
    section
        Section of the spots.
    shown
        ``(n_spots,)``, True where a spot is drawn.
    scale
        Size of the spots relative to their true size.
    style
        Look of the collection: ``array``, ``norm`` and ``cmap``, or ``facecolors``, of the shown spots.
    """
    collection: Collection
    if isinstance(section.outlines, np.ndarray):
        width = 2 * scale * section.outlines[shown]
        collection = EllipseCollection(
            width,
            width,
            np.zeros_like(width),
            units="xy",
            offsets=section.spots.xy[shown],
            offset_transform=axes.transData,
            **style,
        )
    else:
        centres = section.spots.xy
        corners = [c + scale * (o - c) for o, c, s in zip(section.outlines, centres, shown, strict=True) if s]
        alike = len({len(polygon) for polygon in corners}) == 1  # faster as one array
        vertices: Any = np.stack(corners) if alike else corners
        collection = PolyCollection(vertices, **style)
    axes.add_collection(collection, autolim=False)
    return collection
