"""Requirements of a network for a section, checked before crops are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_predict._errors import InvalidValueError
from st_predict._keys import Keys
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from st_predict._sections._section import Section
    from st_predict.specs import ModelCard

__all__ = ["check_needs", "needs_mpp"]


def needs_mpp(card: ModelCard) -> bool:
    """Return whether the mpp of an image is required."""
    return card.crop.mpp is not None or "xy_um" in get_spec(card.model).needs


def check_needs(sections: Sequence[Section], card: ModelCard) -> None:
    """Refuse sections that lack a network input.

    Raises
    ------
    ValueError
        If the network reads the assay's lattice and a section lacks it, or has one that the network refuses.
    """
    spec = get_spec(card.model)
    grids = {section.region: section.spots.grid for section in sections if section.spots.grid is not None}
    spec.check(grids, card.hparams)
    if "grid" in spec.needs and (without := [s.region for s in sections if s.region not in grids]):
        raise InvalidValueError(
            f"{card.model!r} reads the row and column of each spot on the assay's lattice, which are unknown for "
            f"{without}.",
            f"add the columns {Keys.ARRAY_ROW!r} and {Keys.ARRAY_COL!r} to .obs of the table",
            "predict a lattice made by st_predict.pp.make_grid",
        )
