"""Measured sections: spots with what they have to be predicted as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from st_predict._errors import InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._sections._needs import check_needs, needs_mpp
from st_predict._sections._section import open_slide
from st_predict.io import find_table
from st_predict.pp import make_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._sections._section import Section
    from st_predict.specs import ModelCard

__all__ = ["Observed", "measured_table", "observe", "patients_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A section and what was measured of it.

    Parameters
    ----------
    name
        Of the section.
    patients
        Whose spots it holds.
    section
        Its image and all of its spots.
    rows
        ``(n_spots,)``: which of those have a target: they have counts and lie in the image.
    target
        ``(n_spots, n_genes)`` float32.
    counts
        The raw counts of these, for a model whose loss reads them.
    """

    name: str
    patients: tuple[str, ...]
    section: Section
    rows: NDArray[np.int64]
    target: NDArray[np.float32]
    counts: NDArray[np.float32] | None = None

    def take(self, which: NDArray[np.bool_]) -> Observed:
        """Return some of the measured spots."""
        counts = None if self.counts is None else self.counts[which]
        return replace(self, rows=self.rows[which], target=self.target[which], counts=counts)

    def describe(self) -> dict[str, Any]:
        """Return what a card says of a section."""
        mpp = self.section.mpp
        return {
            "section": self.name,
            "patients": list(self.patients),
            "n_spots": len(self.rows),
            "mpp": None if mpp is None else round(mpp.value, 5),
            "mpp_source": None if mpp is None else mpp.source,
            "level_downsamples": [round(d, 4) for d in self.section.reader.downsamples],
        }


def observe(
    sdata: SpatialData,
    card: ModelCard,
    *,
    group_key: str,
    image_key: Mapping[str, str] | str | None = None,
    crops: bool = True,
    counts: bool = False,
) -> list[Observed]:
    """Open the sections of a measured slide, with targets as ``card`` defines them.

    If no ``crops`` are to be cut, it does not matter what is known of the image and of places. ``counts`` keeps the raw
    counts of the panel beside the targets.

    Raises
    ------
    KeyError, ValueError
        If there is no table, no column ``group_key``, genes of the panel are missing, or counts are none.
    """
    obs = _patients(sdata, group_key)
    table = measured_table(sdata)
    sections = open_slide(sdata, image_key=image_key, need_mpp=crops and needs_mpp(card)).sections
    if crops:
        check_needs(sections, card)
    return [_observe(s, table[s.rows], obs.iloc[s.rows], card, counts=counts) for s in sections]


def _observe(section: Section, table: AnnData, patients: pd.Series, card: ModelCard, *, counts: bool) -> Observed:
    target = make_target(table, card.genes, card.target)
    inside = ~section.outside()[target.rows]
    names = sorted(set(table.obs[Keys.SECTION].astype(str))) if Keys.SECTION in table.obs else [section.region]
    return Observed(
        name="+".join(names),
        patients=tuple(sorted(set(patients))),
        section=section,
        rows=target.rows[inside],
        target=target.values[inside],
        counts=_counts(table[target.rows[inside]], card) if counts else None,
    )


def _counts(table: AnnData, card: ModelCard) -> NDArray[np.float32]:
    return make_target(table, card.genes, replace(card.target, transform="counts", scale="none", limits=None)).values


def patients_of(sdata: SpatialData, group_key: str) -> set[str]:
    """Return the patients whose spots a slide holds."""
    return set(_patients(sdata, group_key))


def _patients(sdata: SpatialData, group_key: str) -> pd.Series:
    """Patient of each spot."""
    obs = measured_table(sdata).obs
    if group_key not in obs:
        raise NotFoundError(
            f"The table has no column {group_key!r} that says whose tissue each spot is; it has {sorted(obs.columns)}. "
            "Name the right one with group_key=, or add it to .obs."
        )
    if obs[group_key].isna().any():
        raise InvalidValueError(f"{int(obs[group_key].isna().sum())} spots have no {group_key!r}: whose are they?")
    return obs[group_key].astype(str)


def measured_table(sdata: SpatialData) -> AnnData:
    """Return the table of the counts.

    Raises
    ------
    ValueError
        If there is none.
    """
    table_key = find_table(sdata, None)
    if table_key is None:
        raise InvalidValueError("There is no table with counts: training and evaluation need measured spots.")
    return sdata.tables[table_key]
