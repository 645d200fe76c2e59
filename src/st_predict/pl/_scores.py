"""Scores of every gene, beside its noise ceiling and the baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from st_predict._errors import NotFoundError
from st_predict._validated import Count, Text, check
from st_predict.pl._figure import Output, figure_of, make_panels, plot, tidy
from st_predict.pl._labels import FONT, PAGE, SMALL, lay_out, names_fit, size_in, text_width, wrap
from st_predict.pl._table import check_scores, predictors_of, score_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from st_predict.pl._table import HasGenes

__all__ = ["scores"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5f5f5f")
"""Palette of Okabe and Ito, distinguishable with any colour vision."""

MARKERS = "os^Dv<>P"
"""One more than colours, so that 56 predictors differ in one or the other."""

METRIC_NAMES = {
    "partial": "Partial correlation given log total count",
    "residual": "Correlation with Pearson residuals",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}

LINES = ("-", "--")
"""Styles of running means, for two predictors of one colour."""

CEILING = "noise ceiling"
CEILING_COLOUR = "0.88"

MAX_NAMED = 40
"""Number of genes whose names are written below the points; of more, the best and worst are."""

N_ENDS = 3
"""Number of best and worst genes."""

MAX_INSIDE = 6
"""Number of legend entries that fit above the points; more are written beside the panel."""

BESIDE = 2.2
"""Width in inches of a legend beside a panel."""

KEY, ROW = 0.45, 0.135
"""Width of the symbol of a legend entry, and height of the entry, in inches."""

WINDOW = 25
"""Number of genes of a running mean."""


@plot
def scores(  # noqa: PLR0913 - a plot has many options, and users find them in the signature
    evaluation: HasGenes | pd.DataFrame,
    *,
    metric: str = "partial",
    sort_by: str | None = None,
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw the score of every gene, sorted, beside its noise ceiling and the baselines: one panel per section.

    Genes are in the order of one predictor, from its best to its worst. Points of a baseline above that line are genes
    that the baseline predicts better. The grey area is the noise ceiling: the correlation that a perfect predictor would
    have with these counts. It exists for ``"partial"`` and ``"residual"``.

    Names that have no room are left out; the best and worst genes are then named below the panel. Panels of more than
    40 genes also have the running mean of each baseline over 25 genes, as a thin line.

    Baselines without a defined score are left out: a constant has no correlation, and the log total count has no partial
    correlation. The legend has the mean over the genes with a defined score, and the number of undefined genes.

    Parameters
    ----------
    evaluation
        Result of :func:`st_predict.tl.evaluate`, or its ``genes``: a table with the columns ``section``, ``predictor``,
        ``gene`` and ``metric``. The noise ceiling is read from the column ``ceiling_{metric}``.
    metric
        Column to draw: ``"partial"``, ``"residual"``, ``"pearson"`` or ``"spearman"``.
    sort_by
        Predictor that orders the genes; by default the first of the table, which is the model.
    ncols
        Number of panels per row of a new figure. By default, as many as a page of 7.2 inches has room for.
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
        If an argument has another type or range, if the table is empty or repeats a gene, or if the number of ``ax`` is not
        the number of sections.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> genes = pd.DataFrame(
    ...     {
    ...         "section": "S1",
    ...         "predictor": ["pred_m2ost", "pred_m2ost", "log_total", "log_total"],
    ...         "gene": ["ERBB2", "VIM", "ERBB2", "VIM"],
    ...         "pearson": [0.6, 0.4, 0.3, 0.5],
    ...         "partial": [0.5, 0.1, None, None],
    ...     }
    ... ).astype({"partial": float})
    >>> axes = stp.pl.scores(genes, metric="pearson", show=False)
    >>> [label.get_text() for label in axes[0].get_xticklabels()]
    ['ERBB2', 'VIM']
    >>> plt.close()
    """
    check("metric", metric, Text)
    check("sort_by", sort_by, Text | None)
    ncols = check("ncols", ncols, Count | None)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    frame = score_table(evaluation, [metric])
    predictors = _drawn_predictors(frame, metric=metric, sort_by=sort_by)
    ceiling = _ceiling(frame, metric)
    n_labels = len(predictors) + bool(ceiling)
    axes = _make_panels(frame, ncols, ax=ax, size=figsize, beside=n_labels > MAX_INSIDE)
    tables = {}
    for one, (section, rows) in zip(axes, frame.groupby("section", sort=False), strict=True):
        table = tables[section] = _sorted_table(rows, predictors, metric=metric)
        if ceiling:
            _draw_ceiling(one, rows.drop_duplicates("gene").set_index("gene")[ceiling].reindex(table.index))
        # the look of a predictor is the same in every panel, also where another predictor is missing
        _draw_section(one, table, metric=metric, looks={name: predictors.index(name) for name in table})
        one.set_title(str(section), fontsize=FONT)
    lay_out(figure_of(axes))
    for one, table in zip(axes, tables.values(), strict=True):
        _name_genes(one, table)
    ends = _ends(frame, [metric, *([ceiling] if ceiling else [])])
    _add_legends(axes, beside=n_labels > MAX_INSIDE, ends=ends)
    return output.finish(axes)


