"""Several scores of many genes as a heatmap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import NotFoundError
from st_predict._validated import Count, Number, Text, Texts, check
from st_predict.pl._figure import Output, colour_map, figure_of, make_axes, plot, tidy_bar
from st_predict.pl._labels import FONT, SMALL, lay_out, names_fit, size_in, text_width
from st_predict.pl._table import predictors_of, score_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from st_predict.pl._table import HasGenes

__all__ = ["heatmap"]

METRICS = ("partial", "residual", "pearson", "spearman")

ROW, COLUMN = 0.14, 0.52
"""Height of a gene and width of a score, in inches."""

NAMES = {"pearson": "Pearson", "spearman": "Spearman", "morans_i": "Moran's I"}

GREY = "0.85"
"""Colour of undefined scores."""


@plot
def heatmap(  # noqa: PLR0913 - a plot has many options, and users find them in the signature
    evaluation: HasGenes | pd.DataFrame,
    *,
    metrics: Sequence[str] = METRICS,
    predictor: str | None = None,
    n_genes: int = 40,
    vmin: float = -1.0,
    vmax: float = 1.0,
    cmap: str | Colormap = "RdBu_r",
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw several scores of many genes as a heatmap: one row per gene, one column per score, one panel per section.

    Genes are sorted by the mean of the first score over the sections, and have the same order in all panels. Names that have
    no room are left out evenly, and a note says so. Undefined scores are grey. A gene with a high plain and a low partial correlation follows sequencing depth.

    Parameters
    ----------
    evaluation
        Result of :func:`st_predict.tl.evaluate`, or its ``genes``: a table with the columns ``section``, ``predictor``,
        ``gene`` and ``metrics``.
    metrics
        Columns to draw, such as ``"partial"``, ``"pearson"`` or ``"morans_i"``; the first one sorts.
    predictor
        Predictor to draw; by default the first of the table, which is the model.
    n_genes
        Number of genes to draw: the best ones.
    vmin
        Score with the colour of the lower end.
    vmax
        Score with the colour of the upper end.
    cmap
        Colour map, by default one that is white at the middle and can be read with any colour vision.
    ax
        Axes to draw on, one per section; by default a new figure.
    title
        Title of the figure.
    figsize
        Size of a new figure in inches.
    dpi
        Resolution of a saved raster image in dots per inch.
    save
        File to write; an existing file is replaced. The suffix selects the format. A new figure is then closed, unless
        ``show`` or ``return_fig`` is set.
    show
        Whether to show all open figures now. By default, a window opens unless ``save``, ``ax`` or ``return_fig`` is
        given, and a notebook shows the figure when the cell ends.
    return_fig
        Whether to return the Figure, which stays open, instead of its Axes. In a notebook, it is shown where a cell
        ends with it.

    Returns
    -------
    ndarray or Figure
        Axes, ``(n_sections,)``. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If a column or the predictor does not exist; the message lists the existing ones.
    TypeError
        If ``evaluation`` is another object.
    ValueError
        If an argument has another type or range, or the number of ``ax`` is not the number of sections.

    Examples
    --------
    >>> import tempfile
    >>> import matplotlib.pyplot as plt
    >>> import st_predict as stp
    >>> sections = stp.datasets.simulate(2, 1, n_genes=8, shape=(720, 880), mpp=1.2).sections
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sections["P1S1"], "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sections["P2S1"], result)
    >>> axes = stp.pl.heatmap(stp.tl.evaluate(sections["P2S1"]), show=False)
    >>> axes.shape  # sections
    (1,)
    >>> plt.close()
    """
    metrics, n_genes = check("metrics", metrics, Texts), check("n_genes", n_genes, Count)
    check("vmin", vmin, Number), check("vmax", vmax, Number)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    colours = colour_map(cmap).with_extremes(bad=GREY)
    frame = _rows(score_table(evaluation, metrics), check("predictor", predictor, Text | None))
    genes = frame.groupby("gene", sort=False)[metrics[0]].mean().sort_values(ascending=False)
    genes = list(map(str, genes.index[:n_genes]))
    sections = list(frame["section"].unique())
    names = text_width(genes, SMALL) + 0.9  # the colour bar too
    size = (names + len(sections) * (len(metrics) * COLUMN + 0.1), 1.1 + len(genes) * ROW)
    axes = make_axes(1, len(sections), ax=ax, size=figsize or size).ravel()
    for one, section in zip(axes, sections, strict=True):
        table = frame[frame["section"] == section].set_index("gene")[list(metrics)].reindex(genes)
        drawn = one.imshow(table.to_numpy(np.float64), cmap=colours, vmin=vmin, vmax=vmax, aspect="auto")
        one.set_title(section, fontsize=FONT)
        one.set_yticks([])
    bar = figure_of(axes).colorbar(drawn, ax=list(axes), fraction=0.05, pad=0.02, aspect=30)
    tidy_bar(bar, "Score", extend=False)
    lay_out(figure_of(axes))
    for one in axes:
        _name_columns(one, [NAMES.get(metric, metric) for metric in metrics])
    _name_rows(axes[0], genes)
    return output.finish(axes)


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Name scores below their columns, upright if there is no room."""
    width, _ = size_in(axes)
    upright = text_width(names, SMALL) > 0.95 * width / len(names)
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=SMALL)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _name_rows(axes: Axes, genes: Sequence[str]) -> None:
    """Name genes beside their rows, as many as have room."""
    _, height = size_in(axes)
    step = names_fit(genes, height, SMALL)
    axes.set_yticks(range(0, len(genes), step), genes[::step], fontsize=SMALL)
    if step > 1:
        axes.set_ylabel(f"1 of {step} genes is named", fontsize=SMALL)


def _rows(frame: pd.DataFrame, predictor: str | None) -> pd.DataFrame:
    """Rows of one predictor."""
    predictors = predictors_of(frame)
    chosen = predictors[0] if predictor is None else predictor
    if chosen not in predictors:
        raise NotFoundError(f"No predictor {chosen!r} in the table of scores; there are {predictors}.")
    return frame[frame["predictor"] == chosen]
