"""Texts that fit: their measured width, line breaks, and names of genes that do not touch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["FONT", "LINE_HEIGHT", "PAGE", "SMALL", "fit_texts", "lay_out", "names_fit", "size_in", "text_width", "wrap"]

PAGE = 7.2
"""Width of a page of two columns in inches, which figures keep to where they can."""

FONT, SMALL = 8, 7
"""Points; print needs at least 7."""

LINE_HEIGHT = 0.14
"""Height of a line of a title in inches."""

SPACING = 1.15
"""Distance of lines relative to the size of the font."""


# spaces, but not of "r = 0.5" and "(0.1 to 0.2)"
_WORDS = re.compile(r"(?<!=) (?!=)(?![^()]*\))")

GAP = 0.08
"""Distance of titles side by side, in inches."""


def text_width(texts: Iterable[str], size: float | FontProperties) -> float:
    """Return the width in inches of the longest text; a number is the size in points."""
    font = size if isinstance(size, FontProperties) else FontProperties(size=size)
    return max((_points(text, font) for text in texts), default=0.0) / 72


def _points(text: str, font: FontProperties) -> float:
    return max(
        float(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0]) for line in text.split("\n")
    )


def wrap(text: str, width: float, font: FontProperties) -> str:
    """Break lines that are wider than ``width`` inches, between words where possible."""
    return "\n".join(part for line in text.split("\n") for part in _break(line, width, font))


def _break(line: str, width: float, font: FontProperties) -> Iterator[str]:
    kept = ""
    for word in _WORDS.split(line):
        joined = f"{kept} {word}" if kept else word
        if text_width([joined], font) <= width:
            kept = joined
            continue
        if kept:
            yield kept
        *parts, kept = _cut(word, width, font)
        yield from parts
    yield kept


def _cut(word: str, width: float, font: FontProperties) -> list[str]:
    """Cut a word that is wider than a line, after a separator where possible."""
    parts = []
    while len(word) > 1 and text_width([word], font) > width:
        end = next((n for n in range(len(word) - 1, 1, -1) if text_width([word[:n]], font) <= width), 1)
        separators = [place + 1 for place in range(end) if word[place] in "_-./ "]
        end = separators[-1] if separators else end
        parts.append(word[:end].rstrip())
        word = word[end:]
    return [*parts, word]


def lay_out(figure: Figure) -> None:
    """Place the axes of a figure, as drawing it would do."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    for axes in figure.axes:
        axes.apply_aspect()


def size_in(axes: Axes) -> tuple[float, float]:
    """Return width and height of laid-out axes in inches."""
    figure, box = cast("Figure", axes.get_figure(root=True)), axes.get_window_extent()
    return float(box.width / figure.dpi), float(box.height / figure.dpi)


def fit_texts(axes: Iterable[Axes]) -> None:
    """Break titles that would touch others, and axis labels that are longer than their axes."""
    shown = list(dict.fromkeys(axes))
    whole = [[text.get_text() for text in _texts(one)] for one in shown]
    for _ in range(2):  # broken lines change the layout
        lay_out(cast("Figure", shown[0].get_figure(root=True)))
        changed = [_fit(one, texts) for one, texts in zip(shown, whole, strict=True)]
        if not any(changed):
            return


def _texts(axes: Axes) -> tuple[Text, Text, Text]:
    return axes.title, axes.xaxis.label, axes.yaxis.label


def _fit(axes: Axes, texts: Sequence[str]) -> bool:
    """Break the title and labels of axes; return whether this changed one."""
    width, height = size_in(axes)
    changed = False
    for text, whole, side in zip(_texts(axes), texts, (_room(axes), width, height), strict=True):
        wrapped = wrap(whole, side, text.get_fontproperties()) if whole else whole
        changed |= wrapped != text.get_text()
        text.set_text(wrapped)
    return changed


def _room(axes: Axes) -> float:
    """Return the width in inches for a centred title, up to the middle of the way to other titles or the figure's edge."""
    figure, box = cast("Figure", axes.get_figure(root=True)), axes.get_window_extent()
    middle = (box.x0 + box.x1) / 2
    room = 2 * min(middle, figure.bbox.x1 - middle)
    for other in figure.axes:
        beside = other.get_window_extent()
        if other is not axes and other.get_title() and beside.y0 < box.y1 and beside.y1 > box.y0:
            room = min(room, abs((beside.x0 + beside.x1) / 2 - middle))
    return max(float(room / figure.dpi) - GAP, 0.3)


def names_fit(names: Sequence[str], length: float, size: float) -> int:
    """Return the smallest step at which every step-th name has room beside the next.

    Parameters
    ----------
    names
        Names, in lines across the axis.
    length
        Length of the axis in inches.
    size
        Size of the font in points.
    """
    return max(1, int(np.ceil(len(names) * SPACING * size / 72 / length)))
