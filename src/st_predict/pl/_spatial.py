"""Observed beside predicted expression, on the tissue."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.font_manager import FontProperties

from st_predict import get
from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Count, Flag, Text, Texts, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.io import named_table
from st_predict.pl._figure import (
    Output,
    add_scale_bar,
    colour_map,
    make_axes,
    make_blocks,
    plot,
    tidy_bar,
)
from st_predict.pl._labels import FONT, LINE_HEIGHT, wrap
from st_predict.pl._paint import Paint
from st_predict.pl._scale import ColourScale, extend_of
from st_predict.pl._values import read_map
from st_predict.pl._view import PANEL_WIDTH, MapStyle, draw_tissue, map_height

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.pl._values import Values
    from st_predict.pl._view import View
    from st_predict.specs import Reliability

__all__ = ["spatial"]

BAR_WIDTH = 0.45
"""Width of a colour bar with its numbers, in inches."""

UNITS_WIDTH = 0.3
"""Width of the units beside the last colour bar of a gene, in inches."""

_SHORT = {"patient": "another patient", "section": "another section"}

CHARACTERS_PER_INCH = 15
"""Density of the units beside a colour bar."""


@plot
def spatial(  # noqa: PLR0913 - plots have many options
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
    bin_um: float | None = None,
    image_key: str | None = None,
    region: str | None = None,
    tissue: bool = True,
    std: bool = False,
    scale: Literal["own", "shared"] = "own",
    vmin: float | None = None,
    vmax: float | None = None,
    norm: Normalize | None = None,
    percentiles: tuple[float, float] = (2, 98),
    cmap: str | Colormap = "viridis",
    ncols: int | None = None,
    tissue_strength: float = 0.5,
    spot_scale: float = 1.0,
    margin: float | None = 0.08,
    raster: bool | None = None,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw observed beside predicted expression of genes on the tissue, and the tissue once.

    Observed counts are put into the units of the prediction by the target transform of the model. Each map has its own
    colour scale by default, because predictions vary less than measurements; ``scale="shared"`` compares values. The
    colour bar of the prediction has the units. Its title has two correlations over the spots of this section on tissue:
    *partial*, with the Pearson residuals of the counts given log total count (see :func:`st_predict.tl.evaluate`), and
    *plain*, of the drawn values. If the card of the model has them, the next line is the partial correlation of the
    gene on held-out sections with its 95 % interval, marked *not reliable* where that includes 0 (see
    :func:`st_predict.get.reliability`).

    Spots without a value are left out. A gene that was not measured is drawn as predicted only, and so are all genes if
    the table lacks panel genes that the units need; a warning says so.

    Parameters
    ----------
    sdata
        Object with the image, the spots and the prediction.
    genes
        Genes of the panel to draw.
    key
        Key of the prediction; optional if there is only one.
    layer
        Layer with the raw counts; by default ``X``.
    duplicates
        Handling of genes with several columns in the table: ``"error"`` refuses, ``"sum"`` adds their counts,
        ``"first"`` takes the first.
    ignore_case
        Whether to ignore case when gene symbols are matched.
    id_column
        Column of ``.var`` with identifiers of the panel's type. By default ``var_names``, or the only column that has
        genes of the panel.
    aliases
        Table of previous symbols and Ensembl identifiers, in the format of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    table_key
        Key of the spots' table; required if several tables have a prediction of this key.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``.
    image_key
        Key of the image to draw on; optional if there is only one.
    region
        Section to draw, if the table annotates several.
    tissue
        Whether the H&E image is also drawn in its colours, once per figure, left of the maps.
    std
        Whether the standard deviation of the prediction is drawn beside it, on a colour scale from zero.
    scale
        Colour scale of a gene: ``"own"`` fits one to each map and compares patterns, ``"shared"`` fits one to the
        observed and predicted values together and compares values.
    vmin
        Lower end of the colour scales; by default the lower one of ``percentiles``.
    vmax
        Upper end of the colour scales; by default the upper one of ``percentiles``.
    norm
        Normalisation of the colour scales, such as ``matplotlib.colors.PowerNorm(0.5)``, in place of ``vmin`` and
        ``vmax``. Limits that it does not set are taken from ``percentiles``.
    percentiles
        Ends of a colour scale, as percentiles of its values. Values beyond have the colour of the end, and arrows at
        the colour bar mark them.
    cmap
        Colour map.
    ncols
        Number of genes per row of a new figure. By default, a row has about twice as many maps as there are rows.
    tissue_strength
        Strength of the grey tissue under the spots: 0 is white, 1 is not faded. It is grey so that colours mean
        expression only.
    spot_scale
        Size of the spots relative to their true size.
    margin
        Space around the spots that is shown, as a fraction of their extent; ``None`` shows the whole image.
    raster
        Whether spots are drawn as an image with twice the resolution of the figure, which is faster and smaller, instead
        of as patches. By default for more than 20,000 spots.
    ax
        Axes to draw on: one for the tissue, then the axes of each gene; by default a new figure.
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
        Axes, ``(n_genes, n_panels)``, one row per gene in any layout. The panels are the tissue (the same Axes in every
        row), observed, predicted, and standard deviation, as far as they are drawn. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If the prediction, gene, layer, table or image does not exist; the message lists the existing ones.
    TypeError
        If ``sdata`` is not a SpatialData object, or ``norm`` not a Normalize.
    ValueError
        If an argument has another type or range, if ``norm`` is given with ``vmin`` or ``vmax`` or cannot scale the
        values, if the prediction, table, region or image is ambiguous, if counts are not raw, if the
        number of ``ax`` is not the number of panels, or if the prediction has no standard deviations to draw.

    Examples
    --------
    >>> import tempfile
    >>> import matplotlib.pyplot as plt
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> axes = stp.pl.spatial(sdata, ["GENE1"], show=False)
    >>> [ax.get_title().splitlines()[0] for ax in axes[0]]
    ['H&E', 'GENE1, observed', 'GENE1, predicted']
    >>> plt.close()
    """
    genes_as = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    shapes_key, table_key = check("region", region, Text | None), named_table(sdata, table_key, bin_um)
    where = Where(image_key=image_key, table_key=table_key, shapes_key=shapes_key, layer=layer, genes=genes_as)
    genes, cmap, ncols = check("genes", genes, Texts), colour_map(cmap), check("ncols", ncols, Count | None)
    style = MapStyle.of(
        tissue=tissue, strength=tissue_strength, scale=spot_scale, percentiles=percentiles, margin=margin, raster=raster
    )
    colours = ColourScale.of(scale, cmap=cmap, vmin=vmin, vmax=vmax, norm=norm, percentiles=percentiles)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    key = get.only_key(sdata, key, table_key=table_key)
    section, values = read_map(sdata, key, where, margin=margin)
    maps = _plan_maps(values, key, values.columns(genes), colours=colours, std=check("std", std, Flag))
    axes = _make_panels(maps, tissue=tissue, ncols=ncols, aspect=section.aspect, ax=ax, size=figsize)
    _draw(axes, maps, Paint.of(section, style, axes[0, -1], dpi=dpi), units=values.spec.units, shared=scale == "shared")
    return output.finish(axes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Map:
    """A map of a gene; ``expression`` is ``(n_spots,)``, NaN where undefined."""

    kind: Literal["observed", "predicted", "std"]
    title: str
    expression: NDArray[np.float32]
    norm: Normalize
    cmap: Colormap | str

    @property
    def shown(self) -> NDArray[np.bool_]:
        """``(n_spots,)``, True for spots with a value."""
        return np.asarray(np.isfinite(self.expression))


def _plan_maps(
    values: Values, key: str, columns: Sequence[int], *, colours: ColourScale, std: bool
) -> list[list[_Map]]:
    """Return the maps of each gene: observed if any gene is, predicted, and standard deviation if wanted."""
    if std and values.std is None:
        raise InvalidValueError(
            f"{key!r} has no standard deviations.",
            "predict with st_predict.tl.predict(..., n_samples=)",
            "predict with several checkpoints",
            Advice("leave them out with {}", "std", value=False),
        )
    observed = bool(values.is_observed[list(columns)].any())
    return [
        [*_plan_expression(values, column, colours, observed=observed), *([_plan_std(values, column)] if std else [])]
        for column in columns
    ]


def _plan_expression(values: Values, column: int, colours: ColourScale, *, observed: bool) -> list[_Map]:
    gene, expressions = values.genes[column], [values.predicted[:, column]]
    titles = [f"{gene}, predicted{_correlation(values, column)}{_trust(values.reliability, column)}"]
    kinds: list[Literal["observed", "predicted"]] = ["predicted"]
    if observed:
        expressions.insert(0, values.observed[:, column])
        titles.insert(0, f"{gene}, {'observed' if values.is_observed[column] else 'not measured'}")
        kinds.insert(0, "observed")
    return [
        _Map(kind=kind, title=title, expression=expression, norm=norm, cmap=colours.cmap)
        for kind, title, expression, norm in zip(kinds, titles, expressions, colours.norms(expressions), strict=True)
    ]


def _plan_std(values: Values, column: int) -> _Map:
    """Return the map of a standard deviation, on a scale from 0."""
    assert values.std is not None  # checked before
    std = values.std[:, column]
    norm = Normalize(0, float(np.nanmax(std, initial=0)) or 1)
    title = f"{values.genes[column]}, standard deviation"
    return _Map(kind="std", title=title, expression=std, norm=norm, cmap="magma")


def _make_panels(
    plans: Sequence[Sequence[_Map]],
    *,
    tissue: bool,
    ncols: int | None,
    aspect: float,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None,
    size: tuple[float, float] | None,
) -> NDArray[np.object_]:
    """Return axes, ``(n_genes, tissue + n_maps)``; all rows share the axes of the tissue."""
    n_genes, n_maps = len(plans), len(plans[0])
    n_across = min(n_genes, ncols or max(1, int(np.sqrt(2 * n_genes / n_maps))))
    if ax is None:
        width = tissue * PANEL_WIDTH + n_across * (n_maps * (PANEL_WIDTH + BAR_WIDTH) + UNITS_WIDTH)
        height = -(-n_genes // n_across) * (map_height(aspect) + _title_height(plans) + 0.1)
        flat = make_blocks(n_genes, n_maps, ncols=n_across, first=tissue, size=size or (width, height))
    else:
        flat = make_axes(1, tissue + n_genes * n_maps, ax=ax, size=(1, 1)).ravel()
    maps = flat[int(tissue) :].reshape(n_genes, n_maps)
    return np.column_stack([np.repeat(flat[:1], n_genes), maps]) if tissue else maps


def _title_height(plans: Sequence[Sequence[_Map]]) -> float:
    """Return the height of the highest title in inches."""
    font = FontProperties(size=FONT)
    titles = [wrap(planned.title, PANEL_WIDTH + BAR_WIDTH - 0.1, font) for of_gene in plans for planned in of_gene]
    return LINE_HEIGHT * max(1 + title.count("\n") for title in titles)


def _draw(
    axes: NDArray[np.object_],
    maps: Sequence[Sequence[_Map]],
    paint: Paint,
    *,
    units: str,
    shared: bool,
) -> None:
    """Draw the tissue, and the maps of each gene with their colour bars."""
    section = paint.section
    if paint.style.tissue:
        draw_tissue(axes[0, 0], section)
        axes[0, 0].set_title("H&E", fontsize=FONT)
    for row, of_gene in zip(axes[:, int(paint.style.tissue) :], maps, strict=True):
        drawn = [_draw_map(one, planned, paint) for one, planned in zip(row, of_gene, strict=True)]
        _add_bars(drawn, row, of_gene, units=_wrap(units, section), shared=shared)
    add_scale_bar(axes[0, 0], width=section.width, mpp=section.mpp)


def _draw_map(axes: Axes, planned: _Map, paint: Paint) -> ScalarMappable:
    axes.set_title(planned.title, fontsize=FONT)
    array = planned.expression[planned.shown]
    return paint.draw(axes, planned.shown, array=array, norm=planned.norm, cmap=planned.cmap)


def _add_bars(
    drawn: Sequence[ScalarMappable], row: NDArray[np.object_], maps: Sequence[_Map], *, units: str, shared: bool
) -> None:
    """Add a colour bar to each map, or one to both maps of a shared scale; the prediction's has the units."""
    pair = [i for i, planned in enumerate(maps) if planned.kind != "std"] if shared else []
    if pair:
        both = len(pair) == 2 and all(maps[i].shown.any() for i in pair)
        note = "\nsame scale in both maps" if both else ""
        expression = np.concatenate([maps[i].expression for i in pair])
        _add_bar(drawn[pair[-1]], [row[i] for i in pair], expression, label=units + note)
    for i, planned in enumerate(maps):
        if i not in pair:
            bar = _add_bar(drawn[i], [row[i]], planned.expression, label=units if planned.kind == "predicted" else "")
            bar.ax.set_visible(bool(planned.shown.any()))  # hidden, not left out: maps keep one size


def _add_bar(drawn: ScalarMappable, axes: Sequence[Axes], expression: NDArray[np.float32], *, label: str) -> Colorbar:
    norm = cast("Normalize", drawn.norm)
    bar = axes[0].figure.colorbar(drawn, ax=list(axes), extend=extend_of(norm, expression), fraction=0.05, pad=0.02)
    tidy_bar(bar, label)
    return bar


def _wrap(units: str, section: View) -> str:
    """Break units into lines that fit beside a map."""
    return textwrap.fill(units, max(16, int(CHARACTERS_PER_INCH * map_height(section.aspect))))


def _correlation(values: Values, column: int) -> str:
    """Correlations for the title: given depth, and plain."""
    if not values.is_observed[column]:
        return ""
    numbers = [
        f"{name} undefined" if np.isnan(r) else f"{name} r = {r:z.2f}"
        for name, r in (("partial", values.partial(column)), ("plain", values.pearson(column)))
    ]
    return f"\n{', '.join(numbers)}"


def _trust(reliability: Reliability | None, column: int) -> str:
    """Line of the title with the score of the gene on held-out sections, from the card."""
    if reliability is None:
        return ""
    score, low, high = reliability.partial[column], reliability.low[column], reliability.high[column]
    if score is None or low is None or high is None:
        return f"\nnot measured on {_SHORT[reliability.held_out]}"
    mark = "" if low > 0 else "not reliable: "
    return f"\n{mark}r = {score:z.2f} ({low:z.2f} to {high:z.2f}), {_SHORT[reliability.held_out]}"
