"""Measured slides: tables with counts, and panel genes in them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict._sections._look import look_over_for
from st_predict._sections._needs import check_needs, needs_mpp
from st_predict._sections._section import at_table, each, name_of, open_table, region_key_of, section_name
from st_predict.io import find_table
from st_predict.pp import align_panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._sections._section import Sections, Slide
    from st_predict._where import Where
    from st_predict.pp import PanelMatch
    from st_predict.specs import ModelCard

__all__ = [
    "Measured",
    "describe_measured",
    "keep_common",
    "match_genes",
    "measure",
    "measure_each",
    "measured_obs",
    "measured_table",
    "measured_table_key",
    "patients_of",
    "placed_table",
    "spot_tables",
    "select_genes",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A measured slide, opened once.

    Parameters
    ----------
    slide
        Slide with its sections.
    match
        Columns of the panel genes in its table.
    where
        Elements, layer and gene matching.
    patients
        ``(n_obs,)``: patient of each row of the table.
    name
        Beginning of messages about the slide; empty if there is only one.
    """

    slide: Slide
    match: PanelMatch
    where: Where
    patients: pd.Series
    name: str = ""

    @property
    def obs(self) -> pd.DataFrame:
        """``.obs`` of the sections' spots."""
        return self.table.obs.iloc[np.sort(np.concatenate([section.rows for section in self.slide.sections]))]

    @property
    def table(self) -> AnnData:
        """Table with the counts."""
        return self.slide.sdata.tables[self.slide.table_key]


def measure_each(
    slides: Sequence[SpatialData], card: ModelCard, where: Where, *, named: Sections | None, crops: bool = True
) -> list[Measured]:
    """Open measured slides; errors name the slide by its key or position in ``named``."""

    def one(sdata: SpatialData) -> Measured:
        return replace(measure(sdata, card, where, crops=crops), name=name_of(sdata, named))

    return each(slides, one, named=named)


def measure(sdata: SpatialData, card: ModelCard, where: Where, *, crops: bool = True) -> Measured:
    """Open a measured slide, and match the genes of a card to its table.

    Parameters
    ----------
    sdata
        Object with images, shapes and tables.
    card
        Card with the panel and the network's requirements.
    where
        Elements, layer, patient column and gene matching.
    crops
        Whether crops will be read; if not, image and lattice are not checked.

    Raises
    ------
    KeyError, ValueError
        If the table, the patient column or panel genes are missing.
    """
    table_key = measured_table_key(sdata, where)
    slide = open_table(sdata, table_key, where, need_mpp=crops and needs_mpp(card), region=where.shapes_key)
    if crops:
        check_needs(slide.sections, card)
        look_over_for(slide, [card])
    table = sdata.tables[table_key]
    return Measured(
        slide=slide,
        match=match_genes(table, card, where),
        where=where,
        patients=_patients(table.obs, where.group_key, rows=np.concatenate([s.rows for s in slide.sections])),
    )


def match_genes(table: AnnData, card: ModelCard, where: Where, *, drop: bool = False) -> PanelMatch:
    """Match the genes of a card to a table; ``drop`` always leaves out missing ones."""
    return align_panel(
        table,
        card.genes,
        id_column=where.genes.id_column,
        duplicates=where.genes.duplicates,
        missing="drop" if drop else where.genes.missing,
        ignore_case=where.genes.ignore_case,
        aliases=where.genes.aliases,
        organism=card.organism,
    )


def keep_common(card: ModelCard, slides: Sequence[Measured]) -> ModelCard:
    """Return a card without genes that a slide lacks (only with ``missing="drop"``)."""
    there = [set(slide.match.matched) for slide in slides]
    kept = [i for i, gene in enumerate(card.genes) if all(gene in genes for genes in there)]
    if len(kept) == len(card.genes):
        return card
    if not kept:
        raise InvalidValueError(f"No gene of the panel of {len(card.genes)} is in the tables of all slides.")
    lost = [gene for i, gene in enumerate(card.genes) if i not in set(kept)]
    logger.warning(
        "%d of %d panel genes are not in every table and are left out: %s.", len(lost), len(card.genes), lost
    )
    return select_genes(card, kept)


def select_genes(card: ModelCard, kept: Sequence[int]) -> ModelCard:
    """Return a card with a subset of the genes."""
    return card.only(kept)


