"""Checks of the number of genes in a target's total count."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from st_predict._sections._section import about
from st_predict.specs import refuse_constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from st_predict._sections._measured import Measured
    from st_predict.specs import ModelCard

__all__ = ["check_sums", "warn_of_constant"]

logger = logging.getLogger(__name__)

FEW = 12
"""Minimum number of genes whose sum measures depth rather than single genes."""


def check_sums(card: ModelCard, slides: Sequence[Measured]) -> None:
    """Refuse a target relative to the sum over a single gene; warn if the sum includes only a few.

    Parameters
    ----------
    card
        Panel and units.
    slides
        Training slides.

    Raises
    ------
    ValueError
        If the target is constant over all spots.
    """
    target, of_panel = card.target, card.target.over == "panel"
    fewest = min(slides, key=lambda slide: slide.table.n_vars)
    n_summed = len(card.genes) if of_panel else fewest.table.n_vars
    with about("" if of_panel else fewest.name):
        refuse_constant(target, n_summed)
    if target.is_relative and n_summed < FEW:
        logger.warning(
            "The target %s is relative to a sum over %d genes %s, so that a gene seems to fall where another rises. %s",
            target.units,
            n_summed,
            "of the panel" if of_panel else "of the table",
            'preset="recommended" is relative to all genes of the table, preset="original" of some models to none.'
            if of_panel
            else "Train on tables with all genes of the assay.",
        )


def warn_of_constant(card: ModelCard) -> None:
    """Warn of a network with a constant target, which predicts a constant."""
    if card.target.is_relative and card.target.over == "panel" and len(card.genes) == 1:
        logger.warning(
            "The prediction of %s is a constant: its units, %s, are relative to a sum over this gene only.",
            *(card.genes[0], card.target.units),
        )
