"""Creation, layout, saving and closing of figures, common to all plots."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, cast, overload

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps, get_backend, rc_context
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import Colormap
from matplotlib.font_manager import FontProperties
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._files import whole
from st_predict._validated import Count, File, Flag, Positive, Text, check
from st_predict.pl._labels import FONT, LINE_HEIGHT, SMALL, fit_texts, wrap

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "Output",
    "add_scale_bar",
    "colour_map",
    "figure_of",
    "make_axes",
    "make_blocks",
    "make_panels",
    "plot",
    "scale_bar_um",
    "tidy",
    "tidy_bar",
]

P = ParamSpec("P")

LINE = 0.6
"""Width of spines and ticks in points."""


class Plot(Protocol[P]):
    """A function that draws and returns axes, or the figure if ``return_fig`` is true."""

    @overload
    def __call__(self, *args: Any, return_fig: Literal[True], **kwargs: Any) -> Figure: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> NDArray[np.object_]: ...


def plot(function: Callable[P, NDArray[np.object_] | Figure]) -> Plot[P]:
    """Tell type checkers that the result is axes unless ``return_fig`` is true; nothing else changes."""
    return cast("Plot[P]", function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Options of all plots: title and size of the figure, file, window, and returned object.

    Parameters
    ----------
    title
        Title of the figure.
    figsize
        Size of a new figure in inches.
    dpi
        Resolution of a saved raster image in dots per inch.
    save
        File to write.
    show
        Whether to show all open figures; ``None`` if a window would have to be opened for it.
    return_fig
        Whether the figure is returned instead of its axes.
    new
        Whether the figure is new, not the user's.
    """

    title: str | None
    figsize: tuple[float, float] | None
    dpi: int
    save: Path | None
    show: bool | None
    return_fig: bool
    new: bool

    @classmethod
    def of(
        cls,
        *,
        ax: object,
        title: str | None,
        figsize: tuple[float, float] | None,
        dpi: int,
        save: str | os.PathLike[str] | None,
        show: bool | None,
        return_fig: bool,
    ) -> Output:
        """Refuse options that cannot be used, before a figure is made."""
        path = None if check("save", save, File | None) is None else Path(cast("str", save))
        if path is not None:
            _check_save(path)
        return cls(
            title=check("title", title, Text | None),
            figsize=check("figsize", figsize, tuple[Positive, Positive] | None),
            dpi=check("dpi", dpi, Count),
            save=path,
            show=check("show", show, Flag | None),
            return_fig=check("return_fig", return_fig, Flag),
            new=ax is None,
        )

    def finish(self, axes: NDArray[np.object_]) -> NDArray[np.object_] | Figure:
        """Give a figure its title, save and show it, and return its axes or itself.

        A saved figure of ours is closed unless it is shown or returned.
        """
        figure = figure_of(axes)
        shown = self._is_shown(figure)
        try:
            if self.title is not None:
                self._add_title(figure, self.title)
            fit_texts(figure.axes if self.new else axes.ravel().tolist())
            if self.save is not None:
                _save(figure, self.save, dpi=self.dpi)
            if shown:
                plt.show()
        finally:
            if self._is_closed(shown=shown):
                plt.close(figure)
        return figure if self.return_fig else axes

    def _add_title(self, figure: Figure, title: str) -> None:
        """Write the title of a figure; a new figure without a given size grows by its height."""
        text = figure.suptitle("", fontsize=FONT + 1)
        text.set_text(wrap(title, figure.get_figwidth() - 0.2, text.get_fontproperties()))
        if self.new and self.figsize is None:
            n_lines = 1 + text.get_text().count("\n")
            figure.set_figheight(figure.get_figheight() + n_lines * LINE_HEIGHT + 0.1)

    def _is_shown(self, figure: Figure) -> bool:
        """Decide whether to call ``plt.show``: it is needed for windows that do not open by themselves."""
        if self.show is not None:
            return self.show
        has_window = figure.canvas.required_interactive_framework is not None
        return has_window and not plt.isinteractive() and self.new and self.save is None and not self.return_fig

    def _is_closed(self, *, shown: bool) -> bool:
        if self.return_fig:  # an inline notebook shows all open figures when a cell ends, and its last value once more
            return self.new and not shown and "inline" in get_backend()
        return self.new and self.save is not None and not self.show


def colour_map(cmap: str | Colormap) -> Colormap:
    """Return a colour map of matplotlib by its name."""
    if isinstance(cmap, str) and cmap not in colormaps:
        close = difflib.get_close_matches(cmap, list(colormaps)) or ["viridis", "magma", "cividis"]
        raise InvalidValueError(f"Unknown colour map {cmap!r}; similar ones of matplotlib are {close}.")
    if not isinstance(cmap, str | Colormap):
        raise InvalidTypeError(f"cmap must be the name of a colour map or a Colormap, got {cmap!r}.")
    return colormaps[cmap] if isinstance(cmap, str) else cmap


