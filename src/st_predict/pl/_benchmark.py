"""Scores of several models: boxes per gene and per section under their ceilings, and mean ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from st_predict import metrics
from st_predict._errors import InvalidValueError, NotFoundError
from st_predict._unit_scores import Unit, check_table, unit_scores
from st_predict._validated import Count, Probability, Text, Texts, check
from st_predict.pl._figure import Output, make_axes, plot, tidy
from st_predict.pl._labels import FONT, PAGE, SMALL
from st_predict.pl._scores import CEILING, COLOURS, METRIC_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["benchmark"]

HEIGHT = 2.3
"""Height of a panel in inches."""

GROUP = 0.8
"""Width of the boxes of a gene or section, of 1."""

HATCHES = ("", "////", "....")
"""Patterns of boxes, for models of one colour."""


@plot
def benchmark(  # noqa: PLR0913 - a plot has many options, and users find them in the signature
    table: pd.DataFrame,
    *,
    score: str = "partial",
    unit: Unit = "patient",
    models: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 8,
    alpha: float = 0.05,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw the scores of a cross-validation: boxes per gene, boxes per section, and a critical-difference diagram.

    A box of a gene has one value per section, a box of a section one value per gene; seeds are averaged first. Boxes span
    the quartiles, whiskers 1.5 times their distance, and a black line is the noise ceiling.

    The third panel has the mean rank of each model over patients or sections, with its Holm-adjusted p-value of the Wilcoxon
    test against the best (:func:`st_predict.metrics.wilcoxon_tests`). Grey bars join models whose ranks differ by less than
    the critical difference (:func:`st_predict.metrics.rank_test`). Genes are never the unit of a test, because they share
    the spots of a section.

    Constants, which have no correlation, are left out and named below the ranks.

    Parameters
    ----------
    table
        Result of :func:`st_predict.cohort.cross_validate`, of one protocol.
    score
        Column to draw; higher is better.
    unit
        Unit of ranks and tests: ``"patient"``, or ``"section"``: sections of one patient are alike.
    models
        Models to draw, in order; by default all.
    genes
        Genes to draw; by default those with the highest noise ceiling.
    n_genes
        Number of genes to draw, if ``genes`` is not given.
    alpha
        Significance level of the critical difference.
    ax
        Three axes to draw on; by default a new figure.
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
        Axes, ``(3,)``: genes, sections, ranks. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If a column, model or gene does not exist; the message lists the existing ones.
    TypeError
        If ``table`` is not a DataFrame.
    ValueError
        If an argument has another type or range, if the table is empty or holds several protocols, or if no model has a
        defined score.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> names = [(m, p, g) for m in ("a", "b") for p in ("P1", "P2", "P3") for g in ("VIM", "ERBB2")]
    >>> table = pd.DataFrame(names, columns=["model", "patient", "gene"])
    >>> table = table.assign(section=table["patient"], fold="1", seed=0, partial=[0.1, 0.2, 0.3] * 4)
    >>> axes = stp.pl.benchmark(table, show=False)
    >>> [label.get_text() for label in axes[1].get_xticklabels()]
    ['P1', 'P2', 'P3']
    >>> plt.close()
    """
    score, unit = check("score", score, Text), check("unit", unit, Unit)
    n_genes, alpha = check("n_genes", n_genes, Count), check("alpha", alpha, Probability)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    whole, constant = _chosen_models(check_table(table, [score]), score, check("models", models, Texts | None))
    ceiling = f"ceiling_{score}" if f"ceiling_{score}" in whole else None
    shown = _chosen_genes(whole, ceiling, check("genes", genes, Texts | None), n_genes)
    axes = make_axes(3, 1, ax=ax, size=figsize or (PAGE, 3 * HEIGHT)).ravel()
    means = whole.groupby(["model", "section", "gene"], sort=False)[[score, *([ceiling] if ceiling else [])]].mean()
    means = means.reset_index()
    for one, by, names in ((axes[0], "gene", shown), (axes[1], "section", list(whole["section"].unique()))):
        _draw_boxes(one, means, by, names, score=score, ceiling=ceiling)
    _add_legend(axes[0], list(whole["model"].unique()), ceiling=ceiling is not None)
    _draw_ranks(axes[2], unit_scores(whole, score, unit), unit=unit, alpha=alpha, constant=constant)
    return output.finish(axes)


