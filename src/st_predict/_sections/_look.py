"""Plausibility checks of a slide before crops are read: errors for the impossible, warnings for the unlikely."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from st_predict._on_tissue import beside_tissue
from st_predict._sections._cut import fields_cut
from st_predict._sections._missing import warn_of_missing_levels
from st_predict._sections._place import check_place
from st_predict._sections._scale import check_field, check_sizes, field_px
from st_predict._sections._section import section_name
from st_predict.models import get_spec
from st_predict.pp import find_tissue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict._sections._section import Section, Slide
    from st_predict.pp import Tissue
    from st_predict.specs import CropSpec, ModelCard

__all__ = ["look_over", "look_over_for"]

logger = logging.getLogger(__name__)

LARGEST = 500_000_000
"""Maximum number of pixels to read to find the tissue: slides without coarse levels would take minutes."""

MASK = 2000  # longer side of the tissue mask, the default of find_tissue


def look_over_for(slide: Slide, cards: Sequence[ModelCard]) -> list[NDArray[np.bool_]]:
    """Check a slide for several networks; see :func:`look_over`."""
    kinds = [(get_spec(card.model).reads(card.hparams).kind, card.crop) for card in cards]
    if all(kind == "nothing" for kind, _ in kinds):
        return [np.zeros(len(section.rows), dtype=bool) for section in slide.sections]
    return look_over(slide, [crop for kind, crop in kinds if kind not in {"nothing", "cells"}])


def look_over(slide: Slide, crops: Sequence[CropSpec]) -> list[NDArray[np.bool_]]:
    """Check spots and fields of view of each section against its image.

    Parameters
    ----------
    slide
        Slide to check.
    crops
        Crops to be read around spots.

    Returns
    -------
    list of ndarray
        Per section, ``(n_spots,)``: spots with a field of view that leaves the image at an edge that tissue touches.

    Raises
    ------
    ValueError
        If a field of view is far wider than the image, or the image is empty.
    """
    return [_look(slide, section, crops) for section in slide.sections]


def _look(slide: Slide, section: Section, crops: Sequence[CropSpec]) -> NDArray[np.bool_]:
    for crop in crops:
        check_field(section, crop)
        warn_of_missing_levels(section, crop)
    check_sizes(section)
    tissue = _tissue(slide, section)
    check_place(section, tissue, _expected(slide, section))
    cut = np.zeros(len(section.rows), dtype=bool)
    if tissue is None:
        return cut
    for crop in crops:
        field, shape = field_px(section, crop), section.reader.level_shapes[0]
        cut |= fields_cut(section.spots.xy, field, tissue, shape=shape)
    cut &= ~section.outside
    if cut.any():
        logger.warning(
            "%d of %d spots of %s have a field of view that leaves the image at an edge that tissue touches: the missing part is "
            'padded, which may mislead a network. st_predict.tl.predict(..., cut_tissue="nan") leaves these spots NaN.',
            *(cut.sum(), len(cut), _name(slide, section)),
        )
    return cut


def _name(slide: Slide, section: Section) -> str:
    """Region of a section, and its name where the table has one: several objects may share a region."""
    region = repr(section.region)
    if slide.table_key is None:
        return region
    name = section_name(slide.sdata.tables[slide.table_key].obs.iloc[section.rows], section.region)
    return region if name == section.region else f"{region}, section {name},"


def _tissue(slide: Slide, section: Section) -> Tissue | None:
    """Return the tissue of the image; ``None`` if finding it takes long."""
    shapes = section.reader.level_shapes
    height, width = [shape for i, shape in enumerate(shapes) if i == 0 or max(shape) >= MASK][-1]
    if height * width > LARGEST:
        logger.warning(
            "Image %r lacks a level between %d px and %d x %d px, so spots were not checked to be on tissue.",
            *(section.image_key, MASK, width, height),
        )
        return None
    return find_tissue(slide.sdata, section.image_key, size=MASK)


def _expected(slide: Slide, section: Section) -> NDArray[np.bool_]:
    """Return the spots that should be on tissue: all that the table does not mark as off the tissue."""
    obs = None if slide.table_key is None else slide.sdata.tables[slide.table_key].obs
    return np.ones(len(section.rows), dtype=bool) if obs is None else ~beside_tissue(obs.iloc[section.rows])
