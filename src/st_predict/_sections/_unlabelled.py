"""Open slides whose spots are to be labelled by a network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from st_predict._sections._measured import measured_table_key
from st_predict._sections._observed import Observed
from st_predict._sections._section import open_slide, open_table
from st_predict._sections._split import LeakageError, refuse_same_sections
from st_predict.io import find_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from st_predict._sections._section import Section, Slide
    from st_predict._where import Where
    from st_predict.specs import ModelCard

__all__ = ["open_unlabelled"]


def open_unlabelled(
    slides: Sequence[SpatialData],
    card: ModelCard,
    *,
    training: Sequence[SpatialData],
    held_out: Sequence[SpatialData],
    where: Where,
    allow_shared: Sequence[str] = (),
) -> list[Observed]:
    """Open slides only for their spots; counts are not read, and need not exist.

    Parameters
    ----------
    slides
        Slides with spots to label.
    card
        What the network needs.
    training
        Slides of training: their spots have a measured target, and get no other.
    held_out
        Slides of validation: none of their sections, images or patients may be labelled, as far as the same objects and
        the tables tell; an image that was read twice is not recognised.
    where
        Elements and column of the patients, where a slide has them.
    allow_shared
        Patients of validation of whom other sections may be labelled.

    Returns
    -------
    Sections whose targets are ``(n_spots, 0)``, with the spots that lie in the image.

    Raises
    ------
    LeakageError
        If spots of validation, or of training, would be labelled.
    KeyError, ValueError
        If an element does not exist or is ambiguous, or mpp is needed and not known.
    """
    known = [slide for slide in slides if _patients(slide, where)]
    for others, role in ((held_out, "validation"), (training, "training")):
        refuse_same_sections(known, others, where=where, what=f"in {role} and to be labelled")
    patients = set().union(*(_patients(slide, where) for slide in held_out)) - set(allow_shared)
    images = [image for slide in held_out for image in slide.images.values()]
    for number, slide in enumerate(slides):
        shared = sorted(_patients(slide, where) & patients)
        if shared or any(image is other for image in slide.images.values() for other in images):
            raise LeakageError(
                f"Unlabelled slide {number} shows {f'patients {shared}' if shared else 'an image'} of validation, which would "
                "then not show how the network does on new tissue. Leave it out."
            )
    need_mpp = card.crop.mpp is not None
    opened = [_open(slide, where, need_mpp=need_mpp) for slide in slides]
    return [_without_target(section) for slide in opened for section in slide.sections]


def _open(slide: SpatialData, where: Where, *, need_mpp: bool) -> Slide:
    table_key = _table_key(slide, where)
    if table_key is not None:
        return open_table(slide, table_key, where, need_mpp=need_mpp, region=where.shapes_key)
    shapes_key = where.shapes_key if where.shapes_key in slide.shapes else None
    return open_slide(slide, replace(where, table_key=None, shapes_key=shapes_key), need_mpp=need_mpp)


def _table_key(slide: SpatialData, where: Where) -> str | None:
    """Table that a measured slide would have, if there is one."""
    if find_table(slide, where.table_key if where.table_key in slide.tables else None) is None:
        return None
    named = where if where.table_key in slide.tables else replace(where, table_key=None)
    return measured_table_key(slide, named)


def _patients(slide: SpatialData, where: Where) -> set[str]:
    """Patients whose spots a slide holds, as far as its table says so."""
    table_key = _table_key(slide, where)
    obs = {} if table_key is None else slide.tables[table_key].obs
    return set(obs[where.group_key].dropna().astype(str)) if where.group_key in obs else set()


def _without_target(section: Section) -> Observed:
    rows = np.flatnonzero(~section.outside)
    target = np.empty((len(rows), 0), dtype=np.float32)
    return Observed(name=section.region, patients=(), section=section, rows=rows, target=target)
