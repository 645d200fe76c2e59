"""Slides for pseudo-labelling."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import Advice, NotFoundError
from st_predict._on_tissue import on_tissue
from st_predict._sections._look import look_over_for
from st_predict._sections._measured import measured_obs, measured_table_key, spot_tables
from st_predict._sections._observed import Observed
from st_predict._sections._section import open_sdata, open_table
from st_predict._sections._split import LeakageError, refuse_same_sections
from st_predict.io import find_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
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
    """Open slides for their spots only; counts are not read and need not exist.

    Parameters
    ----------
    slides
        Slides with spots to label.
    card
        Card with the network's requirements.
    training
        Training slides, whose spots must not be pseudo-labelled.
    held_out
        Validation slides, whose sections, images and patients must not be pseudo-labelled. They are recognised as the
        same object and by tables; an image read twice is not recognised.
    where
        Elements and patient column, where a slide has them.
    allow_shared
        Validation patients with other sections that may be pseudo-labelled.

    Returns
    -------
    list of Observed
        Sections with the spots inside the image and on tissue; targets are ``(n_spots, 0)``.

    Raises
    ------
    LeakageError
        If validation or training spots would be pseudo-labelled.
    KeyError, ValueError
        If an element does not exist or is ambiguous, or the mpp is required and unknown.
    """
    group_key = where.group_key
    sides = {
        role: [(slide, measured_obs(slide, where)) for slide in side]
        for role, side in (("validation", held_out), ("training", training))
    }
    patients = set().union(*(_patients(obs, group_key) for _, obs in sides["validation"])) - set(allow_shared)
    images = [image for slide in held_out for image in slide.images.values()]
    opened = []
    for number, slide in enumerate(slides):
        # other tables than the spots' own may name the patients
        known = [(slide, table.obs) for table in spot_tables(slide) if _patients(table.obs, group_key)]
        for role, side in sides.items():
            refuse_same_sections(known, side, group_key=group_key, what=f"in {role} and to be labelled")
        shared = sorted(set().union(*(_patients(obs, group_key) for _, obs in known)) & patients)
        if shared or any(image is other for image in slide.images.values() for other in images):
            raise LeakageError(
                f"Unlabelled slide {number} shows {f'patients {shared}' if shared else 'an image'} of validation, which would "
                "then not measure the network on new tissue.",
                Advice("leave it out of {}", "unlabelled"),
            )
        opened.append(_open(slide, _own(slide, where), need_mpp=card.crop.mpp is not None))
        look_over_for(opened[-1], [card])
    return [_without_target(section, slide, only=where.tissue_only) for slide in opened for section in slide.sections]


def _own(slide: SpatialData, where: Where) -> Where:
    """Return ``where`` without elements that this slide lacks."""
    shapes_key = where.shapes_key if where.shapes_key in slide.shapes else None
    bin_um = where.bin_um if spot_tables(slide) else None  # a slide without spots has no bins
    table_key = where.table_key if where.table_key in slide.tables else None
    return replace(where, table_key=table_key, bin_um=bin_um, shapes_key=shapes_key)


def _open(slide: SpatialData, own: Where, *, need_mpp: bool) -> Slide:
    table_key = _table_key(slide, own)
    if table_key is None:
        return open_sdata(slide, own, need_mpp=need_mpp)
    return open_table(slide, table_key, own, need_mpp=need_mpp, region=own.shapes_key)


def _table_key(slide: SpatialData, own: Where) -> str | None:
    """Return the spots' table, if there is one."""
    if find_table(slide, own.table_key, bin_um=own.bin_um) is None:
        return None
    try:
        return measured_table_key(slide, own)
    except NotFoundError:  # no table annotates these shapes
        return None


def _patients(obs: pd.DataFrame, group_key: str) -> set[str]:
    """Return the patients of a table's spots, as far as they are named."""
    return set(obs[group_key].dropna().astype(str)) if group_key in obs else set()


def _without_target(section: Section, slide: Slide, *, only: bool) -> Observed:
    on = np.ones(len(section.rows), dtype=bool)
    if slide.table_key is not None:
        obs = slide.sdata.tables[slide.table_key].obs.iloc[section.rows]
        on = on_tissue(obs, only=only, label=section.region)
    rows = np.flatnonzero(on & ~section.outside)
    target = np.empty((len(rows), 0), dtype=np.float32)
    return Observed(
        name=section.region, patients=(), section=section, rows=rows, target=target, totals=np.empty(len(rows))
    )
