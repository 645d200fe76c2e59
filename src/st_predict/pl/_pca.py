"""Map of all panel genes: their principal components as lightness and colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from sklearn.decomposition import PCA

from st_predict import get
from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Count, Text, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.io import named_table
from st_predict.pl._figure import Output, add_scale_bar, make_axes, plot
from st_predict.pl._labels import FONT
from st_predict.pl._paint import Paint
from st_predict.pl._palette import LEGEND_WIDTH, add_legend, colours_of
from st_predict.pl._values import read_map
from st_predict.pl._view import PANEL_WIDTH, MapStyle, draw_tissue, map_height

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.pl._values import Values

__all__ = ["pca_map"]


@plot
def pca_map(  # noqa: PLR0913 - plots have many options
    sdata: SpatialData,
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
    tissue_strength: float = 0.5,
    spot_scale: float = 1.0,
    margin: float | None = 0.08,
    raster: bool | None = None,
    components: Sequence[int] = (1, 2),
    percentiles: tuple[float, float] = (2, 98),
    colours: Literal["shared", "each"] = "shared",
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw all panel genes as one map, observed beside predicted, as in Figure 7 of :cite:t:`Wang2025`.

    Principal components are fitted on the section's observed expression, in the units of the prediction, over all
    measured panel genes; genes are centred, not scaled. Observed and predicted expression are projected on the same
    components: spots of similar colour have similar expression, within and between the maps. Without counts, components are fitted on the prediction, and only the prediction is drawn. The
    same holds if the table lacks panel genes that the units need; a warning says so. Spots without a value are left
    out.

    The first component is shown from dark to light, the second from blue to yellow, with equal steps in CIELAB; a legend
    shows both. Readers with red-green colour blindness see the same differences. They see only these two dimensions of
    colour: a third component, from green to pink, can be drawn, but is hidden from them.

    Parameters
    ----------
    sdata
        Object with the image, the spots and the prediction.
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
        Whether the H&E image is also drawn in its colours, left of the maps.
    tissue_strength
        Strength of the grey tissue under the spots: 0 is white, 1 is not faded.
    spot_scale
        Size of the spots relative to their true size.
    margin
        Space around the spots that is shown, as a fraction of their extent; ``None`` shows the whole image.
    raster
        Whether spots are drawn as an image with twice the resolution of the figure, which is faster and smaller, instead
        of as patches. By default for more than 20,000 spots.
    components
        Principal components to draw, from 1: two, or three. Others show what the first two leave out.
    percentiles
        Percentiles over spots at which a component has the colours of its lower and upper end.
    colours
        Values for the percentiles. ``"shared"`` uses observed values for both maps: the same colour is the same
        expression, and a prediction that varies less is greyer. ``"each"`` uses each map's own values, which compares
        patterns only.
    ax
        Axes to draw on, one per panel; by default a new figure.
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
        Axes, ``(1, n_panels)``. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If the prediction, layer, table or image does not exist; the message lists the existing ones.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If an argument has another type or range, if too few genes or spots have values for the components, if the
        prediction, table, region or image is ambiguous, if counts are not raw, or if the number of ``ax`` is not the
        number of panels.

    Examples
    --------
    >>> import tempfile
    >>> import matplotlib.pyplot as plt
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> axes = stp.pl.pca_map(sdata, show=False)
    >>> [ax.get_title().splitlines()[0] for ax in axes[0]]
    ['H&E', 'observed', 'predicted']
    >>> plt.close()
    """
    genes_as = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    shapes_key, table_key = check("region", region, Text | None), named_table(sdata, table_key, bin_um)
    where = Where(image_key=image_key, table_key=table_key, shapes_key=shapes_key, layer=layer, genes=genes_as)
    components = _check(components, colours)
    style = MapStyle.of(
        tissue=tissue, strength=tissue_strength, scale=spot_scale, percentiles=percentiles, margin=margin, raster=raster
    )
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    key = get.only_key(sdata, key, table_key=table_key)
    section, values = read_map(sdata, key, where, margin=margin)
    maps, explained = _project(values, components)
    size = figsize or ((tissue + len(maps)) * PANEL_WIDTH + LEGEND_WIDTH, map_height(section.aspect) + 0.6)
    axes = make_axes(1, tissue + len(maps), ax=ax, size=size)
    paint = Paint.of(section, style, axes[0, -1], dpi=dpi)
    _draw(axes[0], maps, explained, paint=paint, shared=colours == "shared")
    return output.finish(axes)


