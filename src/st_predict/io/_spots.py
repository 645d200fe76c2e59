"""Where the spots are, in level-0 pixels of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation
from xarray import DataArray, DataTree

from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._validated import Natural, Text, check
from st_predict.io._candidates import BINS
from st_predict.io._label_centres import label_centres
from st_predict.io._lattice import read_lattice
from st_predict.io._mapping import check_mapped
from st_predict.io._select import find_image, find_shapes, find_table

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = [
    "Spots",
    "annotated_rows",
    "axes_matrix",
    "element_of",
    "find_instances",
    "named_centres",
    "read_spots",
    "spots_outside",
    "to_image_matrices",
    "to_image_pixels",
    "unit_in_image",
]

SIMILARITY_TOLERANCE = 0.01
"""Largest relative difference between the scales of two axes; alignments by landmarks are not exact similarities."""


@dataclass(frozen=True, slots=True)
class Spots:
    """Spots of one section.

    Parameters
    ----------
    names
        Names of the spots: the ``obs_names`` of their table, or the index of their shapes.
    xy
        Centres in level-0 pixels of the image, x right and y down, ``(n_spots, 2)``. Coordinates are continuous:
        pixel ``j`` covers ``[j, j + 1)``, so its centre is at ``j + 0.5``.
    grid
        Row and column on the lattice of the assay, ``(n_spots, 2)``, if the table or the shapes have them.
    radius
        Radii in level-0 pixels, ``(n_spots,)``, if the shapes are circles; ``None`` for polygons and points.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> spots = stp.io.read_spots(sdata)
    >>> spots.names[0], spots.xy[0].round(1).tolist(), spots.grid[0].tolist()
    ('P1S1_1x1', [106.7, 110.0], [1, 1])
    """

    names: pd.Index[str]
    xy: NDArray[np.float64]
    grid: NDArray[np.int64] | None = None
    radius: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def check_radius(self, region: str) -> NDArray[np.float64] | None:
        """Return the radii; refuse any that is not positive and finite.

        Parameters
        ----------
        region
            Name of the shapes, for the message.

        Raises
        ------
        ValueError
            If a radius is negative, zero, NaN or infinite.
        """
        if self.radius is not None and (bad := np.flatnonzero(~(self.radius > 0) | ~np.isfinite(self.radius))).size:
            raise InvalidValueError(
                f"{len(bad)} of {len(self)} spots of {region!r} have a radius that is not positive and finite; the first is "
                f"{self.names[bad[0]]!r}, with {self.radius[bad[0]]:g} px.",
                f"correct the column 'radius' of sdata.shapes[{region!r}]",
                Advice("give one radius in micrometres as 'radius_um' in {}", "hparams"),
            )
        return self.radius


def read_spots(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    region: str | None = None,
) -> Spots:
    """Read the centres of spots in the pixels of an image.

    The spots are the rows of a table, in its order; without a table, they are shapes. The centre of a polygon or label is its
    centroid. Centres are mapped to the image through a coordinate system that spots and image share. Rotations and reflections
    move the centres only; crops stay parallel to the axes of the image.

    Parameters
    ----------
    sdata
        Object with the image and the spots.
    image_key
        Image whose pixels are used; by default the one that :func:`find_image` finds.
    table_key
        Table that annotates the spots. ``None`` takes the only one, or the one called ``"table"``, unless
        ``shapes_key`` asks for shapes.
    shapes_key
        Without ``table_key``: shapes that are the spots. With ``table_key``: region of the table.
    region
        Section of a table that annotates several.

    Returns
    -------
    Spots
        The spots of one section.

    Raises
    ------
    KeyError
        If a named element does not exist.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If several elements fit; if there are no spots; if names or identifiers are not unique or not found; if
        coordinates are not finite; if spots and image share no coordinate system, or several that disagree; if the
        transformation between them is not a similarity, cannot be inverted, or puts spots on one another or out of
        reach.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> spots = stp.io.read_spots(sdata)
    >>> spots.xy.shape
    (19, 2)
    """
    check_slide(sdata)
    region, shapes_key = check("region", region, Text | None), check("shapes_key", shapes_key, Text | None)
    if table_key is None and shapes_key is not None:
        return _spots_of_shapes(sdata, find_shapes(sdata, shapes_key), image_key)
    name = find_table(sdata, table_key)
    if name is None:
        return _spots_of_shapes(sdata, find_shapes(sdata, None), image_key)
    return _spots_of_table(sdata, name, image_key, region=shapes_key if region is None else region)


def _spots_of_shapes(sdata: SpatialData, key: str, image_key: str | None) -> Spots:
    image = sdata.images[find_image(sdata, image_key, region=key)]
    element = sdata.shapes[key]
    if len(element) == 0:
        raise InvalidValueError(f"Shapes {key!r} are empty.")
    names = element.index.astype(str)
    _check_unique(names, what=f"Index of shapes {key!r}")
    xy, scale = to_image_pixels(_centroids(element), names, element=element, image=image, key=key)
    return Spots(names=names, xy=xy, grid=read_lattice(element), radius=_radii(element, scale))


def _spots_of_table(sdata: SpatialData, table_key: str, image_key: str | None, *, region: str | None) -> Spots:
    table = sdata.tables[table_key]
    obs, region, instance_key = annotated_rows(table, table_key, region)
    image = sdata.images[find_image(sdata, image_key, region=region)]
    _check_unique(obs.index, what=f"obs_names of table {table_key!r}")
    _check_unique(pd.Index(obs[instance_key]), what=f"Column {instance_key!r} of table {table_key!r}")
    element = element_of(sdata, region)
    index, centres = named_centres(element, region)
    rows = find_instances(index, obs[instance_key], region)
    xy, scale = to_image_pixels(centres[rows], obs.index, element=element, image=image, key=region)
    radius = _radii(element, scale)
    return Spots(names=obs.index, xy=xy, grid=read_lattice(obs), radius=None if radius is None else radius[rows])


def annotated_rows(table: AnnData, table_key: str, region: str | None) -> tuple[pd.DataFrame, str, str]:
    """Rows of ``.obs`` in a region, the name of the region, and the column that names the instances."""
    try:
        regions, region_key, instance_key = get_table_keys(table)
    except ValueError:
        regions = None
    if not regions:
        raise InvalidValueError(
            f"Table {table_key!r} does not say which shapes its rows are.",
            "say so with sdata.set_table_annotates_spatialelement",
        )
    choices = [regions] if isinstance(regions, str) else list(regions)
    if region is None and len(choices) > 1:
        raise InvalidValueError(
            f"Table {table_key!r} annotates several regions: {choices}.",
            Advice("choose one with {}", "region"),
            Advice("choose one with {}", "shapes_key"),
            "take a table of one region",
        )
    region = choices[0] if region is None else region
    if region not in choices:
        raise NotFoundError(
            f"Table {table_key!r} has no region {region!r}; it annotates {choices}.",
            f"correct the column {region_key!r} of .obs",
            "say what it annotates with sdata.set_table_annotates_spatialelement",
        )
    if missing := sorted({region_key, instance_key} - set(table.obs.columns)):
        raise NotFoundError(
            f"Table {table_key!r} has no columns {missing} in .obs, which say which shape each row is; it has "
            f"{sorted(table.obs.columns)}.",
            "add them",
            "name others with sdata.set_table_annotates_spatialelement",
        )
    obs = table.obs[table.obs[region_key] == region]
    if obs.empty:
        raise InvalidValueError(f"Table {table_key!r} has no rows in region {region!r}.")
    return obs, region, instance_key


def element_of(sdata: SpatialData, region: str) -> Any:
    """Shapes, points or labels."""
    if region in sdata.shapes:
        return sdata.shapes[region]
    if region in sdata.points:
        return sdata.points[region]
    if region in sdata.labels:
        return sdata.labels[region]
    raise NotFoundError(
        f"No shapes {region!r} in sdata; there are shapes {sorted(sdata.shapes)}, points {sorted(sdata.points)} and labels "
        f"{sorted(sdata.labels)}."
    )


def named_centres(element: Any, region: str) -> tuple[pd.Index[Any], NDArray[np.float64]]:
    """Index and centroids of shapes, points or labels."""
    if isinstance(element, DataArray | DataTree):
        labels, centres = label_centres(element)
        # spatialdata.rasterize_bins maps the corner of a pixel, not its centre, to the centre of a bin
        return labels, centres - 0.5 if BINS.search(region) else centres
    index = element.index if hasattr(element, "geometry") else element.index.compute(scheduler="synchronous")
    return index, _centroids(element)


def find_instances(index: pd.Index[Any], instances: pd.Series, region: str) -> NDArray[np.intp]:
    """Places of instances in the index of their element."""
    _check_unique(index, what=f"Index of {region!r}")
    rows = index.get_indexer(pd.Index(instances))
    missing = instances[rows < 0]
    if len(missing):
        raise InvalidValueError(
            f"{len(missing)} of {len(instances)} rows of the table are not in {region!r}, the first are {_first(missing)} "
            f"(the index of {region!r} is {index.dtype}, the table's {instances.dtype}).",
            f"correct the column {instances.name!r} of .obs",
            "leave these rows out of the table",
        )
    return rows


def _centroids(element: Any) -> NDArray[np.float64]:
    if hasattr(element, "geometry"):
        centroids = element.geometry.centroid
        return np.column_stack([centroids.x, centroids.y]).astype(np.float64)
    return element[["x", "y"]].compute(scheduler="synchronous").to_numpy(dtype=np.float64)


def _radii(element: Any, scale: float) -> NDArray[np.float64] | None:
    """Radii of circles, which are points with a column for that."""
    if not hasattr(element, "geometry") or "radius" not in element or element.geometry.iloc[0].geom_type != "Point":
        return None
    return element["radius"].to_numpy(dtype=np.float64) * scale


def to_image_pixels(
    xy: NDArray[np.float64], names: pd.Index[str], *, element: Any, image: Any, key: str
) -> tuple[NDArray[np.float64], float]:
    """Positions in the image, and how long a unit of length of the element is there."""
    _check_finite(xy, names, key)
    to_image = to_image_matrices(element, image, key)
    mapped = {system: xy @ matrix[:2, :2].T + matrix[:2, 2] for system, matrix in to_image.items()}
    for system, centres in mapped.items():
        check_mapped(xy, centres, key=key, system=system)
    system, result = next(iter(mapped.items()))
    for other, centres in mapped.items():
        if np.abs(centres - result).max() > 0.5:
            raise InvalidValueError(
                f"{key!r} and the image share the coordinate systems {system!r} and {other!r}, which put the spots on "
                "different pixels.",
                "remove the wrong one with spatialdata.transformations.remove_transformation",
            )
    _check_similarity(to_image[system], key)
    return result, float(np.sqrt(abs(np.linalg.det(to_image[system][:2, :2]))))


def unit_in_image(sdata: SpatialData, name: str, image_key: str) -> float:
    """How many level-0 pixels of an image a unit of length of an element is.

    Raises
    ------
    ValueError
        If they share no coordinate system, or the transformation between them is not a similarity.
    """
    matrices = to_image_matrices(sdata[name], sdata.images[image_key], name)
    matrix = next(iter(matrices.values()))
    _check_similarity(matrix, name)
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def to_image_matrices(element: Any, image: Any, key: str) -> dict[str, NDArray[np.float64]]:
    """``(3, 3)`` from element to image, through each coordinate system that they share."""
    of_element: dict[str, Any] = get_transformation(element, get_all=True)
    of_image: dict[str, Any] = get_transformation(image, get_all=True)
    shared = sorted(of_element.keys() & of_image.keys())
    if not shared:
        raise InvalidValueError(
            f"{key!r} and the image share no coordinate system: {key!r} is in {sorted(of_element)}, the image in "
            f"{sorted(of_image)}.",
            "add one with spatialdata.transformations.set_transformation",
        )
    return {
        s: np.asarray(
            np.linalg.solve(
                axes_matrix(of_image[s], f"of the image to {s!r}"), axes_matrix(of_element[s], f"of {key!r} to {s!r}")
            ),
            np.float64,
        )
        for s in shared
    }


def axes_matrix(transformation: Any, which: str) -> NDArray[np.float64]:
    """``(3, 3)`` matrix of a transformation of x and y.

    Parameters
    ----------
    transformation
        From an element to a coordinate system.
    which
        Element and coordinate system, for the message.

    Raises
    ------
    ValueError
        If the matrix is singular or has NaN or infinite entries.
    """
    matrix = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix[:2, :2]) < 2:
        raise InvalidValueError(
            f"The transformation {which} cannot be inverted: its matrix is {matrix.tolist()}.",
            "set another one with spatialdata.transformations.set_transformation",
        )
    return matrix


def _check_finite(xy: NDArray[np.float64], names: pd.Index[str], key: str) -> None:
    bad = names[~np.isfinite(xy).all(axis=1)]
    if len(bad):
        raise InvalidValueError(
            f"{len(bad)} of {len(names)} spots of {key!r} have coordinates that are not numbers, the first are {_first(bad)}.",
            "correct their geometry",
            "leave them out of the table",
        )


def _check_similarity(matrix: NDArray[np.float64], key: str) -> None:
    large, small = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if large - small > SIMILARITY_TOLERANCE * large:
        raise InvalidValueError(
            f"The transformation from {key!r} to the image shears, or scales x and y differently (by {large:.6g} and "
            f"{small:.6g} along its main axes). Crops have one resolution, so only scale, rotation, mirroring and "
            "translation are possible.",
            "resample the image first, with spatialdata.rasterize or another tool",
        )


def _check_unique(index: pd.Index[Any], *, what: str) -> None:
    if not index.is_unique:
        repeated = index[index.duplicated()]
        raise InvalidValueError(
            f"{what} must be unique, but {len(repeated)} entries are repeated, the first are {_first(repeated)}."
        )


def _first(values: Any) -> list[Any]:
    return list(values[:3])


def spots_outside(spots: Spots, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Find the spots whose centre lies outside the image.

    Parameters
    ----------
    spots
        Spots in level-0 pixels.
    shape
        ``(height, width)`` of level 0.

    Returns
    -------
    ndarray
        Boolean array ``(n_spots,)``, True outside.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type or shape.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> spots = stp.io.read_spots(sdata)
    >>> int(stp.io.spots_outside(spots, (300, 880)).sum())
    9
    """
    if not isinstance(spots, Spots):
        raise InvalidTypeError(
            f"spots must be Spots, got {type(spots).__name__}.", "read them with st_predict.io.read_spots"
        )
    height, width = check("shape", shape, tuple[Natural, Natural])
    return np.any((spots.xy < 0) | (spots.xy >= (width, height)), axis=1)
