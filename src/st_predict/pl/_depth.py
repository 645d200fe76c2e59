"""Correlation of predicted genes against their dependence on sequencing depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import InvalidValueError, NotFoundError
from st_predict._validated import Text, check
from st_predict.pl._figure import Output, make_axes, plot, tidy
from st_predict.pl._labels import FONT, PAGE
from st_predict.pl._table import predictors_of, score_table, scores_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from st_predict.pl._table import HasGenes

__all__ = ["depth"]

LOG_TOTAL = "log_total"
COLOUR = "#0072b2"


@plot
def depth(
    evaluation: HasGenes | pd.DataFrame,
    *,
    predictor: str | None = None,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw the correlation of every gene against its dependence on sequencing depth: one row of panels per section.

    Each point is a gene. The horizontal axis of both panels is the correlation of the observed gene with the log total
    count of the spot, which needs no image. The left panel has the plain correlation of the prediction: points on the
    diagonal are predicted as well by the total count. The right panel has the partial correlation given the log total
    count: for points at zero, the prediction only follows sequencing depth.

    Parameters
    ----------
    evaluation
        Result of :func:`st_predict.tl.evaluate`, or its ``genes``: a table with the columns ``section``, ``predictor``,
        ``gene``, ``pearson`` and ``partial``, and rows of the predictor ``"log_total"``.
    predictor
        Predictor to draw; by default the first of the table, which is the model.
    ax
        Axes to draw on, two per section; by default a new figure.
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
        Axes, ``(n_sections, 2)``: plain and partial correlation. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If a column or the predictor does not exist; the message lists the existing ones.
    TypeError
        If ``evaluation`` is another object.
    ValueError
        If an argument has another type or range, if the table is empty or repeats a gene, if a section lacks rows of
        ``"log_total"`` or of the predictor, or if the number of ``ax`` is not twice the number of sections.

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
    >>> axes = stp.pl.depth(genes, show=False)
    >>> axes.shape  # one row per section: plain and partial correlation
    (1, 2)
    >>> plt.close()
    """
    check("predictor", predictor, Text | None)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    frame = score_table(evaluation, ["pearson", "partial"])
    predictor = _choose(frame, predictor)
    sections = list(frame["section"].unique())
    axes = make_axes(len(sections), 2, ax=ax, size=figsize or (PAGE, len(sections) * 3.1))
    points = {section: _points(frame, section, predictor) for section in sections}
    x_limits = _limits([table["depth"] for table in points.values()])
    y_limits = _limits([table[column] for table in points.values() for column in ("pearson", "partial")])
    for (plain, partial), (section, table) in zip(axes, points.items(), strict=True):
        _draw_plain(plain, table, section)
        _draw_partial(partial, table, section)
        for one in (plain, partial):
            one.set(xlim=x_limits, ylim=y_limits)
        plain.set_ylabel(f"{predictor}: Pearson correlation", fontsize=FONT)
        partial.set_ylabel(f"{predictor}: partial correlation", fontsize=FONT)
    return output.finish(axes)


def _choose(frame: pd.DataFrame, predictor: str | None) -> str:
    """Return the predictor to draw, after a check that every section has it and the log total count."""
    predictors = predictors_of(frame)
    if LOG_TOTAL not in predictors:
        raise InvalidValueError(
            f"The table of scores has no rows of the predictor {LOG_TOTAL!r}, the correlation of each gene with the log "
            f"total count; it has {predictors}.",
            "score the prediction with st_predict.tl.evaluate, which adds them",
        )
    others = [name for name in predictors if name != LOG_TOTAL]
    if not others:
        raise InvalidValueError(f"The table of scores only has rows of {LOG_TOTAL!r}, not of a prediction.")
    chosen = others[0] if predictor is None else predictor
    if chosen not in others:
        raise NotFoundError(f"No predictor {chosen!r} in the table of scores to draw; there are {others}.")
    for name in (LOG_TOTAL, chosen):
        has = frame.loc[frame["predictor"] == name, "section"].unique()
        if lacking := [section for section in frame["section"].unique() if section not in has]:
            raise InvalidValueError(
                f"Sections {lacking} have no rows of the predictor {name!r} in the table of scores."
            )
    return chosen


def _points(frame: pd.DataFrame, section: str, predictor: str) -> pd.DataFrame:
    """Return the columns ``depth``, ``pearson`` and ``partial``, one row per gene."""
    table = scores_of(frame, section, predictor, "pearson").to_frame()
    table["partial"] = scores_of(frame, section, predictor, "partial")
    table["depth"] = scores_of(frame, section, LOG_TOTAL, "pearson").reindex(table.index)
    return table


def _limits(columns: Sequence[pd.Series]) -> tuple[float, float]:
    """Return limits for all panels of an axis, with zero in view."""
    values = np.concatenate([[0.0], *(column.to_numpy(np.float64) for column in columns)])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.06 * max(high - low, 0.1)
    return float(low - margin), float(high + margin)


def _draw_plain(axes: Axes, table: pd.DataFrame, section: str) -> None:
    """Draw plain correlations, with the diagonal of the log total count."""
    shown = _draw_points(axes, table, "pearson")
    axes.axline((0, 0), slope=1, color="0.3", linewidth=1, linestyle="--", zorder=1)
    n_above = int((shown["pearson"] > shown["depth"]).sum())
    axes.set_title(
        f"{section}: plain correlation, mean {_mean(shown['pearson'])}\n"
        f"{n_above} of {len(shown)} genes above total count (dashed, mean {_mean(shown['depth'])})",
        fontsize=FONT,
    )


def _draw_partial(axes: Axes, table: pd.DataFrame, section: str) -> None:
    """Draw partial correlations, which are zero where the prediction has nothing beyond the log total count."""
    shown = _draw_points(axes, table, "partial")
    axes.set_title(
        f"{section}: given the total count, mean {_mean(shown['partial'])}, {len(shown)} genes\n"
        "Zero: nothing predicted beyond sequencing depth",
        fontsize=FONT,
    )


def _draw_points(axes: Axes, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Draw one point per gene with both scores, and return these genes."""
    shown = table[["depth", column]].dropna()
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.scatter(shown["depth"], shown[column], s=10, color=COLOUR, alpha=0.6, linewidths=0, zorder=2)
    axes.set_xlabel("Correlation of the observed gene with log total count", fontsize=FONT)
    tidy(axes)
    return shown


def _mean(scores: pd.Series) -> str:
    return "undefined" if scores.empty else f"{scores.mean():.2f}"
