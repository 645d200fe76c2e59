"""Scores of every gene, beside the baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._validated import Count, Text, check
from st_predict.pl._figure import FONT, check_figure, figure_of, finish, make_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["scores"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5f5f5f")
"""Okabe and Ito's, which people with any colour vision tell apart."""

MARKERS = "os^Dv<>"

METRIC_NAMES = {"pearson": "Pearson correlation", "spearman": "Spearman correlation"}

MAX_NAMED = 40
"""Genes whose names can be read below each other."""


class HasGenes(Protocol):
    """What :func:`st_predict.tl.evaluate` returns."""

    @property
    def genes(self) -> pd.DataFrame:
        """A row for each section, predictor and gene."""


def scores(
    evaluation: HasGenes | pd.DataFrame,
    *,
    metric: str = "pearson",
    sort_by: str | None = None,
    n_cols: int = 3,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    figsize: tuple[float, float] | None = None,
    save: str | PathLike[str] | None = None,
    show: bool = False,
) -> NDArray[np.object_]:
    """Draw the score of every gene, sorted, with the baselines: one panel a section.

    Genes are in the order of one predictor, from its best to its worst, so that points of the others above its line are
    genes that they predict better. The legend has the mean over the genes where a score is defined, and how many are
    undefined because the prediction or the observation is constant; these are left out, not drawn as zero.

    Parameters
    ----------
    evaluation
        From :func:`st_predict.tl.evaluate`, or its ``genes``: a table with the columns ``section``, ``predictor``,
        ``gene`` and ``metric``.
    metric
        Column to draw, ``"pearson"`` or ``"spearman"``.
    sort_by
        Predictor that orders the genes; by default the first of the table, which is the model.
    n_cols
        Panels in a row.
    ax
        Axes to draw on, one a section; by default a new figure.
    figsize
        Size of a new figure in inches.
    save
        File to write; what has this name is replaced. The ending says the format. The figure is then closed, unless
        ``show`` is set.
    show
        Whether to show all open figures now. Notebooks show them anyway.

    Returns
    -------
    Axes, ``(n_sections,)``.

    Raises
    ------
    KeyError
        If a column or the predictor does not exist; the message lists what there is.
    TypeError
        If ``evaluation`` is something else.
    ValueError
        If an argument is of another type or range, if the table is empty or has a gene twice, or ``ax`` has not one Axes a section.
    """
    frame = evaluation if isinstance(evaluation, pd.DataFrame) else getattr(evaluation, "genes", None)
    if not isinstance(frame, pd.DataFrame):
        raise InvalidTypeError(
            f"evaluation must be an Evaluation or its table of genes, got {type(evaluation).__name__}.",
            "make one with st_predict.tl.evaluate",
        )
    check("metric", metric, Text)
    check("sort_by", sort_by, Text | None)
    n_cols = check("n_cols", n_cols, Count)
    check_figure(figsize=figsize, save=save, show=show)
    predictors = _check(frame, metric=metric, sort_by=sort_by)
    sections = list(frame["section"].unique())
    n_cols = min(n_cols, len(sections))
    n_rows = -(-len(sections) // n_cols)
    axes = _section_axes(len(sections), n_rows, n_cols, ax=ax, size=figsize or (n_cols * 4.2, n_rows * 3.4))
    limits = _limits(frame[metric])
    for one, section in zip(axes, sections, strict=True):
        table = frame[frame["section"] == section].pivot(index="gene", columns="predictor", values=metric)
        here = [name for name in predictors if name in table]
        # A predictor looks the same in every panel, also where another one is missing.
        looks = {name: predictors.index(name) for name in here}
        _draw_section(one, table[here].sort_values(here[0], ascending=False), metric=metric, looks=looks)
        one.set(title=section, ylim=limits)
    finish(figure_of(axes), save=save, show=show)
    return axes


def _check(frame: pd.DataFrame, *, metric: str, sort_by: str | None) -> list[str]:
    """Predictors, the one that orders the genes first."""
    missing = [column for column in ("section", "predictor", "gene", metric) if column not in frame]
    if missing:
        raise NotFoundError(f"The table of scores has no column {missing[0]!r}; it has {list(frame)}.")
    if frame.empty:
        raise InvalidValueError("The table of scores is empty.")
    if not is_numeric_dtype(frame[metric]) or np.isinf(frame[metric].to_numpy(np.float64)).any():
        raise InvalidValueError(f"Column {metric!r} of the table of scores should have finite numbers and NaN.")
    repeated = frame.duplicated(["section", "predictor", "gene"])
    if repeated.any():
        row = frame.loc[repeated, ["section", "predictor", "gene"]].iloc[0].tolist()
        raise InvalidValueError(
            f"{int(repeated.sum())} rows are of a section, predictor and gene that were there, such as {row}."
        )
    predictors = [str(name) for name in frame["predictor"].unique()]
    first = predictors[0] if sort_by is None else sort_by
    if first not in predictors:
        raise NotFoundError(f"No predictor {first!r} in the table of scores; there are {predictors}.")
    return [first, *(name for name in predictors if name != first)]


def _section_axes(
    n_sections: int,
    n_rows: int,
    n_cols: int,
    *,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None,
    size: tuple[float, float],
) -> NDArray[np.object_]:
    """One axes a section; those of a new figure that are left over are removed."""
    if ax is not None:
        return make_axes(1, n_sections, ax=ax, size=size).ravel()
    axes = make_axes(n_rows, n_cols, ax=None, size=size).ravel()
    for left_over in axes[n_sections:]:
        left_over.remove()
    return axes[:n_sections]


def _limits(column: pd.Series) -> tuple[float, float]:
    """Of the values of all sections, so that panels compare, with zero always in view."""
    low, high = np.nanmin([*column, 0.0]), np.nanmax([*column, 0.0])
    margin = 0.05 * max(high - low, 0.1)
    return float(low - margin), float(high + margin)


def _draw_section(axes: Axes, table: pd.DataFrame, *, metric: str, looks: dict[str, int]) -> None:
    """Draw ``table``, a sorted row for each gene and a column for each predictor, the one that sorts first."""
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    rank = np.arange(1, len(table) + 1)
    size = 3.0 if len(table) > MAX_NAMED else 5.0
    for name, look in reversed(looks.items()):
        (points,) = axes.plot(rank, table[name].to_numpy(), label=_label(name, table[name]))
        first = name == table.columns[0]
        points.set(color=COLOURS[look % len(COLOURS)], linestyle="-" if first else "none")
        points.set(marker=MARKERS[look % len(MARKERS)], markersize=size, markeredgewidth=0)
        points.set_alpha(1 if first else 0.6)
    _name_genes(axes, table)
    axes.set_ylabel(f"{METRIC_NAMES.get(metric, metric)} within section", fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=FONT - 2, frameon=False)


def _label(name: str, column: pd.Series) -> str:
    n_undefined = int(column.isna().sum())
    if n_undefined == len(column):
        return f"{name}: undefined for all {n_undefined} genes"
    undefined = f", {n_undefined} undefined" if n_undefined else ""
    return f"{name}: mean {column.mean():.3f}{undefined}"


def _name_genes(axes: Axes, table: pd.DataFrame) -> None:
    if len(table) <= MAX_NAMED:
        axes.set_xticks(np.arange(1, len(table) + 1), table.index, rotation=90)
        return
    axes.set_xlabel(f"{len(table)} genes, sorted by {table.columns[0]}", fontsize=FONT)
