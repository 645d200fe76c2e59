"""Lattices of spots for unmeasured slides."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import shapely
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError, NoTissueError
from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._validated import Flag, Name, Positive, Share, check
from st_predict.io import find_image, find_mpp, open_pyramid
from st_predict.pp._patterns import Layout, Pattern, lattice_of
from st_predict.pp._tissue import find_tissue

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.io import Mpp
    from st_predict.pp._tissue import Tissue

__all__ = ["make_grid"]

CHUNK = 50_000
"""Number of spots whose tissue is looked up at once."""

logger = logging.getLogger(__name__)


@shows_progress
def make_grid(  # noqa: PLR0913  # every argument is a keyword
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    pattern: Pattern | None = None,
    pitch_um: float | None = None,
    diameter_um: float | None = None,
    mpp: float | None = None,
    layout: Layout | None = None,
    tissue_only: bool = True,
    min_tissue: float = 0.5,
    key_added: str = Keys.GRID,
    progress: bool | None = None,
) -> None:
    """Add a lattice of spots on the tissue of an image, for slides without measured spots.

    Parameters
    ----------
    sdata
        Object with the image.
    image_key
        Key of the RGB image; optional if there is only one, or if several show the same area: then the finest is used.
    pattern
        Lattice of an assay, instead of pitch, diameter and layout: ``"visium"`` (spots of 55 um, 100 um apart,
        hexagonal), ``"visium_hd_2um"``, ``"visium_hd_8um"``, ``"visium_hd_16um"`` (bins side by side) or
        ``"legacy_st"`` (spots of 100 um, 200 um apart).
    pitch_um
        Distance between the centres of neighbouring spots, in micrometres; 100 by default.
    diameter_um
        Diameter of a spot, in micrometres; 55 by default.
    mpp
        Micrometres per pixel (mpp) at level 0; required if :func:`st_predict.io.find_mpp` finds none.
    layout
        ``"square"``, the default, or ``"hex"`` with rows shifted by half a pitch and columns counted in half pitches,
        as in Visium.
    tissue_only
        Whether to keep only spots on the tissue found by :func:`find_tissue`.
    min_tissue
        Minimum share of a spot's area on tissue, from 0 to 1.
    key_added
        Key of the new shapes; must not exist.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    None
        Adds to ``sdata``:

        ``.shapes[key_added]`` : :class:`~geopandas.GeoDataFrame` of circles
            In level-0 pixels, with all transformations of the image. The columns ``array_row`` and ``array_col`` are the
            position on the lattice, which is centred on the image; the index is ``"{array_row}x{array_col}"``.

    Raises
    ------
    KeyError
        If the image does not exist.
    ValueError
        If ``key_added`` exists; ``pattern`` is combined with pitch, diameter or layout; the mpp is unknown; the lattice
        is finer than a pixel or coarser than the image; no tissue is found; or an argument is not one of its choices.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.pp.make_grid(sdata, pattern="visium")
    >>> sorted(sdata["grid"].columns)
    ['array_col', 'array_row', 'geometry', 'radius']
    """
    check_slide(sdata)
    spots = lattice_of(
        check("pattern", pattern, Pattern | None),
        pitch_um=check("pitch_um", pitch_um, Positive | None),
        diameter_um=check("diameter_um", diameter_um, Positive | None),
        layout=check("layout", layout, Layout | None),
    )
    min_tissue = check("min_tissue", min_tissue, Share)
    key_added, tissue_only = check("key_added", key_added, Name), check("tissue_only", tissue_only, Flag)
    if key_added in sdata:
        raise InvalidValueError(
            f"{key_added!r} already exists in sdata.",
            Advice("choose another name with {}", "key_added"),
            "delete it first",
        )
    image_key = find_image(sdata, image_key)
    found = find_mpp(sdata, image_key=image_key, mpp=mpp, required=True)
    shape = open_pyramid(sdata, image_key).level_shapes[0]
    grid, xy = _lattice(shape, spots.pitch_um, found, layout=spots.layout)
    radius = spots.diameter_um / 2 / found.value
    n_places = len(xy)
    if tissue_only:
        tissue = find_tissue(sdata, image_key)
        kept = _share(tissue, xy, radius) >= min_tissue
        _check_any(kept, tissue, image_key=image_key, min_tissue=min_tissue)
        grid, xy = grid[kept], xy[kept]
    sdata.shapes[key_added] = _circles(sdata, grid, xy, radius=radius, image_key=image_key)
    logger.info(
        "Added %d of %d spots as shapes %r (mpp %.4g from %s).", len(xy), n_places, key_added, found.value, found.source
    )


def _lattice(
    shape: tuple[int, int], pitch_um: float, mpp: Mpp, *, layout: Layout
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row and column, and x and y, of every position of a lattice centred on the image."""
    height, width = shape
    pitch = pitch_um / mpp.value
    source = f"at {mpp.value:.4g} um per pixel, from {mpp.source}"
    if pitch < 1:
        raise InvalidValueError(
            f"A pitch of {pitch_um:g} um is {pitch:.3g} px {source}, which is finer than the image.",
            Advice("give a larger one with {}", "pitch_um"),
            Advice("correct the resolution of the image with {}", "mpp"),
        )
    # Visium counts columns in half pitches: neighbours in a row are two columns apart.
    step_y, step_x = (pitch, pitch) if layout == "square" else (pitch * math.sqrt(3) / 2, pitch / 2)
    n_rows, n_columns = int(height // step_y), int(width // step_x)
    if min(height, width) < pitch:
        raise InvalidValueError(
            f"A pitch of {pitch_um:g} um is {pitch:.0f} px {source}, which is larger than the image, {width} x {height} px.",
            Advice("give a smaller one with {}", "pitch_um"),
            Advice("correct the resolution of the image with {}", "mpp"),
        )
    grid = np.stack(np.meshgrid(np.arange(n_rows), np.arange(n_columns), indexing="ij"), axis=-1).reshape(-1, 2)
    if layout == "hex":
        grid = grid[grid.sum(axis=1) % 2 == 0]
    margin = np.array([height - (n_rows - 1) * step_y, width - (n_columns - 1) * step_x]) / 2
    yx = margin + grid * [step_y, step_x]
    return grid, yx[:, ::-1]


def _share(tissue: Tissue, xy: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Share of each spot on tissue, from points spread evenly over it."""
    ticks = np.arange(-4, 5) / 4.5
    offsets = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    offsets = radius * offsets[np.hypot(*offsets.T) <= 1]
    shares = [
        tissue.at(xy[i : i + CHUNK, None] + offsets).mean(axis=1, dtype=np.float64) for i in range(0, len(xy), CHUNK)
    ]
    return np.concatenate(shares)


def _check_any(kept: NDArray[np.bool_], tissue: Tissue, *, image_key: str, min_tissue: float) -> None:
    if not kept.any():
        raise NoTissueError(
            f"No tissue found in image {image_key!r}: {100 * tissue.mask.mean():.2g} % of it is tissue (contrast above "
            f"{tissue.threshold:.3g}), and none of {len(kept)} spots has a share of at least {min_tissue:g} on it.",
            Advice("lower {}", "min_tissue"),
            Advice("take spots everywhere with {}", "tissue_only", value=False),
        )


def _circles(
    sdata: SpatialData, grid: NDArray[np.int64], xy: NDArray[np.float64], *, radius: float, image_key: str
) -> gpd.GeoDataFrame:
    frame = gpd.GeoDataFrame(
        {"radius": radius, Keys.ARRAY_ROW: grid[:, 0], Keys.ARRAY_COL: grid[:, 1]},
        geometry=shapely.points(xy),
        index=[f"{row}x{column}" for row, column in grid],
    )
    transformations = get_transformation(sdata.images[image_key], get_all=True)
    return ShapesModel.parse(frame, transformations=dict(transformations))