def _chosen_models(table: pd.DataFrame, score: str, models: list[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of models with a defined score, in order, and the names of the others."""
    known = [str(name) for name in table["model"].unique()]
    if unknown := [name for name in models or () if name not in known]:
        raise NotFoundError(f"No models {unknown} in the table; there are {known}.")
    names = models or known
    defined = set(table.loc[table[score].notna(), "model"])
    if not defined & set(names):
        raise InvalidValueError(f"No model has a defined {score!r}; constants have none.", "choose another score")
    kept = [table[table["model"] == name] for name in names if name in defined]
    return pd.concat(kept, ignore_index=True), [name for name in names if name not in defined]


def _chosen_genes(table: pd.DataFrame, ceiling: str | None, genes: list[str] | None, n_genes: int) -> list[str]:
    known = table["gene"].unique().tolist()
    if genes is not None:
        if unknown := [gene for gene in genes if gene not in known]:
            raise NotFoundError(f"No genes {unknown} in the table; there are {known[:10]} and others.")
        return genes
    if ceiling is None:
        return known[:n_genes]
    order = table.groupby("gene", sort=False)[ceiling].mean().sort_values(ascending=False, kind="stable")
    return order.index[:n_genes].tolist()


def _draw_boxes(
    axes: Axes, means: pd.DataFrame, by: str, names: Sequence[str], *, score: str, ceiling: str | None
) -> None:
    """Draw a group of boxes per gene or section, one box per model, and the ceiling of each group."""
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    models = list(means["model"].unique())
    width = GROUP / len(models)
    for look, model in enumerate(models):
        rows = means[means["model"] == model]
        values = [rows.loc[rows[by] == name, score].dropna().to_numpy() for name in names]
        places = np.arange(len(names)) + (look - (len(models) - 1) / 2) * width
        drawn = axes.boxplot(values, positions=places, widths=0.85 * width, patch_artist=True, manage_ticks=False)
        for name, box in zip(names, drawn["boxes"], strict=True):
            box.set(facecolor=COLOURS[look % len(COLOURS)], linewidth=0.5, hatch=HATCHES[look // len(COLOURS) % 3])
            box.set_gid(f"{name}|{model}")
        for part in (*drawn["whiskers"], *drawn["caps"], *drawn["medians"]):
            part.set(color="black", linewidth=0.5)
        for part in drawn["fliers"]:
            part.set(marker=".", markersize=2, markeredgewidth=0, markerfacecolor="0.4")
    if ceiling is not None:
        heights = means.groupby(by)[ceiling].mean().reindex(list(names)).to_numpy(np.float64)
        middle = np.arange(len(names))
        lines = axes.hlines(heights, middle - GROUP / 2, middle + GROUP / 2, color="black", linewidth=1.5)
        lines.set_gid(CEILING)
    rotated = len(names) > 12 or max(map(len, map(str, names))) * len(names) > 90
    axes.set_xticks(np.arange(len(names)), [str(name) for name in names], rotation=90 if rotated else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(METRIC_NAMES.get(score, score), fontsize=FONT)
    one, other = ("gene", "section") if by == "gene" else ("section", "gene")
    axes.set_title(f"One box per {one} and model, over {other}s", fontsize=FONT)
    tidy(axes)


def _add_legend(axes: Axes, models: Sequence[str], *, ceiling: bool) -> None:
    """Write the legend beside the first panel."""
    handles: list[object] = [
        Patch(
            facecolor=COLOURS[i % len(COLOURS)],
            edgecolor="black",
            linewidth=0.5,
            hatch=HATCHES[i // len(COLOURS) % 3],
            label=name,
        )
        for i, name in enumerate(models)
    ]
    if ceiling:
        handles += axes.plot([], [], color="black", linewidth=1.5, label=CEILING)
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=SMALL, frameon=False, borderaxespad=0.2
    )


def _draw_ranks(axes: Axes, units: pd.DataFrame, *, unit: Unit, alpha: float, constant: Sequence[str]) -> None:
    """Draw mean ranks, from the best, and join models that the test does not tell apart."""
    tidy(axes)
    missing = f"; without a defined score: {', '.join(constant)}" if constant else ""
    complete = units.dropna()
    plural = f"{len(complete)} {unit}s" if len(complete) != 1 else f"1 {unit}"
    if units.shape[1] < 2 or len(complete) < 2:
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(
            f"Ranks need two models and two {unit}s; there are {units.shape[1]} and {len(complete)}{missing}",
            fontsize=FONT,
        )
        return
    test = metrics.rank_test(complete, alpha=alpha)
    order = np.argsort(test.mean_ranks, kind="stable")
    p = metrics.wilcoxon_tests(complete)[order[0]]
    ranks, names = test.mean_ranks[order], [str(units.columns[i]) for i in order]
    labels = [names[0], *(f"{name} (p = {p[i]:.2g})" for name, i in zip(names[1:], order[1:], strict=True))]
    (points,) = axes.plot(ranks, np.arange(len(ranks)), "o", color="black", markersize=4, zorder=3)
    points.set_gid("mean ranks")
    for n, (first, last) in enumerate(_groups(ranks, test.critical_difference)):
        x = ranks[[first, last]] + [-0.05, 0.05]
        (bar,) = axes.plot(x, [-0.5 - 0.25 * n] * 2, color="0.6", linewidth=3, solid_capstyle="butt")
        bar.set_gid("not told apart")
        axes.plot([ranks[first], ranks[first]], [-0.5 - 0.25 * n, first], color="0.85", linewidth=0.5, zorder=0)
        axes.plot([ranks[last], ranks[last]], [-0.5 - 0.25 * n, last], color="0.85", linewidth=0.5, zorder=0)
    axes.set_yticks(np.arange(len(ranks)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0.8, len(ranks) + 0.2)
    friedman = "" if np.isnan(test.p_value) else f"; Friedman p = {test.p_value:.2g}"
    axes.set_xlabel(
        f"Mean rank over {plural}, 1 is the best{friedman}; critical difference {test.critical_difference:.2f} "
        f"(Nemenyi, {alpha:g}); p against the best (Wilcoxon, Holm){missing}",
        fontsize=FONT,
    )


def _groups(ranks: NDArray[np.float64], difference: float) -> list[tuple[int, int]]:
    """Return first and last of the largest groups of sorted ranks that differ by less than the critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.flatnonzero(ranks - ranks[first] < difference)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