def _make_panels(
    frame: pd.DataFrame,
    ncols: int | None,
    *,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None,
    size: tuple[float, float] | None,
    beside: bool,
) -> NDArray[np.object_]:
    """Return axes, one per section; a new figure has room for names or for the points of many genes."""
    genes, n_sections = frame["gene"].unique(), frame["section"].nunique()
    named = len(genes) <= MAX_NAMED
    width = (max(3.6, 0.8 + 0.112 * len(genes)) if named else PAGE - beside * BESIDE) + beside * BESIDE
    height = 2.6 + (text_width(map(str, genes), SMALL) if named else 0.4)
    ncols = min(n_sections, ncols or max(1, int(PAGE // width)))
    return make_panels(n_sections, ncols, ax=ax, size=size or (ncols * width, -(-n_sections // ncols) * height))


def _drawn_predictors(frame: pd.DataFrame, *, metric: str, sort_by: str | None) -> list[str]:
    """Return the predictor that orders the genes, then the others with a defined score."""
    predictors = predictors_of(frame)
    first = predictors[0] if sort_by is None else sort_by
    if first not in predictors:
        raise NotFoundError(f"No predictor {first!r} in the table of scores; there are {predictors}.")
    defined = set(frame.loc[frame[metric].notna(), "predictor"].astype(str))
    return [first, *(name for name in predictors if name != first and name in defined)]


def _ceiling(frame: pd.DataFrame, metric: str) -> str | None:
    """Return the column with the noise ceiling of a metric, if the table has one."""
    column = f"ceiling_{metric}"
    if column not in frame:
        return None
    check_scores(frame, [column])
    return column if frame[column].notna().any() else None


def _sorted_table(rows: pd.DataFrame, predictors: Sequence[str], *, metric: str) -> pd.DataFrame:
    """Return scores of a section, one row per gene and one column per drawn predictor; the first one sorts."""
    table = rows.pivot(index="gene", columns="predictor", values=metric)
    here = [name for name in predictors if name in table]
    kept = [name for name in here if name == here[0] or table[name].notna().any()]
    return table[kept].sort_values(kept[0], ascending=False)


def _ends(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[float, float]:
    """Return the ends of the scores of all sections, so that panels compare, with zero in view."""
    values = frame[list(columns)].to_numpy(np.float64)
    low, high = np.nanmin([0.0, *values.ravel()]), np.nanmax([0.0, *values.ravel()])
    margin = 0.05 * max(high - low, 0.1)
    return float(low - margin), float(high + margin)


def _draw_ceiling(axes: Axes, ceiling: pd.Series) -> None:
    """Draw the noise ceiling of each gene as a grey area from zero."""
    edges = np.arange(len(ceiling) + 1) + 0.5
    label = f"{CEILING}: mean {ceiling.mean():.3f}" if ceiling.notna().any() else f"{CEILING}: undefined"
    axes.stairs(ceiling.to_numpy(np.float64), edges, fill=True, color=CEILING_COLOUR, zorder=-1, label=label)


def _draw_section(axes: Axes, table: pd.DataFrame, *, metric: str, looks: dict[str, int]) -> None:
    """Draw ``table``, one sorted row per gene and one column per predictor; the first column sorts."""
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    rank = np.arange(1, len(table) + 1)
    many = len(table) > MAX_NAMED
    for name, look in reversed(looks.items()):
        first, colour = name == table.columns[0], COLOURS[look % len(COLOURS)]
        (points,) = axes.plot(rank, table[name].to_numpy(), label=_label(name, table[name]))
        points.set(color=colour, linestyle="-" if first else "none")
        points.set(marker=MARKERS[look % len(MARKERS)], markersize=2.0 if many else 4.0, markeredgewidth=0)
        points.set(alpha=1 if first else 0.45 if many else 0.6, linewidth=1.5 if many else 1.0)
        if many and not first:
            running = table[name].rolling(WINDOW, center=True, min_periods=WINDOW // 2).mean()
            axes.plot(rank, running.to_numpy(), color=colour, linewidth=1.0, linestyle=LINES[look // len(COLOURS) % 2])
    axes.set_xlim(0.5, len(table) + 0.5)
    axes.set_ylabel(METRIC_NAMES.get(metric, metric), fontsize=FONT)
    tidy(axes)


def _add_legends(axes: NDArray[np.object_], *, beside: bool, ends: tuple[float, float]) -> None:
    """Write the legends above the points, or beside the panels, and give all panels the same limits."""
    lay_out(figure_of(axes))
    shares = [_add_legend(one, beside=beside) for one in axes]
    low, high = ends
    limits = low, low + (high - low) / (1 - min(0.6, max(shares)))
    for one in axes:
        one.set_ylim(limits)
        one.set_yticks([tick for tick in one.get_yticks() if low <= tick <= min(1, high)])


def _add_legend(axes: Axes, *, beside: bool) -> float:
    """Write a legend: the first predictor, the ceiling, then the baselines; return the share of the height it needs."""
    handles, labels = axes.get_legend_handles_labels()
    of = dict(zip(labels, handles, strict=True))
    ceilings = [label for label in labels if label.startswith(f"{CEILING}:")]
    others = [label for label in labels if label not in ceilings][::-1]
    order = [others[0], *ceilings, *others[1:]]
    width, height = size_in(axes)
    ncols = 1 if beside or 2 * (text_width(order, SMALL) + KEY) > width else 2
    legend = axes.legend(
        [of[label] for label in order],
        [wrap(label, max(0.5, (BESIDE if beside else width) - KEY), FontProperties(size=SMALL)) for label in order],
        loc="center left" if beside else "upper center",
        bbox_to_anchor=(1.0, 0.5) if beside else None,
        ncols=ncols,
        fontsize=SMALL,
        frameon=False,
        columnspacing=1.0,
        borderaxespad=0.2,
    )
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D):
            handle.set(alpha=1, markersize=4)
    n_lines = -(-sum(1 + text.get_text().count("\n") for text in legend.get_texts()) // ncols)
    return 0.0 if beside else (n_lines * ROW + 0.05) / height


def _label(name: str, column: pd.Series) -> str:
    n_undefined = int(column.isna().sum())
    if n_undefined == len(column):
        return f"{name}: undefined for all {n_undefined} genes"
    undefined = f", {n_undefined} undefined" if n_undefined else ""
    return f"{name}: mean {column.mean():.3f}{undefined}"


def _name_genes(axes: Axes, table: pd.DataFrame) -> None:
    """Name all genes if there is room, else the best and worst ones."""
    genes, (width, _) = [str(gene) for gene in table.index], size_in(axes)
    if len(genes) <= MAX_NAMED and names_fit(genes, width, SMALL) == 1:
        axes.set_xticks(np.arange(1, len(genes) + 1), genes, rotation=90)
        return
    first, scored = table.columns[0], table.iloc[:, 0].dropna().index
    n_ends = min(N_ENDS, len(scored) // 2)
    best, worst = ", ".join(map(str, scored[:n_ends])), ", ".join(map(str, scored[len(scored) - n_ends :]))
    named = f"\nbest: {best}; worst: {worst}" if n_ends else ""
    axes.set_xlabel(f"{len(genes)} genes, sorted by {first}{named}", fontsize=FONT)
