"""How a slide is stained, and the map of its colours to those of another one."""

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

# RGB to the responses of cones (LMS), and their logarithms to lightness and two colours: Ruderman, Cronin and Chiao 1998, as Reinhard
# et al. 2001 use them.
_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])

_WHITE = 256.0  # of 255, plus 1, so that black has a logarithm


@validated
class Stain:
    """How the tissue of a slide is stained, as :func:`st_predict.pp.fit_stain` measures it.

    Parameters
    ----------
    method
        ``"macenko"`` or ``"reinhard"``.
    matrix
        For Macenko: optical density of red, green and blue (rows) of haematoxylin, eosin and a rest at right angles (columns).
    mean, sd
        For Reinhard: of lightness and two colours over the tissue, in the space of Ruderman.
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
                f"A stain by {self.method!r} has {'matrix' if self.method == 'macenko' else 'mean and sd'}, and no other numbers."
            )
        if self.sd is not None and min(self.sd) <= 0:
            raise InvalidValueError(f"sd must be positive, got {self.sd}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers that are set, for a card."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def average(cls, stains: Sequence[Stain]) -> Self:
        """Return the mean of several slides, all by the same method."""
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
        """Return the stain with mean and spread, ``(3,)`` each."""
        return cls(
            method="reinhard",
            mean=cast("Triple", tuple(np.asarray(mean).tolist())),
            sd=cast("Triple", tuple(np.asarray(sd).tolist())),
        )


@dataclass(frozen=True, slots=True, eq=False)
class StainMap:
    """Maps the colours of a slide to those of another one.

    Macenko: optical density is divided into stains by the matrix of the slide, and put together by the other matrix, so that hues change
    and amounts do not; white stays white. Reinhard: lightness and colours get the mean and the spread of the other slide.

    Parameters
    ----------
    before
        255 logarithms of 8-bit values for Macenko; none for Reinhard.
    linear
        ``(3, 3)``: acts on logarithms.
    shift
        ``(3,)``: is added to them.
    """

    before: NDArray[np.float32] | None
    linear: NDArray[np.float32]
    shift: NDArray[np.float32]

    @classmethod
    def between(cls, source: Stain, target: Stain) -> StainMap:
        """Return the map from the colours of ``source`` to those of ``target``, which are by the same method."""
        if source.method == "macenko":
            linear = np.array(target.matrix) @ np.linalg.pinv(np.array(source.matrix))
            logs = np.log((np.arange(256) + 1) / _WHITE).astype(np.float32)
            return cls(logs, linear.astype(np.float32), np.zeros(3, np.float32))
        ratio = np.array(target.sd) / np.array(source.sd)
        back = np.linalg.inv(_TO_LAB)
        shift = back @ (np.array(target.mean) - np.array(source.mean) * ratio)
        return cls(None, (back @ np.diag(ratio) @ _TO_LAB).astype(np.float32), shift.astype(np.float32))

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map pixels, ``(..., 3)``; what would be brighter than white or darker than black is cut off."""
        if self.before is not None:
            mapped = _WHITE * np.exp(self.before[rgb] @ self.linear.T) - 1
        else:
            logs = np.log(rgb @ _TO_LMS.T.astype(np.float32) + 1)
            lms = np.exp(logs @ self.linear.T + self.shift) - 1
            mapped = lms @ np.linalg.inv(_TO_LMS).T.astype(np.float32)
        return np.rint(mapped.clip(0, 255)).astype(np.uint8)
