"""Look over a slide before its crops are read: what is impossible is refused, and what is unlikely is said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from st_predict._on_tissue import beside_tissue
from st_predict._sections._cut import fields_cut
from st_predict._sections._place import check_place
from st_predict._sections._scale import check_field, check_sizes, field_px
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
"""Pixels that are read at most to find the tissue: a slide without coarse levels would take minutes."""

MASK = 2000  # longest side of the mask of tissue, as find_tissue has it


def look_over_for(slide: Slide, cards: Sequence[ModelCard]) -> list[NDArray[np.bool_]]:
    """Look over a slide for networks; see :func:`look_over`."""
    kinds = [(get_spec(card.model).reads(card.hparams).kind, card.crop) for card in cards]
    if all(kind == "nothing" for kind, _ in kinds):
        return [np.zeros(len(section.rows), dtype=bool) for section in slide.sections]
    return look_over(slide, [crop for kind, crop in kinds if kind not in {"nothing", "cells"}])


def look_over(slide: Slide, crops: Sequence[CropSpec]) -> list[NDArray[np.bool_]]:
    """Compare spots and fields of view of each section with its image.

    Parameters
    ----------
    slide
        The sections.
    crops
        Crops around spots that will be read.

    Returns
    -------
    Of each section ``(n_spots,)``: spots with a field of view that leaves the image at an edge that tissue touches.

    Raises
    ------
    ValueError
        If a field of view is far wider than the image, or the image holds nothing.
    """
    return [_look(slide, section, crops) for section in slide.sections]


def _look(slide: Slide, section: Section, crops: Sequence[CropSpec]) -> NDArray[np.bool_]:
    for crop in crops:
        check_field(section, crop)
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
            "%d of %d spots of %r have a field of view that leaves the image at an edge that tissue touches: what was cut off is "
            'padded. A network may be misled by that; st_predict.tl.predict(..., cut_tissue="nan") leaves them NaN.',
            *(cut.sum(), len(cut), section.region),
        )
    return cut


def _tissue(slide: Slide, section: Section) -> Tissue | None:
    """Tissue of the image, unless it takes long to find."""
    shapes = section.reader.level_shapes
    height, width = [shape for i, shape in enumerate(shapes) if i == 0 or max(shape) >= MASK][-1]
    if height * width > LARGEST:
        logger.warning(
            "Image %r has no level between %d px and %d x %d px, so that it was not checked whether the spots lie on tissue.",
            *(section.image_key, MASK, width, height),
        )
        return None
    return find_tissue(slide.sdata, section.image_key, size=MASK)


def _expected(slide: Slide, section: Section) -> NDArray[np.bool_]:
    """Which spots should lie on tissue: those that the table does not say to lie beside it."""
    obs = None if slide.table_key is None else slide.sdata.tables[slide.table_key].obs
    return np.ones(len(section.rows), dtype=bool) if obs is None else ~beside_tissue(obs.iloc[section.rows])
