"""Observed beside predicted expression, on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.colors import Normalize

from st_predict import get
from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Text, Texts, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.pl._figure import FONT, add_scale_bar, check_figure, colour_map, figure_of, finish, make_axes
from st_predict.pl._values import read_values
from st_predict.pl._view import PANEL_WIDTH, check_style, draw_spots, draw_tissue, read_section

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.colors import Colormap
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.pl._values import Values
    from st_predict.pl._view import View

__all__ = ["spatial"]


def spatial(  # noqa: PLR0913 - a plot has many options, and users find them in the signature
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    key: str | None = None,
    layer: str | None = None,
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    region: str | None = None,
    tissue: bool = True,
    std: bool = False,
    tissue_strength: float = 0.5,
    spot_scale: float = 1.0,
    margin: float | None = 0.08,
    percentiles: tuple[float, float] = (2, 98),
    cmap: str | Colormap = "viridis",
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    figsize: tuple[float, float] | None = None,
    save: str | PathLike[str] | None = None,
    show: bool = False,
) -> NDArray[np.object_]:
    """Draw observed beside predicted expression of genes on the tissue, one row a gene.

    Observed counts are put into the units of the prediction by the target transform of the model. Both maps of a gene
    share one colour scale, written beside it. The title of the prediction has the Pearson correlation over the spots of
    this section. Spots without a value are left out. A gene that was not measured is drawn as predicted only.
    So are all genes if the table lacks some of the panel and the units need a sum over it; a warning says so.

    Parameters
    ----------
    sdata
        Holds the image, the spots and the prediction.
    genes
        Genes of the panel.
    key
        Key of the prediction; may be left out if there is only one.
    layer
        Layer with the raw counts; by default ``X``.
    duplicates
        What to do with genes that several columns of the table carry: refuse, ``"sum"`` their counts, or take the
        ``"first"``.
    ignore_case
        Whether symbols that differ in case are the same gene.
    id_column
        Column of ``.var`` with identifiers like those of the panel. By default ``var_names``, or the one column that has
        genes of the panel.
    aliases
        Table of old symbols and Ensembl identifiers, in the form of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    table_key
        Table of the spots; may be left out unless several tables have a prediction of this key.
    image_key
        Image to draw on; may be left out if there is only one.
    region
        Section to draw, if the table annotates several.
    tissue
        Whether the tissue is also shown by itself, in its colours.
    std
        Whether the standard deviation of the prediction is drawn beside it, in colours of its own.
    tissue_strength
        Strength of the grey tissue under the spots: 0 is white, 1 is not faded. It is grey so that colours mean
        expression only.
    spot_scale
        Size at which spots are drawn, in times their true size.
    margin
        Space around the spots that is shown, as a fraction of their extent; ``None`` shows the whole image.
    percentiles
        Ends of the colour scale, as percentiles of the observed and predicted values of a gene together. Values beyond
        have the colour of the end, and arrows at the colour bar say that there are some.
    cmap
        Colour map.
    ax
        Axes to draw on, one a panel, row by row; by default a new figure.
    figsize
        Size of a new figure in inches.
    save
        File to write; what has this name is replaced. The ending says the format. The figure is then closed, unless
        ``show`` is set.
    show
        Whether to show all open figures now. Notebooks show them anyway.

    Returns
    -------
    Axes, ``(n_genes, n_panels)``.

    Raises
    ------
    KeyError
        If there is no such prediction, gene, layer, table or image; the message lists what there is.
    TypeError
        If ``sdata`` is no SpatialData object.
    ValueError
        If an argument is of another type or range, if it is not clear which prediction, table, region or image is meant, if
        counts are not raw, if ``ax`` has not one Axes a panel, or if the prediction has no standard deviations to draw.
    """
    genes_as = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    shapes_key = check("region", region, Text | None)
    where = Where(image_key=image_key, table_key=table_key, shapes_key=shapes_key, layer=layer, genes=genes_as)
    check_slide(sdata)
    genes, cmap = check("genes", genes, Texts), colour_map(cmap)
    check_style(strength=tissue_strength, scale=spot_scale, percentiles=percentiles, margin=margin)
    check_figure(figsize=figsize, save=save, tissue=tissue, std=std, show=show)
    key = get.only_key(sdata, key, table_key=table_key)
    section = read_section(sdata, key, where, margin=margin)
    values = read_values(sdata, key, where, names=section.spots.names)
    columns = values.columns(genes)
    _check_std(values, key, wanted=std)
    n_maps = 1 + bool(values.is_observed[columns].any())
    size = figsize or ((tissue + n_maps + std) * PANEL_WIDTH + 1.4, len(genes) * (PANEL_WIDTH * section.aspect + 0.5))
    axes = make_axes(len(genes), tissue + n_maps + std, ax=ax, size=size)
    for row, column in zip(axes, columns, strict=True):
        _draw_background(row, section, tissue=tissue, strength=tissue_strength)
        norm = _shared_norm(values, column, percentiles)
        _draw_maps(
            row[tissue : tissue + n_maps], section, values, column=column, norm=norm, cmap=cmap, scale=spot_scale
        )
        if std:
            _draw_std(row[tissue + n_maps :], section, values, column=column, scale=spot_scale)
    finish(figure_of(axes), save=save, show=show)
    return axes


def _draw_background(row: NDArray[np.object_], section: View, *, tissue: bool, strength: float) -> None:
    """Draw the tissue by itself on the first axes, and faded on the others."""
    if tissue:
        draw_tissue(row[0], section)
        row[0].set_title("H&E", fontsize=FONT)
    for one in row[tissue:]:
        draw_tissue(one, section, strength=strength, grey=True)
    add_scale_bar(row[0], width=section.width, mpp=section.mpp)


def _check_std(values: Values, key: str, *, wanted: bool) -> None:
    if wanted and values.std is None:
        raise InvalidValueError(
            f"{key!r} has no standard deviations.",
            "predict with st_predict.tl.predict(..., n_samples=)",
            "predict with several checkpoints",
            Advice("leave them out with {}", "std", value=False),
        )


def _shared_norm(values: Values, column: int, percentiles: tuple[float, float]) -> Normalize:
    """Colour scale of a gene, for observed and predicted values alike."""
    both = np.concatenate([values.observed[:, column], values.predicted[:, column]])
    both = both[np.isfinite(both)]
    if not len(both):
        return Normalize(0, 1)
    low, high = np.percentile(both, percentiles)
    return Normalize(float(low), float(high))


def _draw_maps(
    row: NDArray[np.object_],
    section: View,
    values: Values,
    *,
    column: int,
    norm: Normalize,
    cmap: str | Colormap,
    scale: float,
) -> None:
    """Draw a gene on the axes for its maps: the last one is that of the prediction."""
    gene, is_observed = values.genes[column], bool(values.is_observed[column])
    if len(row) == 2:
        _draw_map(row[0], section, values.observed[:, column], norm=norm, cmap=cmap, scale=scale)
        row[0].set_title(f"{gene}, {'observed' if is_observed else 'not measured'}", fontsize=FONT)
    drawn = _draw_map(row[-1], section, values.predicted[:, column], norm=norm, cmap=cmap, scale=scale)
    row[-1].set_title(f"{gene}, predicted{_correlation(values, column)}", fontsize=FONT)
    bar = figure_of(row).colorbar(drawn, ax=list(row), extend=_extend(values, column, norm), fraction=0.05, pad=0.02)
    bar.set_label(values.spec.units + ("\nsame scale in both maps" if is_observed else ""), fontsize=FONT - 2)
    bar.ax.tick_params(labelsize=FONT - 2)


def _draw_std(row: NDArray[np.object_], section: View, values: Values, *, column: int, scale: float) -> None:
    """Draw the standard deviation of a gene on the last axes, from 0 on."""
    assert values.std is not None  # checked before anything was drawn
    std = values.std[:, column]
    norm = Normalize(0, float(np.nanmax(std, initial=0)) or 1)
    drawn = _draw_map(row[-1], section, std, norm=norm, cmap="magma", scale=scale)
    row[-1].set_title(f"{values.genes[column]}, standard deviation", fontsize=FONT)
    bar = figure_of(row).colorbar(drawn, ax=list(row), fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=FONT - 2)


def _draw_map(
    axes: Axes,
    section: View,
    expression: NDArray[np.float32],
    *,
    norm: Normalize,
    cmap: str | Colormap,
    scale: float,
) -> Collection:
    shown = np.isfinite(expression)
    return draw_spots(axes, section, shown, scale=scale, array=expression[shown], norm=norm, cmap=cmap)


def _correlation(values: Values, column: int) -> str:
    if not values.is_observed[column]:
        return ""
    r = values.pearson(column)
    return ", Pearson r undefined" if np.isnan(r) else f", Pearson r = {r:.2f}"


def _extend(values: Values, column: int, norm: Normalize) -> Literal["neither", "min", "max", "both"]:
    """At which ends of the colour scale there are values beyond it."""
    both = np.concatenate([values.observed[:, column], values.predicted[:, column]])
    below, above = bool((both < norm.vmin).any()), bool((both > norm.vmax).any())
    if below and above:
        return "both"
    return "min" if below else "max" if above else "neither"
