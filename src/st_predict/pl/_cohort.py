"""Maps of several sections on common colour scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from st_predict import get
from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError, StPredictError
from st_predict._rows import regions_of
from st_predict._validated import Count, Texts, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.io import named_table
from st_predict.pl._figure import Output, add_scale_bar, colour_map, figure_of, make_axes, plot, tidy_bar
from st_predict.pl._labels import FONT, LINE_HEIGHT
from st_predict.pl._paint import Paint
from st_predict.pl._scale import ColourScale, extend_of
from st_predict.pl._values import read_map
from st_predict.pl._view import PANEL_WIDTH, MapStyle, draw_tissue, map_height

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.pl._values import Values
    from st_predict.pl._view import View

__all__ = ["cohort"]

WIDTH, BAR_WIDTH = 1.7, 0.5
"""Width of a map, and of a colour bar with its label, in inches; four maps and a bar fill a page."""


@plot
def cohort(  # noqa: PLR0913 - plots have many options
    sdata: SpatialData | Mapping[str, SpatialData],
    genes: str | Sequence[str] | None = None,
    *,
    key: str | None = None,
    values: Literal["predicted", "observed"] = "predicted",
    layer: str | None = None,
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    image_key: str | None = None,
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
    """Draw genes, or the tissue, of all sections of a cohort, each gene on one colour scale.

    Titles have the name of the section and the gene. If the gene was measured, they also have its partial correlation: of
    the prediction with the Pearson residuals of the counts, given log total count, over the spots of that section on
    tissue (see :func:`st_predict.tl.evaluate`). They say how many spots have no value. Each map has a scale bar, as
    sections differ in size.

    Parameters
    ----------
    sdata
        Slides with a prediction by name, or one slide. A slide with several sections, which its table annotates as
        regions, gives one map per section.
    genes
        Genes of the panel to draw; by default the H&E images.
    key
        Key of the prediction; optional if there is only one.
    values
        Values to draw: ``"predicted"``, or ``"observed"`` in the units of the prediction.
    layer
        Layer with the raw counts; by default ``X``.
    duplicates
        Handling of genes with several columns in a table: ``"error"`` refuses, ``"sum"`` adds their counts,
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
        Key of the spots' table; required if several tables of a slide have a prediction of this key.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``.
    image_key
        Key of the image to draw on, in all slides; optional if each has only one.
    vmin
        Lower end of the colour scales; by default the lower one of ``percentiles``.
    vmax
        Upper end of the colour scales; by default the upper one of ``percentiles``.
    norm
        Normalisation of the colour scales in place of ``vmin`` and ``vmax``.
    percentiles
        Ends of a colour scale, as percentiles of the values of a gene in all sections.
    cmap
        Colour map.
    ncols
        Number of maps per row of a new figure; by default up to 4. Each gene begins a new row.
    tissue_strength
        Strength of the grey tissue under the spots: 0 is white, 1 is not faded.
    spot_scale
        Size of the spots relative to their true size.
    margin
        Space around the spots that is shown, as a fraction of their extent; ``None`` shows the whole image.
    raster
        Whether spots are drawn as an image instead of as patches. By default for sections of more than 20,000 spots.
    ax
        Axes to draw on: all sections of the first gene, then of the others; by default a new figure.
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
        Axes, ``(n_genes, n_sections)``; one row for the tissue. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If the prediction, a gene, layer or table does not exist; the message names the slide.
    TypeError
        If a slide is not a SpatialData object.
    ValueError
        If an argument has another type or range, if there are no slides, if the predictions have different units, or if
        the number of ``ax`` is not the number of maps.

    Examples
    --------
    >>> import tempfile
    >>> import matplotlib.pyplot as plt
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> axes = stp.pl.cohort({"first": sdata, "second": sdata}, "GENE1", show=False)
    >>> [ax.get_title().splitlines()[0] for ax in axes[0]]
    ['first, GENE1', 'second, GENE1']
    >>> plt.close()
    """
    matching = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    where, names = Where(layer=layer, genes=matching, image_key=image_key), check("genes", genes, Texts | None)
    observed, ncols = _is_observed(values), check("ncols", ncols, Count | None)
    style = MapStyle.of(
        tissue=False, strength=tissue_strength, scale=spot_scale, percentiles=percentiles, margin=margin, raster=raster
    )
    colours = ColourScale.of("shared", cmap=colour_map(cmap), vmin=vmin, vmax=vmax, norm=norm, percentiles=percentiles)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    sections = _read(sdata, key, names, where, table_key=table_key, bin_um=bin_um, margin=margin)
    maps = [_GeneMap.of(gene, sections, colours, observed=observed) for gene in names or []]
    axes = _make_panels(sections, len(names or "-"), ncols, ax=ax, size=figsize)
    _draw(axes, maps, sections, style=style, dpi=dpi)
    return output.finish(axes)


def _is_observed(values: str) -> bool:
    return check("values", values, Literal["predicted", "observed"]) == "observed"


@dataclass(frozen=True, slots=True, eq=False)
class _Section:
    """A section of a cohort, with its name."""

    name: str
    key: str
    view: View
    values: Values


def _read(
    sdata: SpatialData | Mapping[str, SpatialData],
    key: str | None,
    genes: Sequence[str] | None,
    where: Where,
    *,
    table_key: str | None,
    bin_um: float | None,
    margin: float | None,
) -> list[_Section]:
    """Read all sections; refuse different units."""
    slides = dict(sdata) if isinstance(sdata, Mapping) else {"": sdata}
    if not slides:
        raise InvalidValueError("A cohort needs at least one slide, got an empty mapping.")
    sections: list[_Section] = []
    for name, slide in slides.items():
        check_slide(slide)
        at = replace(where, table_key=named_table(slide, table_key, bin_um))
        try:
            found = _read_slide(slide, name, key, at, margin=margin)
            found[0].values.columns(list(found[0].values.genes) if genes is None else genes)  # refuses unknown ones
        except StPredictError as error:
            if not name:
                raise
            raise error.about(f"Slide {name!r}:") from error
        sections += found
    _refuse_others(sections)
    return sections


def _refuse_others(sections: Sequence[_Section]) -> None:
    """Refuse predictions that one colour scale cannot compare."""
    first, *others = sections
    if keys := {one.name: one.key for one in others if one.key != first.key}:
        raise InvalidValueError(
            f"Sections of one colour scale need predictions of one model, got { ({first.name: first.key} | keys) }.",
            Advice("name one that all slides have with {}", "key"),
        )
    if units := {one.name: one.values.spec.units for one in others if one.values.spec != first.values.spec}:
        raise InvalidValueError(
            f"Sections of one colour scale need predictions in the same units, got { ({first.name: first.values.spec.units} | units) }, "
            "with reference values of the training.",
            "predict all slides with the same model",
        )


def _read_slide(
    sdata: SpatialData, name: str, key: str | None, where: Where, *, margin: float | None
) -> list[_Section]:
    """Read each region that the table of a slide annotates."""
    key = get.only_key(sdata, key, table_key=where.table_key)
    regions = dict.fromkeys(regions_of(sdata.tables[get.table_of(sdata, key, table_key=where.table_key)]))
    several = len(regions) > 1
    found = []
    for region in regions:
        at = replace(where, shapes_key=region) if several else where
        view, values = read_map(sdata, key, at, margin=margin)
        found.append(
            _Section(", ".join(filter(None, [name, str(region) if several or not name else ""])), key, view, values)
        )
    return found


def _make_panels(
    sections: Sequence[_Section],
    n_genes: int,
    ncols: int | None,
    *,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None,
    size: tuple[float, float] | None,
) -> NDArray[np.object_]:
    """Return axes, ``(n_genes, n_sections)``; each gene begins a new row of the figure."""
    n_sections = len(sections)
    if ax is not None:
        return make_axes(n_genes, n_sections, ax=ax, size=(1, 1))
    ncols = min(n_sections, ncols or 4)
    n_rows = -(-n_sections // ncols)
    aspect = max(section.view.aspect for section in sections)
    height = n_genes * n_rows * (WIDTH / PANEL_WIDTH * map_height(aspect) + 2 * LINE_HEIGHT + 0.2)
    grid = make_axes(n_genes * n_rows, ncols, ax=None, size=size or (max(3.2, ncols * WIDTH + BAR_WIDTH), height))
    by_gene = grid.reshape(n_genes, n_rows * ncols)
    for surplus in by_gene[:, n_sections:].ravel():
        surplus.remove()
    return by_gene[:, :n_sections]


@dataclass(frozen=True, slots=True, eq=False)
class _GeneMap:
    """Values of a gene in all sections, and their colours."""

    gene: str
    columns: list[int]
    values: list[NDArray[np.float32]]
    norm: Normalize
    colours: ColourScale
    label: str

    @classmethod
    def of(cls, gene: str, sections: Sequence[_Section], colours: ColourScale, *, observed: bool) -> _GeneMap:
        """Read the values; refuse a norm that is undefined for them."""
        columns = [section.values.columns([gene])[0] for section in sections]
        values = [
            (section.values.observed if observed else section.values.predicted)[:, column]
            for section, column in zip(sections, columns, strict=True)
        ]
        label = f"{'observed' if observed else 'predicted'}, {sections[0].values.spec.units}"
        return cls(gene, columns, values, colours.norms(values)[0], colours, label)


def _draw(
    axes: NDArray[np.object_], maps: Sequence[_GeneMap], sections: Sequence[_Section], *, style: MapStyle, dpi: int
) -> None:
    """Draw the maps of each gene, or the tissue, with a scale bar on each."""
    if not maps:
        for one, section in zip(axes[0], sections, strict=True):
            draw_tissue(one, section.view)
            one.set_title(section.name, fontsize=FONT)
    else:
        paints = [Paint.of(section.view, style, axes[0, 0], dpi=dpi) for section in sections]
        for row, of_gene in zip(axes, maps, strict=True):
            _draw_gene(row, of_gene, sections, paints)
    for row in axes:
        for one, section in zip(row, sections, strict=True):
            add_scale_bar(one, width=section.view.width, mpp=section.view.mpp)


def _draw_gene(
    axes: NDArray[np.object_], drawn: _GeneMap, sections: Sequence[_Section], paints: Sequence[Paint]
) -> None:
    """Draw a gene in all sections, and one colour bar."""
    norm, cmap = drawn.norm, drawn.colours.cmap
    for one, section, column, values, paint in zip(axes, sections, drawn.columns, drawn.values, paints, strict=True):
        shown = np.isfinite(values)
        spots = paint.draw(one, shown, array=values[shown], norm=norm, cmap=cmap)
        one.set_title(_title(section, drawn.gene, column, shown), fontsize=FONT)
    extend = extend_of(norm, np.concatenate(drawn.values))
    bar = figure_of(axes).colorbar(spots, ax=axes.tolist(), extend=extend, fraction=0.05, pad=0.02)
    tidy_bar(bar, drawn.label)


def _title(section: _Section, gene: str, column: int, shown: NDArray[np.bool_]) -> str:
    """Name, gene, partial correlation if the gene was measured, and the number of spots without a value."""
    lines = [f"{section.name}, {gene}"]
    if section.values.is_observed[column]:
        partial = section.values.partial(column)
        lines.append("partial r undefined" if np.isnan(partial) else f"partial r = {partial:z.2f}")
    else:
        lines.append("not measured")
    if not shown.all():
        lines.append(f"{(~shown).sum():,} of {len(shown):,} spots without value")
    return "\n".join(lines)
