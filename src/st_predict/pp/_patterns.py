"""Spot patterns of assays, for lattices on unmeasured slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from st_predict._errors import Advice, InvalidValueError

__all__ = ["Layout", "SpotPattern", "Pattern", "lattice_of"]

Layout: TypeAlias = Literal["square", "hex"]
Pattern: TypeAlias = Literal["visium", "visium_hd_2um", "visium_hd_8um", "visium_hd_16um", "legacy_st"]


@dataclass(frozen=True, slots=True)
class SpotPattern:
    """Spot pitch and diameter in micrometres, and layout."""

    pitch_um: float = 100.0
    diameter_um: float = 55.0
    layout: Layout = "square"


PATTERNS: dict[Pattern, SpotPattern] = {
    "visium": SpotPattern(pitch_um=100, diameter_um=55, layout="hex"),
    "visium_hd_2um": SpotPattern(pitch_um=2, diameter_um=2),
    "visium_hd_8um": SpotPattern(pitch_um=8, diameter_um=8),
    "visium_hd_16um": SpotPattern(pitch_um=16, diameter_um=16),
    "legacy_st": SpotPattern(pitch_um=200, diameter_um=100),
}
"""Patterns as specified by the manufacturers. Bins of Visium HD are squares; the diameter is their side."""


def lattice_of(
    pattern: Pattern | None, *, pitch_um: float | None, diameter_um: float | None, layout: Layout | None
) -> SpotPattern:
    """Return the lattice by its name, or by pitch, diameter and layout.

    Raises
    ------
    ValueError
        If both are given.
    """
    given = {"pitch_um": pitch_um, "diameter_um": diameter_um, "layout": layout}
    given = {name: value for name, value in given.items() if value is not None}
    if pattern is None:
        default = SpotPattern()
        return SpotPattern(
            pitch_um=default.pitch_um if pitch_um is None else pitch_um,
            diameter_um=default.diameter_um if diameter_um is None else diameter_um,
            layout=layout or default.layout,
        )
    if given:
        raise InvalidValueError(
            f"The pattern {pattern!r} sets pitch, diameter and layout, but {sorted(given)} are given too.",
            Advice("leave out {}", "pattern"),
            f"leave out {sorted(given)}",
        )
    return PATTERNS[pattern]
