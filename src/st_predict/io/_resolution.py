"""Micrometres per pixel of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from st_predict._errors import Advice, InvalidValueError

__all__ = ["ARGUMENT", "GIVE", "SPOTS", "Mpp"]

GIVE = Advice("give it with {}", "mpp")

ARGUMENT, SPOTS = "argument", "distance between spots"
"""How sources begin that others are compared with in another way."""


@dataclass(frozen=True, slots=True)
class Mpp:
    """Micrometres per pixel of level 0 of an image.

    Parameters
    ----------
    value
        Micrometres per pixel.
    source
        Source of the value, such as ``"argument"``.

    Examples
    --------
    >>> import st_predict as stp
    >>> mpp = stp.io.find_mpp(stp.datasets.toy())
    >>> mpp.value, mpp.source
    (1.2, "coordinate system 'um'")
    """

    value: float
    source: str

    def __post_init__(self) -> None:
        is_number = isinstance(self.value, Real) and not isinstance(self.value, bool)
        if not (is_number and math.isfinite(self.value) and self.value > 0):
            found = self.value if is_number else repr(self.value)
            ways_out = [] if self.source == ARGUMENT else [GIVE]
            raise InvalidValueError(f"mpp must be a positive number, got {found} from {self.source}.", *ways_out)
        object.__setattr__(self, "value", float(self.value))  # not of numpy

    @property
    def measured(self) -> bool:
        """Whether it was measured from the distance between spots."""
        return self.source.startswith(SPOTS)

    @property
    def asked(self) -> bool:
        """Whether it is what the caller gave."""
        return self.source == ARGUMENT
