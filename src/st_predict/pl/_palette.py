"""Colours of two or three values, safe for colour-blind readers: lightness and blue to yellow, then green to pink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from skimage.color import lab2rgb

from st_predict.pl._labels import SMALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["LEGEND_WIDTH", "add_legend", "colours_of"]

LEGEND_WIDTH = 1.3
"""Width of the legend with its labels, in inches."""

SIDE = 0.27
"""Side of the legend, as a fraction of the width of a map."""

STRIP = 0.25
"""Height of the strip of the third value, relative to the legend's side."""

# Corners (lightness, a*, b*) in CIELAB: blue dark, blue light, yellow dark. All colours between them are in sRGB. Readers
# without red or green cones see lightness and b* only, so these two carry the values. Dark blue and light yellow are
# the colours that a screen has, hence a parallelogram.
TWO = np.array([(27.0, 20.0, -44.0), (64.0, 20.0, -44.0), (42.0, 0.0, 48.0)])
# A third value needs room in a*, which leaves less for the others.
THREE = np.array([(40.0, 14.0, -34.0), (64.0, 14.0, -34.0), (52.0, 4.0, 44.0)])
GREEN_TO_PINK = 36.0
"""Range of the third value in a*."""


def colours_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the colours of values from 0 to 1.

    Equal differences of a value are equal differences in CIELAB.

    Parameters
    ----------
    values
        ``(n, 2)`` or ``(n, 3)``: lightness, blue to yellow, and green to pink.

    Returns
    -------
    Red, green and blue from 0 to 1, ``(n, 3)``.
    """
    dark, light, yellow = TWO if values.shape[1] == 2 else THREE
    lab = dark + values[:, :1] * (light - dark) + values[:, 1:2] * (yellow - dark)
    if values.shape[1] == 3:
        lab[:, 1] += GREEN_TO_PINK * (values[:, 2] - 0.5)
    return np.asarray(lab2rgb(lab), dtype=np.float64)


def add_legend(axes: Axes, names: Sequence[str], *, aspect: float) -> None:
    """Draw the colours of two values as a square right of a map, and a strip of the third value above it.

    Parameters
    ----------
    axes
        Axes of the map.
    names
        Name of each value.
    aspect
        Height of the map relative to its width.
    """
    lightness, hue = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 64), indexing="ij")
    middle = np.full_like(lightness, 0.5)
    square = axes.inset_axes((1.2, 0.12, SIDE, SIDE / aspect))
    _draw(square, np.stack([lightness, hue, middle][: len(names)], axis=-1))
    square.set_xlabel(names[1], fontsize=SMALL, labelpad=1)
    square.set_ylabel(names[0], fontsize=SMALL, labelpad=1)
    square.set_yticks([0, 1], ["low", "high"])
    low, high = square.get_yticklabels()
    low.set_verticalalignment("bottom")
    high.set_verticalalignment("top")
    if len(names) == 3:
        strip = axes.inset_axes((1.2, 0.12 + 2.2 * SIDE / aspect, SIDE, STRIP * SIDE / aspect))
        _draw(strip, np.stack([middle[:1], middle[:1], hue[:1]], axis=-1))
        strip.set_xlabel(names[2], fontsize=SMALL, labelpad=1)


def _draw(axes: Axes, values: NDArray[np.float64]) -> None:
    colours = colours_of(values.reshape(-1, values.shape[2])).reshape(*values.shape[:2], 3)
    axes.imshow(colours, origin="lower", extent=(0, 1, 0, 1), aspect="auto")
    axes.set(xticks=[0, 1], xticklabels=["low", "high"], yticks=[])
    low, high = axes.get_xticklabels()
    low.set_horizontalalignment("left")
    high.set_horizontalalignment("right")
    axes.tick_params(length=2, pad=1, labelsize=SMALL)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
