"""Micrometres per pixel of an image, and where the number comes from. It is never guessed."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
from pandas.api.types import is_numeric_dtype
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation

from st_predict._containers import check_slide
from st_predict._errors import InvalidValueError, StPredictError
from st_predict._keys import Keys
from st_predict._validated import Flag, Positive, Text, check
from st_predict.io._bins import bin_side, largest_bins
from st_predict.io._candidates import CELLS_OF_BINS
from st_predict.io._micrometres import in_micrometres
from st_predict.io._plausible import check_range, compare
from st_predict.io._pyramid import image_attrs
from st_predict.io._resolution import ARGUMENT, GIVE, SPOTS, Mpp
from st_predict.io._select import find_image, find_region, find_table, regions_of
from st_predict.io._spots import axes_matrix, read_spots, unit_in_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["GIVE", "Mpp", "find_mpp", "lattice_pitch", "square_pixels"]

logger = logging.getLogger(__name__)

MICROMETRES = {"um", "µm", "μm", "micrometer", "micrometers", "micrometre", "micrometres", "micron", "microns"}
"""Names of a coordinate system in micrometres; the two Greek letters are different characters."""

ANISOTROPY_TOLERANCE = 0.01
"""Largest relative difference between the width and the height of a pixel."""

PITCH_UM = {"visium": 100.0, "legacy_st": 200.0}
"""Distance between neighbouring spots. Visium HD has several."""

ASSAYS = [*PITCH_UM, "visium_hd"]

SET_UM = f"set a transformation of the image to a coordinate system called {Keys.UM!r}"


@overload
def find_mpp(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    mpp: float | Literal["spots"] | None = None,
    required: Literal[True],
) -> Mpp: ...
@overload
def find_mpp(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    mpp: float | Literal["spots"] | None = None,
    required: bool = False,
) -> Mpp | None: ...
def find_mpp(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    mpp: float | Literal["spots"] | None = None,
    required: bool = False,
) -> Mpp | None:
    """Find micrometres per pixel of level 0 of an image.

    Sources are tried in this order: the argument; a coordinate system of the image called ``"um"``, ``"micrometers"`` or
    similar; the attribute ``"mpp"`` of the image; the distance between neighbouring spots, if the table names the assay. The
    first one with a value is taken and compared with the others.

    Parameters
    ----------
    sdata
        Object with the image.
    image_key
        Name of the image; by default the one that :func:`find_image` finds.
    table_key
        Name of the table of the spots. Its ``.uns["assay"]`` is ``"visium"`` (100 um between spots), ``"legacy_st"``
        (200 um) or
        ``"visium_hd"`` (with the side of its bins in ``.uns["bin_um"]``). Tables made by ``spatialdata_io.visium``, ``visium_hd``
        and ``xenium`` are recognised without it.
    shapes_key
        Region of the table, if the table annotates several. Shapes that the table does not annotate are ignored.
    mpp
        A number to use, or ``"spots"`` to use the distance between spots instead of the resolution of the image.
    required
        Whether an unknown resolution is an error.

    Returns
    -------
    Mpp or None
        The number and its source, or ``None`` if nothing is known and ``required`` is false.

    Raises
    ------
    KeyError
        If the image or table does not exist.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If a source has an impossible value: mpp that is not positive, pixels that are not square, spots that do not lie on
        the lattice of the assay, an unknown assay. If ``required`` is true or ``mpp`` is given: if the number lies outside
        0.05 to 50, or another source differs from it by a factor of more than 5 (only the spots, if ``mpp`` is a number). If
        nothing is known and ``required`` is true.

    Notes
    -----
    Numbers outside 0.1 to 20, and sources that differ by more than 10 %, are logged as warnings.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.io.find_mpp(sdata)
    Mpp(value=1.2, source="coordinate system 'um'")
    >>> stp.io.find_mpp(sdata, mpp="spots").source
    'distance between spots (legacy_st: 200 um, 166.67 px)'
    """
    check_slide(sdata)
    table_key, shapes_key = check("table_key", table_key, Text | None), check("shapes_key", shapes_key, Text | None)
    image_key = find_image(sdata, image_key, region=find_region(sdata, table_key, shapes_key))
    check("required", required, Flag)
    found = _find(sdata, image_key, table_key=table_key, shapes_key=shapes_key, mpp=mpp)
    if found is None and required:
        raise InvalidValueError(
            f"Nothing says how many micrometres a pixel of image {image_key!r} has.",
            GIVE,
            SET_UM,
            f"set table.uns[{Keys.ASSAY!r}] to one of {ASSAYS}, so that the distance between spots says it",
            *_bins_say_it(sdata),
        )
    if found is not None:
        check_range(found, image_key, refuse=required or mpp is not None)
    if found is not None and (required or mpp is not None):
        compare(found, _other_sources(sdata, image_key, found, table_key=table_key, region=shapes_key), image_key)
    if found is not None and required:
        logger.info("Image %r: %.6g um per pixel, from %s.", image_key, found.value, found.source)
    return found


def _bins_say_it(sdata: SpatialData) -> list[str]:
    """Way out for cells of Visium HD that were read without the bins."""
    if not any(CELLS_OF_BINS.match(name) for name in sdata.tables):
        return []
    return ["read the bins as well, with load_segmentations_only=False of spatialdata_io.visium_hd"]


def _find(
    sdata: SpatialData,
    image_key: str,
    *,
    table_key: str | None,
    shapes_key: str | None,
    mpp: float | Literal["spots"] | None,
) -> Mpp | None:
    if isinstance(mpp, str) and mpp == "spots":
        return _from_spots(sdata, image_key, find_table(sdata, table_key), shapes_key)
    if isinstance(mpp, str):
        raise InvalidValueError(f"mpp must be a number, 'spots' or None, got {mpp!r}.")
    if mpp is not None:
        return Mpp(mpp, ARGUMENT)
    image = sdata.images[image_key]
    found = next(_from_coordinate_systems(image), None) or _from_attrs(image)
    if found is not None:
        return found
    name = find_table(sdata, table_key) if table_key or len(sdata.tables) else None
    if name is not None and _assay(sdata.tables[name]) is not None:
        return _from_spots(sdata, image_key, name, shapes_key)
    if name is not None and (of_cells := _from_cells(sdata, image_key, name, shapes_key)) is not None:
        return of_cells
    return _from_bins(sdata, image_key)


def _from_cells(sdata: SpatialData, image_key: str, table_key: str, region: str | None) -> Mpp | None:
    """Resolution from cells that their reader keeps in micrometres."""
    found = in_micrometres(sdata, sdata.tables[table_key], region)
    if found is None or not _share(sdata[found[0]], sdata.images[image_key]):
        return None
    scale = unit_in_image(sdata, found[0], image_key)
    return Mpp(1 / scale, f"micrometres of {found[0]!r} ({found[1]})")


def _from_bins(sdata: SpatialData, image_key: str) -> Mpp | None:
    """Resolution from the bins of Visium HD beside a table of its cells."""
    name = largest_bins(sdata)
    if name is None or len(regions_of(sdata.tables[name])) != 1:
        return None
    region = regions_of(sdata.tables[name])[0]
    if region not in sdata or not _share(sdata[region], sdata.images[image_key]):
        return None
    return _from_spots(sdata, image_key, name, region)


def _share(first: Any, second: Any) -> bool:
    return bool(set(get_transformation(first, get_all=True)) & set(get_transformation(second, get_all=True)))


def _other_sources(
    sdata: SpatialData, image_key: str, found: Mpp, *, table_key: str | None, region: str | None
) -> Iterator[Mpp]:
    """Resolutions from other sources than that in ``found``, as far as they can be read."""
    image = sdata.images[image_key]

    def from_spots() -> Iterator[Mpp]:
        name = find_table(sdata, table_key)
        if name is not None and _assay(sdata.tables[name]) is not None:
            yield _from_spots(sdata, image_key, name, region)

    def from_attrs() -> Iterator[Mpp]:
        other = _from_attrs(image)
        if other is not None:
            yield other

    def from_systems() -> Iterator[Mpp]:
        return _from_coordinate_systems(image)

    for read in (from_systems, from_attrs, from_spots):
        try:
            yield from (other for other in read() if other.source != found.source)
        except StPredictError as error:  # not asked for, so no reason to stop
            logger.info("Not compared with the mpp of image %r: %s", image_key, error.found)


def _from_coordinate_systems(image: Any) -> Iterator[Mpp]:
    transformations: dict[str, Any] = get_transformation(image, get_all=True)
    for system, transformation in transformations.items():
        if system.casefold() in MICROMETRES:
            matrix = axes_matrix(transformation, f"of the image to {system!r}")
            large, small = np.linalg.svd(matrix[:2, :2], compute_uv=False)
            source = f"coordinate system {system!r}"
            yield Mpp(square_pixels(float(large), float(small), source), source)


def _from_attrs(image: Any) -> Mpp | None:
    value = image_attrs(image).get(Keys.MPP)
    if value is None:
        return None
    source = f"attribute {Keys.MPP!r} of the image"
    try:
        x, y = np.broadcast_to(np.asarray(value, dtype=np.float64), (2,))
    except (TypeError, ValueError):
        raise InvalidValueError(
            f"mpp must be a positive number, or one for x and one for y, got {value!r} from {source}.", GIVE, SET_UM
        ) from None
    return Mpp(square_pixels(float(x), float(y), source), source)


def square_pixels(x: float, y: float, source: str) -> float:
    """Return the side of a pixel, if it is a square."""
    if not abs(x - y) <= ANISOTROPY_TOLERANCE * max(abs(x), abs(y)):
        raise InvalidValueError(
            f"Pixels are not square: {x:.6g} by {y:.6g} um, from {source}.", "resample the image", GIVE
        )
    return (x + y) / 2


def _from_spots(sdata: SpatialData, image_key: str, table_key: str | None, region: str | None) -> Mpp:
    if table_key is None:
        raise InvalidValueError(
            "The distance between spots was asked for, and sdata has no table of spots.", GIVE, SET_UM
        )
    assay = _assay(sdata.tables[table_key])
    if assay is None:
        raise InvalidValueError(
            f"The distance between the spots of table {table_key!r} is unknown.",
            f"set its uns[{Keys.ASSAY!r}] to one of {ASSAYS}",
            GIVE,
        )
    pitch_um = _pitch_um(sdata.tables[table_key], assay)
    # shapes that the table does not annotate, such as a grid, do not keep it from telling the pitch
    region = region if region in regions_of(sdata.tables[table_key]) else None
    spots = read_spots(sdata, image_key=image_key, table_key=table_key, region=region)
    if spots.grid is None:
        raise InvalidValueError(
            f"The distance between spots cannot be measured: table {table_key!r} has no complete columns "
            f"{Keys.ARRAY_ROW!r} and {Keys.ARRAY_COL!r}.",
            GIVE,
            SET_UM,
        )
    try:
        pitch = lattice_pitch(spots.xy, spots.grid, hexagonal=assay == "visium")
    except StPredictError as error:
        raise InvalidValueError(
            f"Table {table_key!r}: {error.found}", f"correct its uns[{Keys.ASSAY!r}]", GIVE, SET_UM
        ) from error
    return Mpp(pitch_um / pitch, f"{SPOTS} ({assay}: {pitch_um:g} um, {pitch:.2f} px)")


def _assay(table: AnnData) -> str | None:
    if Keys.ASSAY in table.uns:
        return str(table.uns[Keys.ASSAY])
    if bin_side(table) is not None:
        return "visium_hd"
    return "visium" if _is_visium_of_spatialdata_io(table) else None


def _is_visium_of_spatialdata_io(table: AnnData) -> bool:
    """Whether this is a table of ``spatialdata_io.visium``, or of :func:`from_anndata`.

    Only that reader, and :func:`from_anndata`, call their instances so beside Space Ranger's three columns, and of the
    assays of Space Ranger only Visium has spots where row + column is even, everywhere.
    """
    try:
        *_, instance_key = get_table_keys(table)
    except ValueError:
        return False
    columns = [Keys.IN_TISSUE, Keys.ARRAY_ROW, Keys.ARRAY_COL]
    if instance_key not in {"spot_id", Keys.SPOT} or not set(columns) <= set(table.obs.columns) or table.n_obs == 0:
        return False
    place = table.obs[[Keys.ARRAY_ROW, Keys.ARRAY_COL]]
    if not all(is_numeric_dtype(dtype) for dtype in place.dtypes):
        return False
    return bool((place.sum(axis=1) % 2 == 0).all())


def _pitch_um(table: AnnData, assay: str) -> float:
    if assay in PITCH_UM:
        return PITCH_UM[assay]
    if assay != "visium_hd":
        raise InvalidValueError(
            f"Unknown assay {assay!r} in uns[{Keys.ASSAY!r}]; known are {ASSAYS}.", "correct it", GIVE, SET_UM
        )
    side = bin_side(table)
    if Keys.BIN_UM not in table.uns and side is not None:
        return side
    if Keys.BIN_UM not in table.uns:
        raise InvalidValueError(
            f"The side of the bins of Visium HD is unknown: there is no uns[{Keys.BIN_UM!r}].",
            "set it, in micrometres",
            GIVE,
            SET_UM,
        )
    return cast("float", check(f"uns[{Keys.BIN_UM!r}]", table.uns[Keys.BIN_UM], Positive))


def lattice_pitch(xy: NDArray[np.float64], grid: NDArray[np.float64 | np.int64], *, hexagonal: bool = False) -> float:
    """Distance between neighbouring spots, by regression of their centres on their place on the lattice.

    Parameters
    ----------
    xy
        ``(n_spots, 2)``: centres.
    grid
        ``(n_spots, 2)``: row and column. They need not be whole numbers.
    hexagonal
        Whether rows are shifted by half a pitch and columns count half pitches, as in Visium.

    Returns
    -------
    float
        The distance, in the units of ``xy``.

    Raises
    ------
    ValueError
        If the spots do not span a lattice, or lie on none of this kind.
    """
    # rows of a hexagonal lattice are sqrt(3) / 2 pitches apart
    unit = np.array([math.sqrt(3) / 2, 0.5]) if hexagonal else np.ones(2)
    design = np.column_stack([grid * unit, np.ones(len(grid))])
    if np.linalg.matrix_rank(design - design.mean(axis=0) * [1, 1, 0]) < 3:
        raise InvalidValueError("The spots lie on one line of the lattice, which does not tell its pitch.", GIVE)
    steps, residuals = _fit(design, xy)
    pitch = math.sqrt(abs(np.linalg.det(steps)))
    large, small = np.linalg.svd(steps, compute_uv=False)
    if np.median(residuals) > 0.2 * pitch or large - small > 0.05 * large:
        raise InvalidValueError(
            f"The spots lie on no {'hexagonal' if hexagonal else 'square'} lattice: they are {np.median(residuals):.4g} px off "
            f"(median), with steps of {small:.4g} to {large:.4g} px.",
            GIVE,
        )
    return pitch


def _fit(design: NDArray[np.float64], xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps ``(2, 2)`` of the lattice, and how far each spot is from its place; far-off spots do not count."""
    keep = np.ones(len(xy), dtype=bool)
    for _ in range(5):
        coefficients = np.asarray(np.linalg.lstsq(design[keep], xy[keep], rcond=None)[0], np.float64)
        residuals = np.hypot(*(xy - design @ coefficients).T)
        keep = residuals <= 4 * np.median(residuals) + 1e-9 * np.abs(xy).max()
    return coefficients[:2], residuals
