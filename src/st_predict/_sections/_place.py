"""Checks that spots are at the right place of the image."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from st_predict._sections._scale import spacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict._sections._section import Section
    from st_predict.pp import Tissue

__all__ = ["check_place"]

logger = logging.getLogger(__name__)

MOST_ON_GLASS = 0.5
"""Maximum share of spots on bare glass without a warning."""

DISTINCT = 0.5
"""Minimum share of distinct positions among the spots."""


def check_place(section: Section, tissue: Tissue | None, expected: NDArray[np.bool_]) -> None:
    """Warn of spots on bare glass, and of a lattice that is mirrored or does not fit the spots.

    Parameters
    ----------
    section
        Spots and image.
    tissue
        Tissue of the image, if searched.
    expected
        ``(n_spots,)``: spots that should be on tissue.
    """
    seen = expected & ~section.outside
    if not seen.any():
        return
    xy = section.spots.xy
    if (places := len(np.unique(xy @ [1, 1j]))) < DISTINCT * len(xy):
        logger.warning("The %d spots of %r have only %d distinct positions.", len(xy), section.region, places)
    _check_lattice(section, tissue, seen)
    if tissue is None:
        return
    on = tissue.at(section.spots.xy[seen])
    if (~on).mean() > MOST_ON_GLASS:
        logger.warning(
            "%d of %d spots of %r are on bare glass, while %.2g %% of the image %r is tissue%s. Check the image, its resolution "
            "and the transformations.",
            *((~on).sum(), len(on), section.region, 100 * tissue.mask.mean(), section.image_key),
            _elsewhere(section, tissue, seen),
        )


def _check_lattice(section: Section, tissue: Tissue | None, seen: NDArray[np.bool_]) -> None:
    """Compare the spots' positions on the assay's lattice with their centres."""
    grid, xy = section.spots.grid, section.spots.xy
    if grid is None or np.linalg.matrix_rank(grid - grid.mean(axis=0)) < 2:
        return
    design = np.column_stack([grid, np.ones(len(grid))])
    steps, *_ = np.linalg.lstsq(design, xy, rcond=None)
    off = float(np.median(np.hypot(*(xy - design @ steps).T)))
    distance = spacing(xy)
    if off > distance:
        logger.warning(
            "The centres of the spots of %r are %.3g px (median) off the lattice of array_row and array_col, and %.3g px apart: "
            "these columns may belong to other spots.",
            *(section.region, off, distance),
        )
    elif np.linalg.det(steps[:2]) > 0:  # negative by default, as rows run along y and columns along x
        logger.warning(
            "The lattice of the spots of %r is mirrored on the image %r: array_row and array_col have another orientation than y and x. "
            "Either x and y are exchanged, or the image or its transformation is mirrored%s.",
            *(section.region, section.image_key, "" if tissue is None else _elsewhere(section, tissue, seen)),
        )


def _elsewhere(section: Section, tissue: Tissue, seen: NDArray[np.bool_]) -> str:
    """Return how many spots would be on tissue with other orientations."""
    xy = section.spots.xy[seen]
    height, width = section.reader.level_shapes[0]
    places = {
        "as they are": xy,
        "with x and y exchanged": xy[:, ::-1],
        "with x mirrored": xy * [-1, 1] + [width, 0],
        "with y mirrored": xy * [1, -1] + [0, height],
    }
    counts = ", ".join(f"{tissue.at(place).sum()} {words}" for words, place in places.items())
    return f" (spots on tissue, of {len(xy)}: {counts})"