def make_axes(
    n_rows: int, n_cols: int, *, ax: Axes | Sequence[Axes] | NDArray[np.object_] | None, size: tuple[float, float]
) -> NDArray[np.object_]:
    """Return ``(n_rows, n_cols)`` axes: the user's, or new ones on a figure of ``size`` inches."""
    if ax is None:
        figure = plt.figure(figsize=size, layout="compressed")
        return figure.subplots(n_rows, n_cols, squeeze=False)
    given = [ax] if isinstance(ax, Axes) else list(np.asarray(ax, dtype=object).ravel())
    if not all(isinstance(one, Axes) for one in given):
        raise InvalidTypeError(f"ax must be one matplotlib Axes or a sequence of them, got {ax!r}.")
    if len(given) != n_rows * n_cols:
        raise InvalidValueError(
            f"This plot has {n_rows} x {n_cols} panels, so ax needs {n_rows * n_cols} Axes, got {len(given)}."
        )
    return np.array(given, dtype=object).reshape(n_rows, n_cols)


def make_panels(
    n_panels: int,
    ncols: int,
    *,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None,
    size: tuple[float, float],
) -> NDArray[np.object_]:
    """Return ``(n_panels,)`` axes, ``ncols`` per row of a new figure, whose surplus axes are removed."""
    if ax is not None:
        return make_axes(1, n_panels, ax=ax, size=size).ravel()
    axes = make_axes(-(-n_panels // ncols), ncols, ax=None, size=size).ravel()
    for surplus in axes[n_panels:]:
        surplus.remove()
    return axes[:n_panels]


def make_blocks(
    n_blocks: int, n_panels: int, *, ncols: int, first: bool, size: tuple[float, float]
) -> NDArray[np.object_]:
    """Make a figure of blocks of panels side by side, ``ncols`` blocks per row, and one panel in front of the first row.

    Parameters
    ----------
    n_blocks
        Number of blocks.
    n_panels
        Number of panels per block.
    ncols
        Number of blocks per row.
    first
        Whether there is a panel in front.
    size
        Width and height in inches.

    Returns
    -------
    ndarray
        Axes, ``(first + n_blocks * n_panels,)``, block by block.
    """
    figure = plt.figure(figsize=size, layout="compressed")
    grid = figure.add_gridspec(-(-n_blocks // ncols), first + ncols * n_panels)
    places = [divmod(block, ncols) for block in range(n_blocks)]
    cells = [(row, first + place * n_panels + panel) for row, place in places for panel in range(n_panels)]
    return np.array([figure.add_subplot(grid[cell]) for cell in [(0, 0)] * first + cells], dtype=object)


def figure_of(axes: NDArray[np.object_]) -> Figure:
    """Return the figure that axes are on."""
    first = cast("Axes", axes.flat[0])
    return cast("Figure", first.get_figure(root=True))


def add_scale_bar(axes: Axes, *, width: float, mpp: float | None) -> None:
    """Draw a scale bar in the lower left corner; nothing is drawn without ``mpp``, because lengths would be guesses.

    Parameters
    ----------
    axes
        Axes with pixels as data units.
    width
        Width of the view in pixels.
    mpp
        Micrometres per pixel.
    """
    if mpp is None:
        return
    length = scale_bar_um(width * mpp)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(
        axes.transData,
        length / mpp,
        label,
        loc="lower left",
        pad=0.3,
        sep=3,
        borderpad=0.3,
        size_vertical=width / 150,
        fontproperties=FontProperties(size=SMALL),
    )
    bar.patch.set(alpha=0.8, linewidth=0)
    axes.add_artist(bar)


def tidy(axes: Axes) -> None:
    """Give axes thin lines, small numbers, and no frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_linewidth(LINE)
    axes.tick_params(width=LINE, length=2.5, labelsize=SMALL)
    axes.title.set_fontsize(FONT)


def tidy_bar(bar: Colorbar, label: str, *, extend: bool = True) -> None:
    """Give a colour bar its label, thin lines and small numbers; ``extend`` keeps its outline, which arrows need."""
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(width=LINE, length=2, pad=2, labelsize=SMALL)
    cast("Any", bar.outline).set(linewidth=LINE, visible=extend)


def scale_bar_um(width_um: float) -> float:
    """Longest of 1, 2, 5, 10, 20... um that is at most a quarter of ``width_um``."""
    largest = width_um / 4
    power = 10.0 ** np.floor(np.log10(largest))
    return float(max(step * power for step in (1, 2, 5) if step * power <= largest))


def _save(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write to a temporary file and move it, so that a failure keeps an existing file."""
    kind = _check_save(path)
    texts: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}  # texts stay texts in vector files
    with rc_context(texts), whole(path) as fresh:
        figure.savefig(fresh, format=kind, dpi=dpi)


def _check_save(path: Path) -> str:
    """Return the format of a file; refuse unsupported ones and missing folders."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot save {path}: the folder {path.parent} does not exist.")
    choices = FigureCanvasBase.get_supported_filetypes()
    kind = path.suffix.removeprefix(".").lower()
    if kind not in choices:
        raise InvalidValueError(
            f"Cannot save {path.name!r}: its name must end in one of {sorted('.' + c for c in choices)}."
        )
    return kind
