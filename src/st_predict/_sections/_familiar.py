"""Comparison of a slide with a network's training slides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._sections._colours import sample_crops
from st_predict._sections._spacing import spot_distance
from st_predict._training import describe_pixels
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_predict._sections._section import Section
    from st_predict.specs import ModelCard

__all__ = ["warn_of_unfamiliar"]

logger = logging.getLogger(__name__)

SHIFT = 0.5
"""Difference of the mean colour that triggers a warning, in standard deviations of the training pixels."""

CONTRAST = 1.5
"""Ratio of colour standard deviations that triggers a warning."""

STAIN = 0.3
"""Difference of a stain's optical density that triggers a warning."""

PITCH = 1.2
"""Ratio of spot distances or pixel sizes that triggers a warning."""


def warn_of_unfamiliar(section: Section, card: ModelCard) -> None:
    """Warn, with numbers, of a section that differs from the training sections.

    Compares colours and stains, if the card has them; the pixel size, for networks without a fixed resolution; and the
    spot distance, for networks that read neighbouring spots.

    Parameters
    ----------
    section
        Section to predict.
    card
        Card of the network.
    """
    reads = get_spec(card.model).reads(card.hparams)
    differing = [] if reads.kind == "nothing" else _colours(section, card)
    if card.crop.mpp is None and reads.kind != "nothing":
        differing += _pixels(section, card)
    if _reads_neighbours(card):
        differing += _distances(section, card)
    if differing:
        logger.warning(
            "%r differs from the sections that %r was trained on: %s. Its prediction may be wrong.",
            *(section.region, card.model, "; ".join(differing)),
        )


def _colours(section: Section, card: ModelCard) -> list[str]:
    known = card.training.get("colours")
    mean, sd = (_numbers(known, name, 3) for name in ("mean", "sd"))
    inside = np.flatnonzero(~section.outside)
    if mean is None or sd is None or not (sd > 0).all() or not len(inside):
        return []
    here = describe_pixels(sample_crops(section, inside, card.crop))
    found = []
    if (np.abs(here["mean"] - mean) > SHIFT * sd).any():
        found.append(f"its mean colour (red, green, blue from 0 to 1) is {_list(here['mean'])}, not {_list(mean)}")
    if _ratio(here["sd"], sd) > CONTRAST:
        found.append(f"the standard deviation of its colours is {_list(here['sd'])}, not {_list(sd)}")
    stain = _numbers(known, "stain", 2)
    if stain is not None and (np.abs(here["stain"] - stain) > STAIN).any():
        found.append(f"its optical density of haematoxylin and eosin is {_list(here['stain'])}, not {_list(stain)}")
    return found


def _pixels(section: Section, card: ModelCard) -> list[str]:
    known = _of_sections(card, "mpp")
    if section.mpp is None or not len(known) or _outside(section.mpp.value, known) <= PITCH:
        return []
    return [f"its pixels are {section.mpp.value:.3g} um wide, not {_range(known)} um, and are not resampled"]


def _distances(section: Section, card: ModelCard) -> list[str]:
    known, here = _of_sections(card, "spot_distance_um"), spot_distance(section)
    if here is None or not len(known) or _outside(here, known) <= PITCH:
        return []
    return [f"its spots are {here:.3g} um apart, not {_range(known)} um, and the network reads neighbouring spots"]


def _reads_neighbours(card: ModelCard) -> bool:
    spec = get_spec(card.model)
    describe = spec.reads(card.hparams).describe_encoder
    return spec.scope == "section" or (describe is not None and describe().neighbours > 0)


def _of_sections(card: ModelCard, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers that the card has of the sections of training; notes of another kind are passed over."""
    sections = card.training.get("sections")
    found = [one.get(name) for one in sections if isinstance(one, dict)] if isinstance(sections, list) else []
    values = np.array([v for v in found if isinstance(v, int | float) and not isinstance(v, bool)], dtype=np.float64)
    return values[np.isfinite(values) & (values > 0)]


def _numbers(notes: object, name: str, n: int) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Numbers of a note of the card; ``None`` if it is not there or of another kind."""
    values: Mapping[str, Any] = notes if isinstance(notes, dict) else {}
    try:
        array = np.array(values.get(name), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.shape == (n,) and np.isfinite(array).all() else None


def _ratio(values: Any, known: Any) -> float:
    """Return the largest factor between values and training values."""
    ratio = np.maximum(values, 1e-6) / known
    return float(np.maximum(ratio, 1 / ratio).max())


def _outside(value: float, known: Any) -> float:
    """Return the factor by which a value is outside the training range."""
    return float(max(value / known.max(), known.min() / value))


def _list(values: Any) -> str:
    return ", ".join(f"{value:z.2f}" for value in values)


def _range(known: Any) -> str:
    low, high = f"{known.min():.3g}", f"{known.max():.3g}"
    return low if low == high else f"{low} to {high}"
