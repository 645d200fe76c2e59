"""Open slides whose spots are to be labelled by a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict._sections._observed import Observed
from st_predict._sections._section import open_slide
from st_predict._sections._split import LeakageError, refuse_same_sections
from st_predict.io import find_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spatialdata import SpatialData

    from st_predict._sections._section import Section
    from st_predict.specs import ModelCard

__all__ = ["open_unlabelled"]


def open_unlabelled(
    slides: Sequence[SpatialData],
    card: ModelCard,
    *,
    training: Sequence[SpatialData],
    held_out: Sequence[SpatialData],
    group_key: str,
    allow_shared: Sequence[str] = (),
    image_key: Mapping[str, str] | str | None = None,
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
    group_key
        Column of ``.obs`` that says whose tissue a spot is, where there is a table that has it.
    allow_shared
        Patients that may be, by name; other sections of them, that is.
    image_key
        As in :func:`st_predict.tl.train`.

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
    known = [slide for slide in slides if _patients(slide, group_key)]
    for others, where in ((held_out, "validation"), (training, "training")):
        refuse_same_sections(known, others, group_key=group_key, what=f"in {where} and to be labelled")
    patients = set().union(*(_patients(slide, group_key) for slide in held_out)) - set(allow_shared)
    images = [image for slide in held_out for image in slide.images.values()]
    for number, slide in enumerate(slides):
        shared = sorted(_patients(slide, group_key) & patients)
        if shared or any(image is other for image in slide.images.values() for other in images):
            raise LeakageError(
                f"Unlabelled slide {number} shows {f'patients {shared}' if shared else 'an image'} of validation, which would "
                "then not show how the network does on new tissue. Leave it out."
            )
    need_mpp = card.crop.mpp is not None
    opened = [open_slide(slide, image_key=image_key, need_mpp=need_mpp) for slide in slides]
    return [_without_target(section) for slide in opened for section in slide.sections]


def _patients(slide: SpatialData, group_key: str) -> set[str]:
    """Whose spots a slide holds, as far as its table says so."""
    table_key = find_table(slide, None)
    obs = {} if table_key is None else slide.tables[table_key].obs
    return set(obs[group_key].dropna().astype(str)) if group_key in obs else set()


def _without_target(section: Section) -> Observed:
    rows = np.flatnonzero(~section.outside())
    target = np.empty((len(rows), 0), dtype=np.float32)
    return Observed(name=section.region, patients=(), section=section, rows=rows, target=target)
