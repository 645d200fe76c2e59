"""Measured sections: spots with targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._sections._section import about, section_name
from st_predict._sections._spacing import spot_distance
from st_predict.pp import make_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict._sections._measured import Measured
    from st_predict._sections._section import Section
    from st_predict.specs import ModelCard

__all__ = ["Observed", "observe"]

SPOT_UM, SPOT_COUNTS = 50.0, 50
"""Minimum diameter in um of spots (larger than bins and cells), and their default minimum panel counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A section and its measured values.

    Parameters
    ----------
    name
        Name of the section.
    patients
        Patients of its spots.
    section
        Image and all spots.
    rows
        ``(n_spots,)``: rows of the section with a target (with counts and inside the image).
    target
        ``(n_spots, n_genes)`` float32: targets.
    totals
        ``(n_spots,)`` float64: total counts over all genes of the table.
    counts
        ``(n_spots, n_genes)``: raw counts, for losses that read them, and for scores.
    """

    name: str
    patients: tuple[str, ...]
    section: Section
    rows: NDArray[np.int64]
    target: NDArray[np.float32]
    totals: NDArray[np.float64]
    counts: NDArray[np.float32] | None = None

    def take(self, which: NDArray[np.bool_]) -> Observed:
        """Return a subset of the measured spots."""
        counts = None if self.counts is None else self.counts[which]
        return replace(self, rows=self.rows[which], target=self.target[which], totals=self.totals[which], counts=counts)

    def describe(self) -> dict[str, Any]:
        """Return the card's entry about the section."""
        mpp, distance = self.section.mpp, spot_distance(self.section)
        return {
            "section": self.name,
            "patients": list(self.patients),
            "n_spots": len(self.rows),
            "mpp": None if mpp is None else round(mpp.value, 5),
            "mpp_source": None if mpp is None else mpp.source,
            "spot_distance_um": None if distance is None else round(distance, 2),
            "level_downsamples": [round(d, 4) for d in self.section.reader.downsamples],
        }


def observe(measured: Measured, card: ModelCard, *, counts: bool = False, min_counts: int | None = 0) -> list[Observed]:
    """Return the sections of a measured slide, with targets as ``card`` defines them.

    Parameters
    ----------
    measured
        Slide with the card's genes matched.
    card
        Panel and units.
    counts
        Whether to keep the raw counts of the panel beside the targets.
    min_counts
        Minimum panel counts per spot; ``None`` for the default of the spot size.

    Raises
    ------
    KeyError, ValueError
        If the layer does not exist, or counts are invalid.
    """
    with about(measured.name):
        return [
            _observe(section, measured, card, counts=counts, min_counts=_least_counts(section, min_counts))
            for section in measured.slide.sections
        ]


def _least_counts(section: Section, asked: int | None) -> int:
    """Return the minimum counts: spots of many cells with few counts are failures, but bins and cells always have few."""
    if asked is not None:
        return asked
    radius, mpp = section.spots.radius, section.mpp
    if radius is None or mpp is None:
        return 1
    known = radius[np.isfinite(radius) & (radius > 0)]
    if not len(known):
        return 1
    return SPOT_COUNTS if 2 * float(np.median(known)) * mpp.value > SPOT_UM * 0.99 else 1


def _observe(section: Section, measured: Measured, card: ModelCard, *, counts: bool, min_counts: int) -> Observed:
    table, layer = measured.table[section.rows], measured.where.layer
    match = measured.match.only(card.genes)
    name = section_name(table.obs, section.region)
    target = make_target(
        table,
        match,
        card.target,
        layer=layer,
        min_counts=min_counts,
        tissue_only=measured.where.tissue_only,
        label=name,
    )
    inside = ~section.outside[target.rows]
    return Observed(
        name=name,
        patients=tuple(sorted(set(measured.patients.iloc[section.rows]))),
        section=section,
        rows=target.rows[inside],
        target=target.values[inside],
        totals=target.table_totals[inside],
        counts=target.counts[inside] if counts else None,
    )