def measured_table_key(sdata: SpatialData, where: Where) -> str:
    """Return the name of the table with the counts: the named one, or the one that annotates the named shapes.

    Raises
    ------
    KeyError, ValueError
        If it does not exist or is ambiguous.
    """
    check_slide(sdata)
    where = at_table(sdata, where)
    if where.shapes_key is None or where.table_key is not None:
        table_key = find_table(sdata, where.table_key)
        if table_key is None:
            raise InvalidValueError(
                "No table with counts found: training and evaluation need measured spots.",
                "add one to sdata.tables, linked to the shapes of the spots",
            )
        if where.shapes_key is not None and where.shapes_key not in _annotated(sdata, table_key):
            raise NotFoundError(
                f"Table {table_key!r} annotates {sorted(_annotated(sdata, table_key))}, not {where.shapes_key!r}.",
                Advice("name shapes of this table with {}", "shapes_key"),
            )
        return table_key
    there = [name for name in sdata.tables if where.shapes_key in _annotated(sdata, name)]
    counted = [name for name in there if name in _spot_tables(sdata)]
    if len(counted) == 1:
        return counted[0]
    if not counted:
        raise NotFoundError(
            f"No table annotates the shapes {where.shapes_key!r}; the shapes are {sorted(sdata.shapes)}.",
            Advice("name other shapes with {}", "shapes_key"),
            Advice("name the table instead with {}", "table_key"),
        )
    raise InvalidValueError(
        f"Several tables annotate the shapes {where.shapes_key!r}: {sorted(counted)}.",
        Advice("name one with {}", "table_key"),
    )


def measured_table(sdata: SpatialData, where: Where) -> AnnData:
    """Return the table with the counts, or only the rows of the named shapes."""
    table_key = measured_table_key(sdata, where)
    table = sdata.tables[table_key]
    if where.shapes_key is None:
        return table
    return table[(table.obs[region_key_of(table, table_key)].astype(str) == where.shapes_key).to_numpy()]


def placed_table(sdata: SpatialData, where: Where) -> AnnData:
    """Return the measured rows with spot positions in ``.obsm["spatial"]``, without changing the table."""
    table = measured_table(sdata, where)
    if Keys.SPATIAL in table.obsm:
        return table
    slide = open_table(sdata, measured_table_key(sdata, where), where, need_mpp=False, region=where.shapes_key)
    xy = np.empty((sdata.tables[slide.table_key].n_obs, 2))
    for section in slide.sections:
        xy[section.rows] = section.spots.xy
    rows = np.sort(np.concatenate([section.rows for section in slide.sections]))
    placed = AnnData(table.X, obs=table.obs, var=table.var, layers=dict(table.layers), uns=dict(table.uns))
    placed.obsm[Keys.SPATIAL] = xy[rows]
    return placed


def measured_obs(sdata: SpatialData, where: Where) -> pd.DataFrame:
    """Return ``.obs`` of the selected measured spots."""
    return measured_table(sdata, where).obs


def patients_of(sdata: SpatialData, where: Where) -> set[str]:
    """Return the patients of a slide's spots."""
    obs = measured_obs(sdata, where)
    return set(_patients(obs, where.group_key, rows=np.arange(len(obs))))


def spot_tables(sdata: SpatialData) -> list[AnnData]:
    """Return all tables that are not results of st_predict."""
    return [sdata.tables[name] for name in sorted(_spot_tables(sdata))]


def describe_measured(sdata: SpatialData, where: Where) -> list[dict[str, Any]]:
    """Return name and patients of each section of a measured slide, without opening its image."""
    obs, table_key = measured_obs(sdata, where), measured_table_key(sdata, where)
    patients = _patients(obs, where.group_key, rows=np.arange(len(obs)))
    regions = obs[region_key_of(sdata.tables[table_key], table_key)].astype(str)
    return [
        {"section": section_name(obs[regions == region], region), "patients": sorted(set(patients[regions == region]))}
        for region in dict.fromkeys(regions)
    ]


def _patients(obs: pd.DataFrame, group_key: str, *, rows: NDArray[np.int64]) -> pd.Series:
    """Return the patient of each spot; required only for ``rows``."""
    if group_key not in obs:
        raise NotFoundError(
            f"The table has no column {group_key!r} with the patient of each spot; it has {sorted(obs.columns)}.",
            Advice("name the right column with {}", "group_key"),
            "add it to .obs",
        )
    if n_unknown := int(obs[group_key].iloc[rows].isna().sum()):
        raise InvalidValueError(
            f"{n_unknown} of {len(rows)} spots have no {group_key!r}, so their patient is unknown.",
            "fill the column of .obs",
            Advice("name another column with {}", "group_key"),
        )
    return obs[group_key].astype(str)


def _annotated(sdata: SpatialData, table_key: str) -> set[str]:
    table = sdata.tables[table_key]
    try:
        return set(table.obs[region_key_of(table, table_key)].astype(str))
    except InvalidValueError:
        return set()


def _spot_tables(sdata: SpatialData) -> set[str]:
    """Tables that are not results of st_predict."""
    return {name for name, table in sdata.tables.items() if not Record.is_result(table.uns, name)}
