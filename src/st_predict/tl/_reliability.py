"""Scores of each gene on held-out sections, for the card of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from st_predict import metrics
from st_predict.specs import Reliability
from st_predict.tl._scoring import gene_intervals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict._sections import Relation
    from st_predict.specs import HeldOut

__all__ = ["ScoredSection", "reliability_of"]

DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSection:
    """Scores of the genes of a panel on one section.

    Parameters
    ----------
    name
        Name of the section.
    patients
        Patients of its spots.
    relation
        Relation of the section to the training.
    chose_epoch
        Whether the section was used to choose the epoch.
    n_spots
        Number of scored spots.
    partial, ceiling
        ``(n_genes,)``: partial correlation and its noise ceiling.
    drawn
        ``(n_resamples, n_genes)``: resamples of ``partial``.
    """

    name: str
    patients: tuple[str, ...]
    relation: Relation
    chose_epoch: bool
    n_spots: int
    partial: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    drawn: NDArray[np.float32]


def reliability_of(
    sections: Sequence[ScoredSection], held_out: HeldOut, *, genes: Sequence[str], panel: Sequence[str]
) -> Reliability:
    """Join the scores of sections of one kind.

    Parameters
    ----------
    sections
        Sections with this relation, at least one.
    held_out
        Relation of the sections to the training.
    genes
        Scored genes.
    panel
        Genes of the card; genes without a score are undefined.
    """
    partial = _mean([section.partial for section in sections])
    low, high = gene_intervals(_drawn(sections), np.isfinite(partial))
    places = {gene: place for place, gene in enumerate(genes)}

    def of_panel(values: NDArray[np.float64]) -> tuple[float | None, ...]:
        return tuple(_rounded(values[places[gene]]) if gene in places else None for gene in panel)

    return Reliability(
        held_out=held_out,
        sections=tuple(section.name for section in sections),
        patients=tuple(sorted({patient for section in sections for patient in section.patients})),
        n_spots=sum(section.n_spots for section in sections),
        chose_epoch=any(section.chose_epoch for section in sections),
        partial=of_panel(partial),
        low=of_panel(low),
        high=of_panel(high),
        ceiling=of_panel(_mean([section.ceiling for section in sections])),
    )


def _drawn(sections: Sequence[ScoredSection]) -> NDArray[np.floating]:
    """Resamples of the mean over sections, ``(n_resamples, n_genes)``; several sections are resampled too."""
    if len(sections) == 1:
        return sections[0].drawn
    by_gene = np.stack([section.drawn for section in sections], axis=2).transpose(1, 0, 2)
    return np.stack([metrics.bootstrap_sections(samples, seed=0) for samples in by_gene], axis=1)


def _mean(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean over the sections where a score is defined, ``(n_genes,)``."""
    stacked = np.stack(scores)
    n = np.isfinite(stacked).sum(axis=0)
    return np.divide(np.nansum(stacked, axis=0), n, out=np.full(len(n), np.nan), where=n > 0)


def _rounded(score: float) -> float | None:
    return round(float(score), DIGITS) if np.isfinite(score) else None
