"""Colour scales of maps: their ends, and whether maps share them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.colors import BoundaryNorm, Normalize

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._validated import Number, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.colors import Colormap
    from numpy.typing import NDArray

__all__ = ["ColourScale", "extend_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourScale:
    """Colour scale of the maps of a gene.

    Parameters
    ----------
    scale
        ``"own"`` for one per map, ``"shared"`` for one per gene.
    cmap
        Colour map.
    vmin
        Lower end; ``None`` for the lower percentile.
    vmax
        Upper end; ``None`` for the upper percentile.
    norm
        Normalisation, copied for each map; ``None`` for a linear one.
    percentiles
        Ends that are not given, as percentiles of the values.
    """

    scale: Literal["own", "shared"]
    cmap: Colormap
    vmin: float | None
    vmax: float | None
    norm: Normalize | None
    percentiles: tuple[float, float]

    @classmethod
    def of(
        cls,
        scale: Literal["own", "shared"],
        *,
        cmap: Colormap,
        vmin: float | None,
        vmax: float | None,
        norm: Normalize | None,
        percentiles: tuple[float, float],
    ) -> ColourScale:
        """Check the arguments of a plot."""
        check("scale", scale, Literal["own", "shared"])
        low, high = check("vmin", vmin, Number | None), check("vmax", vmax, Number | None)
        if norm is not None and not isinstance(norm, Normalize):
            raise InvalidTypeError(f"norm must be a matplotlib.colors.Normalize, got {norm!r}.")
        for name, value in (("vmin", low), ("vmax", high)):
            if norm is not None and value is not None:
                raise InvalidValueError(
                    f"norm and {name} = {value:g} both set the ends of the colour scale.",
                    f"pass {name} to the constructor of the norm",
                    Advice("leave out {}", name),
                )
        if low is not None and high is not None and low >= high:
            raise InvalidValueError(f"vmin must be below vmax, got {low:g} and {high:g}.")
        return cls(scale=scale, cmap=cmap, vmin=low, vmax=high, norm=norm, percentiles=percentiles)

    def norms(self, maps: Sequence[NDArray[Any]]) -> list[Normalize]:
        """Return the normalisation of each map of a gene; maps with a shared scale have the same object."""
        if self.scale == "shared":
            return [self._norm(np.concatenate(maps))] * len(maps)
        return [self._norm(values) for values in maps]

    def _norm(self, values: NDArray[Any]) -> Normalize:
        found = values[np.isfinite(values)]
        ends = np.percentile(found, self.percentiles) if len(found) else np.array([0.0, 1.0])
        if self.norm is not None:
            norm = deepcopy(self.norm)  # maps differ in their limits, and the user's norm must not change
            norm.autoscale_None(found.clip(*ends) if len(found) else ends)
            _check_limits(norm, ends)
            return norm
        low = float(ends[0]) if self.vmin is None else self.vmin
        high = float(ends[1]) if self.vmax is None else self.vmax
        if low > high:  # all values lie beyond the given end
            extent = float(ends[1] - ends[0]) or 1.0
            low, high = (low, low + extent) if self.vmax is None else (high - extent, high)
        return Normalize(low, high)


def _check_limits(norm: Normalize, ends: NDArray[np.float64]) -> None:
    """Refuse a norm that is undefined for the values, before matplotlib does so when it draws."""
    if isinstance(norm, BoundaryNorm):  # has its own limits and lacks an inverse
        return
    try:
        norm.inverse(norm(ends))  # as a colour bar does
    except ValueError as error:
        raise InvalidValueError(
            f"norm, a {type(norm).__name__}, cannot scale values from {ends[0]:.3g} to {ends[1]:.3g}: {error}.",
            "pass vmin and vmax to its constructor",
            Advice("choose another with {}", "norm"),
        ) from error


def extend_of(norm: Normalize, values: NDArray[Any]) -> Literal["neither", "min", "max", "both"]:
    """Return the ends of a colour scale that values lie beyond."""
    below = norm.vmin is not None and bool((values < norm.vmin).any())
    above = norm.vmax is not None and bool((values > norm.vmax).any())
    if below and above:
        return "both"
    return "min" if below else "max" if above else "neither"
