"""Colours of the objects of a file: a scale for numbers, a list for categories."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._validated import Number, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Colours", "category_colours", "check_colours", "number_colours"]

Colours: TypeAlias = Callable[[Any], Any]
"""From numbers of 0 to 1, ``(n,)``, to ``(n, 3)`` or ``(n, 4)`` numbers of 0 to 1, as a colour map of matplotlib does."""

# 17 colours of viridis, at even steps; the scale is linear between them
_VIRIDIS = "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
_PERCENTILES = (2, 98)


def check_colours(cmap: Any, vmin: Any, vmax: Any) -> None:
    """Refuse a colour scale that cannot be used.

    Raises
    ------
    TypeError
        If ``cmap`` cannot be called.
    ValueError
        If the ends are not numbers, or in the wrong order.
    """
    if cmap is not None and not callable(cmap):
        raise InvalidTypeError(
            f"cmap must be a function from numbers of 0 to 1 to colours, got {cmap!r}.",
            "take one of matplotlib, as matplotlib.colormaps['magma']",
        )
    low, high = check("vmin", vmin, Number | None), check("vmax", vmax, Number | None)
    if low is not None and high is not None and low >= high:
        raise InvalidValueError(f"vmin must be below vmax, got {low:g} and {high:g}.")


def number_colours(
    values: NDArray[Any], *, cmap: Colours | None, vmin: float | None, vmax: float | None
) -> NDArray[np.int64]:
    """Colours of numbers.

    Parameters
    ----------
    values
        ``(n,)``; NaN gets the colour of the lower end.
    cmap
        Colour scale; ``None`` for viridis.
    vmin
        Value at the lower end; ``None`` for the 2nd percentile.
    vmax
        Value at the upper end; ``None`` for the 98th percentile.

    Returns
    -------
    ndarray
        ``(n, 3)``: red, green and blue, 0 to 255.
    """
    found = values[np.isfinite(values)]
    ends = np.percentile(found, _PERCENTILES) if len(found) else np.array([0.0, 1.0])
    low, high = (float(ends[0]) if vmin is None else vmin), (float(ends[1]) if vmax is None else vmax)
    place = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    colours = np.asarray((cmap or _viridis)(np.nan_to_num(place)), np.float64)
    if colours.ndim != 2 or colours.shape[0] != len(values) or colours.shape[1] not in {3, 4}:
        raise InvalidValueError(
            f"cmap must give (n, 3) or (n, 4) numbers for n values, got the shape {colours.shape}.",
            Advice("leave out {}", "cmap"),
        )
    return np.rint(np.clip(colours[:, :3], 0, 1) * 255).astype(np.int64)


def _viridis(place: NDArray[np.float64]) -> NDArray[np.float64]:
    stops = np.array([list(bytes.fromhex(code)) for code in _VIRIDIS.split()]) / 255
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(place, at, channel) for channel in stops.T], axis=1)


def category_colours(categories: Sequence[str], known: Any = None) -> dict[str, list[int]]:
    """Colours of categories, red, green and blue from 0 to 255.

    Parameters
    ----------
    categories
        Names in their order.
    known
        Colours as scanpy keeps them, a code such as ``"#1f77b4"`` per category; ``None`` for hues at even distances.
    """
    codes = [] if known is None else [str(code).lstrip("#") for code in known]
    if len(codes) == len(categories) and all(_is_code(code) for code in codes):
        return {name: list(bytes.fromhex(code[:6])) for name, code in zip(categories, codes, strict=True)}
    hues = [colorsys.hsv_to_rgb(i / max(len(categories), 1), 0.65, 0.85) for i in range(len(categories))]
    return {name: [round(255 * part) for part in hue] for name, hue in zip(categories, hues, strict=True)}


def _is_code(code: str) -> bool:
    return len(code) in {6, 8} and all(letter in "0123456789abcdefABCDEF" for letter in code)
