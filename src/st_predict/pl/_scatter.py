"""Observed against predicted expression of genes, spot by spot, with prediction intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict import get
from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys
from st_predict._validated import Count, Flag, Texts, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.io import named_table
from st_predict.pl._figure import Output, figure_of, make_panels, plot, tidy
from st_predict.pl._labels import FONT
from st_predict.pl._values import read_values

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.pl._values import Values

__all__ = ["scatter"]

COLOUR, BAND = "#0072b2", "#56b4e9"
"""Colours of Okabe and Ito."""

PANEL = 2.4
"""Side of a panel in inches."""


@plot
def scatter(  # noqa: PLR0913 - a plot has many options, and users find them in the signature
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    key: str | None = None,
    intervals: bool = False,
    layer: str | None = None,
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    ncols: int = 3,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw observed against predicted expression, one panel per gene and one point per spot.

    Observed counts are put into the units of the prediction by the target transform of the model, which stand below the
    panels. The dashed line is where both are equal. Predictions of a network vary less than measurements, which are noisy, so points form a steeper cloud.
    With ``intervals``, spots are sorted by their prediction, and a band shows the prediction interval of each; the title
    says how many spots it covers.

    Parameters
    ----------
    sdata
        Holds the prediction and the counts.
    genes
        Genes of the panel.
    key
        Key of the prediction; may be left out if there is only one.
    intervals
        Whether to draw the prediction intervals of :func:`st_predict.tl.calibrate`.
    layer
        Layer with the raw counts; by default ``X``.
    duplicates
        Treatment of genes in several columns of the table: refuse them, ``"sum"`` their counts, or take the ``"first"``.
    ignore_case
        Whether to match gene symbols without regard to case.
    id_column
        Column of ``.var`` with gene identifiers. By default ``var_names``, or the only column with genes of the panel.
    aliases
        Table of former gene symbols, in the format of the HGNC complete set; see :func:`st_predict.pp.align_panel`.
    table_key
        Table of the spots; may be left out unless several tables have a prediction of this key.
    bin_um
        Side of the bins of Visium HD in micrometres, such as 16, instead of ``table_key``.
    ncols
        Number of panels per row.
    ax
        Axes to draw on, one per gene; by default a new figure.
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
        Axes, ``(n_genes,)``. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If the prediction, a gene, layer or table does not exist; the message lists the existing ones.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If no gene was measured, the prediction has no intervals to draw, or an argument has another type or range.

    Examples
    --------
    >>> import tempfile
    >>> import matplotlib.pyplot as plt
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> axes = stp.pl.scatter(sdata, ["GENE1", "GENE2"], show=False)
    >>> axes.shape  # genes
    (2,)
    >>> plt.close()
    """
    matching = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    table_key = named_table(sdata, table_key, bin_um)
    genes, ncols = check("genes", genes, Texts), check("ncols", ncols, Count)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    key = get.only_key(sdata, key, table_key=table_key)
    values = _values(sdata, key, Where(table_key=table_key, layer=layer, genes=matching), genes)
    bounds = _bounds(sdata, key, table_key) if check("intervals", intervals, Flag) else None
    ncols = min(ncols, len(genes))
    size = figsize or (ncols * PANEL, -(-len(genes) // ncols) * PANEL + 0.2)
    axes = make_panels(len(genes), ncols, ax=ax, size=size)
    # once for all panels, or on each axis of the user's figure
    units = f", {values.spec.units}" if ax is not None else ""
    if ax is None:
        figure_of(axes).supxlabel(f"Units: {values.spec.units}", fontsize=FONT)
    for one, column in zip(axes, values.columns(genes), strict=True):
        if bounds is None:
            _draw_points(one, values, column, units=units)
        else:
            _draw_intervals(one, values, column, units=units, bounds=[bound[:, column] for bound in bounds])
    return output.finish(axes)


def _values(sdata: SpatialData, key: str, where: Where, genes: Sequence[str]) -> Values:
    """Read both; refuse a slide on which none of the genes was measured."""
    holder = sdata.tables[get.table_of(sdata, key, table_key=where.table_key)]
    values = read_values(sdata, key, where, rows=np.arange(holder.n_obs))
    if not values.is_observed[values.columns(genes)].any():
        raise InvalidValueError(
            f"None of {list(genes)} was measured on this slide, so there is nothing to compare with.",
            Advice("choose measured genes with {}", "genes"),
            "draw the prediction with st_predict.pl.spatial",
        )
    return values


def _bounds(sdata: SpatialData, key: str, table_key: str | None) -> list[NDArray[np.float32]]:
    """Lower and upper ends of the intervals, ``(n_spots, n_genes)`` each, in the units of the network."""
    layers = get.stored_prediction(sdata, key, table_key=table_key).layers
    if not {Keys.LOWER, Keys.UPPER} <= set(layers):
        raise InvalidValueError(
            f"{key!r} has no prediction intervals.",
            "add them with st_predict.tl.calibrate(...).apply(sdata)",
            Advice("leave them out with {}", "intervals", value=False),
        )
    return [np.asarray(layers[name], np.float32) for name in (Keys.LOWER, Keys.UPPER)]


def _draw_points(axes: Axes, values: Values, column: int, *, units: str) -> None:
    """Draw the spots with both values, and the line where these are equal."""
    predicted, observed = values.predicted[:, column], values.observed[:, column]
    both = np.isfinite(predicted) & np.isfinite(observed) & values.on_tissue
    if both.any():
        middle = float(np.median(predicted[both]))  # a point in view, as it widens the limits
        axes.axline((middle, middle), slope=1, color="0.3", linewidth=0.8, linestyle="--", zorder=1)
    axes.scatter(predicted[both], observed[both], s=6, color=COLOUR, alpha=0.5, linewidths=0, zorder=2, rasterized=True)
    _describe(axes, f"{values.genes[column]}, {both.sum():,} spots\n{_correlations(values, column)}")
    axes.set_xlabel(f"Predicted{units}", fontsize=FONT)
    axes.set_ylabel(f"Observed{units}", fontsize=FONT)


def _draw_intervals(
    axes: Axes, values: Values, column: int, *, units: str, bounds: Sequence[NDArray[np.float32]]
) -> None:
    """Draw the interval of each spot, sorted by prediction, and the observed values."""
    low, high = bounds
    predicted, observed = values.predicted[:, column], values.observed[:, column]
    both = np.isfinite(predicted) & np.isfinite(observed) & np.isfinite(low) & np.isfinite(high) & values.on_tissue
    order = np.flatnonzero(both)[np.argsort(predicted[both], kind="stable")]
    rank = np.arange(1, len(order) + 1)
    axes.fill_between(rank, low[order], high[order], color=BAND, alpha=0.45, linewidth=0, step="mid")
    axes.plot(rank, predicted[order], color=COLOUR, linewidth=1.2)
    axes.scatter(rank, observed[order], s=6, color="0.25", linewidths=0, zorder=2, rasterized=True)
    inside = (observed[order] >= low[order]) & (observed[order] <= high[order])
    covered = f"{inside.mean():.0%} of {len(order):,} spots covered" if len(order) else "not measured"
    _describe(axes, f"{values.genes[column]}\n{covered}")
    axes.set_xlabel("Spots, sorted by prediction", fontsize=FONT)
    axes.set_ylabel(f"Expression{units}", fontsize=FONT)


def _correlations(values: Values, column: int) -> str:
    numbers = {"partial": values.partial(column), "plain": values.pearson(column)}
    return ", ".join(f"{name} undefined" if np.isnan(r) else f"{name} r = {r:z.2f}" for name, r in numbers.items())


def _describe(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=FONT)
    tidy(axes)
