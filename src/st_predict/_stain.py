"""Stain of a slide, and stain normalisation of its colours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict._validated import validated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Method", "Stain", "StainMap"]

Method = Literal["macenko", "reinhard"]
Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]

# RGB to the responses of cones (LMS), and their logarithms to lightness and two colours: Ruderman, Cronin and Chiao 1998, used by
# Reinhard et al. 2001.
_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])

_WHITE = 256.0  # of 255, plus 1, so that black has a logarithm


@validated
class Stain:
    """Stain of a slide's tissue, measured by :func:`st_predict.pp.fit_stain`.

    Parameters
    ----------
    method
        Method of normalisation: ``"macenko"`` or ``"reinhard"``.
    matrix
        Macenko: ``(3, 3)`` optical densities of red, green and blue (rows) of haematoxylin, eosin and an orthogonal
        residual (columns).
    mean, sd
        Reinhard: mean and standard deviation of lightness and two colours over the tissue, in Ruderman's colour space.

    Examples
    --------
    >>> import st_predict as stp
    >>> stain = stp.pp.Stain(method="reinhard", mean=(8.6, -0.1, 0.05), sd=(0.6, 0.1, 0.02))
    >>> stain.to_dict()["method"]
    'reinhard'
    """

    method: Method
    matrix: Matrix | None = None
    mean: Triple | None = None
    sd: Triple | None = None

    def __post_init__(self) -> None:
        needed = (self.matrix,) if self.method == "macenko" else (self.mean, self.sd)
        others = (self.mean, self.sd) if self.method == "macenko" else (self.matrix,)
        if any(part is None for part in needed) or any(part is not None for part in others):
            raise InvalidValueError(
                f"A stain by {self.method!r} needs {'matrix' if self.method == 'macenko' else 'mean and sd'} only."
            )
        if self.sd is not None and min(self.sd) <= 0:
            raise InvalidValueError(f"sd must be positive, got {self.sd}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, for a card."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def average(cls, stains: Sequence[Stain]) -> Self:
        """Return the mean stain of several slides, measured by the same method."""
        if stains[0].method == "macenko":
            matrix = np.mean([np.array(stain.matrix) for stain in stains], axis=0)
            return cls.of_macenko(matrix / np.linalg.norm(matrix, axis=0))
        mean, sd = (np.mean([np.array(getattr(stain, name)) for stain in stains], axis=0) for name in ("mean", "sd"))
        return cls.of_reinhard(mean, sd)

    @classmethod
    def of_macenko(cls, matrix: NDArray[np.float64]) -> Self:
        """Return the stain with a ``(3, 3)`` matrix."""
        return cls(method="macenko", matrix=cast("Matrix", tuple(map(tuple, np.asarray(matrix).tolist()))))

    @classmethod
    def of_reinhard(cls, mean: NDArray[np.float64], sd: NDArray[np.float64]) -> Self:
        """Return the stain with mean and standard deviation, ``(3,)`` each."""
        return cls(
            method="reinhard",
            mean=cast("Triple", tuple(np.asarray(mean).tolist())),
            sd=cast("Triple", tuple(np.asarray(sd).tolist())),
        )


@dataclass(frozen=True, slots=True, eq=False)
class StainMap:
    """Map from a slide's colours to a reference stain.

    Macenko: optical density is decomposed into stains by the slide's matrix and recomposed by the reference's, so that
    hues change, but amounts and white do not. Reinhard: lightness and colours get the reference's mean and standard
    deviation.

    Parameters
    ----------
    before
        Lookup table of logarithms of 8-bit values, Macenko only.
    linear
        ``(3, 3)``: matrix applied to logarithms.
    shift
        ``(3,)``: added after the matrix.
    """

    before: NDArray[np.float32] | None
    linear: NDArray[np.float32]
    shift: NDArray[np.float32]

    @classmethod
    def between(cls, source: Stain, target: Stain) -> StainMap:
        """Return the map from ``source`` to ``target``, two stains of the same method."""
        if source.method == "macenko":
            linear = np.array(target.matrix) @ np.linalg.pinv(np.array(source.matrix))
            logs = np.log((np.arange(256) + 1) / _WHITE).astype(np.float32)
            return cls(logs, linear.astype(np.float32), np.zeros(3, np.float32))
        ratio = np.array(target.sd) / np.array(source.sd)
        back = np.linalg.inv(_TO_LAB)
        shift = back @ (np.array(target.mean) - np.array(source.mean) * ratio)
        return cls(None, (back @ np.diag(ratio) @ _TO_LAB).astype(np.float32), shift.astype(np.float32))

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map pixels, ``(..., 3)``; values are clipped to 0-255."""
        if self.before is not None:
            mapped = _WHITE * np.exp(self.before[rgb] @ self.linear.T) - 1
        else:
            logs = np.log(rgb @ _TO_LMS.T.astype(np.float32) + 1)
            lms = np.exp(logs @ self.linear.T + self.shift) - 1
            mapped = lms @ np.linalg.inv(_TO_LMS).T.astype(np.float32)
        return np.rint(mapped.clip(0, 255)).astype(np.uint8)