def _check(components: Sequence[int], colours: str) -> list[int]:
    check("colours", colours, Literal["shared", "each"])
    found = check("components", list(components) if isinstance(components, tuple | range) else components, list[Count])
    if len(found) not in (2, 3) or len(set(found)) < len(found):
        raise InvalidValueError(f"components must be two or three different numbers from 1, got {components!r}.")
    return found


def _draw(
    axes: NDArray[np.object_],
    maps: dict[str, NDArray[np.float64]],
    shares: dict[str, float],
    *,
    paint: Paint,
    shared: bool,
) -> None:
    """Draw the tissue, the maps and the legend; the first map has the components' scale."""
    section = paint.section
    if paint.style.tissue:
        draw_tissue(axes[0], section)
        axes[0].set_title("H&E", fontsize=FONT)
    fitted = next(iter(maps.values()))
    explained = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    for one, (kind, scores) in zip(axes[int(paint.style.tissue) :], maps.items(), strict=True):
        shown = _complete(scores)
        colour = colours_of(_scale(scores[shown], fitted if shared else scores, paint.style.percentiles))
        paint.draw(one, shown, facecolors=colour)
        one.set_title(f"{kind}\n{explained} of variance", fontsize=FONT)
    add_legend(axes[-1], list(shares), aspect=section.aspect)
    add_scale_bar(axes[0], width=section.width, mpp=section.mpp)


def _project(values: Values, components: Sequence[int]) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Components ``(n_spots, n_components)`` of each map, the fitted one first, and their shares of variance."""
    genes = values.is_observed
    sources = {"observed": values.observed[:, genes], "predicted": values.predicted[:, genes]}
    if not genes.any():
        sources = {"predicted": values.predicted}
    complete = {name: expression[_complete(expression)] for name, expression in sources.items()}
    fitted_on, last = complete[next(iter(sources))], max(components)
    n_spots, n_genes = fitted_on.shape
    if n_spots <= last or n_genes < last:
        raise InvalidValueError(
            f"Component {last} needs at least {last + 1} spots and {last} genes with values, got {n_spots} and {n_genes}.",
            *([Advice("draw the first ones with {}", "components", value=(1, 2))] if last > 2 else []),
        )
    pca, columns = PCA(n_components=last, svd_solver="full").fit(fitted_on.astype(np.float64)), np.array(components) - 1
    maps = {name: _transform(pca, expression)[:, columns] for name, expression in sources.items()}
    return maps, {f"PC{column + 1}": float(pca.explained_variance_ratio_[column]) for column in columns}


def _transform(pca: PCA, expression: NDArray[np.float32]) -> NDArray[np.float64]:
    """Components of each spot, NaN for spots without values."""
    scores = np.full((len(expression), pca.n_components_), np.nan)
    complete = _complete(expression)
    if complete.any():
        scores[complete] = pca.transform(expression[complete].astype(np.float64))
    return scores


def _complete(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Rows without NaN."""
    return np.asarray(np.isfinite(values).all(axis=1))


def _scale(
    scores: NDArray[np.float64], reference: NDArray[np.float64], percentiles: tuple[float, float]
) -> NDArray[np.float64]:
    """Scale components to 0-1 between percentiles of ``reference``."""
    low, high = np.nanpercentile(reference, percentiles, axis=0)
    # constant components are in the middle
    varies = high > low
    scaled = np.divide(scores - low, high - low, out=np.full_like(scores, 0.5), where=varies)
    return scaled.clip(0, 1)
