"""All genes of a panel in one picture: their first three principal components as red, green and blue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from sklearn.decomposition import PCA

from st_predict import get
from st_predict._errors import InvalidValueError
from st_predict._validated import Text, check
from st_predict._where import Duplicates, GeneMatching, Where
from st_predict.io import named_table
from st_predict.pl._figure import FONT, add_scale_bar, check_figure, figure_of, finish, make_axes
from st_predict.pl._values import read_values
from st_predict.pl._view import PANEL_WIDTH, check_style, draw_spots, draw_tissue, read_section

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.pl._values import Values

__all__ = ["pca_map"]


def pca_map(  # noqa: PLR0913 - a plot has many options, and users find them in the signature
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
    percentiles: tuple[float, float] = (2, 98),
    colours: Literal["shared", "each"] = "shared",
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    figsize: tuple[float, float] | None = None,
    save: str | PathLike[str] | None = None,
    show: bool = False,
) -> NDArray[np.object_]:
    """Draw the expression of all panel genes as one map, observed beside predicted: Figure 7 of :cite:t:`Wang2025`.

    Principal components are fitted on the observed expression of this section, in the units of the prediction, over
    all panel genes that were measured; genes are centred and not scaled. Observed and predicted expression are
    projected on the same first three components, which are shown as red, green and blue: spots of similar colour have
    similar expression, in both maps alike. Without counts, or if the table lacks panel genes that the units need, which
    a warning says, components are fitted on the prediction, and it is drawn alone. Spots without a value are left out.

    Parameters
    ----------
    sdata
        Holds the image, the spots and the prediction.
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
    bin_um
        Side of the bins of Visium HD in micrometres, such as 16, instead of ``table_key``.
    image_key
        Image to draw on; may be left out if there is only one.
    region
        Section to draw, if the table annotates several.
    tissue
        Whether the tissue is also shown by itself, in its colours.
    tissue_strength
        Strength of the grey tissue under the spots: 0 is white, 1 is not faded.
    spot_scale
        Size at which spots are drawn, in times their true size.
    margin
        Space around the spots that is shown, as a fraction of their extent; ``None`` shows the whole image.
    percentiles
        Values of each component that are black and full red, green or blue, as percentiles over spots.
    colours
        Over which spots percentiles run: ``"shared"`` takes the observed ones for both maps, so that the same colour is
        the same expression, and a prediction that varies less is greyer; ``"each"`` takes those of each map, which
        compares patterns only.
    ax
        Axes to draw on, one a panel; by default a new figure.
    figsize
        Size of a new figure in inches.
    save
        File to write; what has this name is replaced. The ending says the format. The figure is then closed, unless
        ``show`` is set.
    show
        Whether to show all open figures now. Notebooks show them anyway.

    Returns
    -------
    Axes, ``(1, n_panels)``.

    Raises
    ------
    KeyError
        If the prediction, layer, table or image does not exist; the message lists what there is.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If an argument is of another type or range, if fewer than three genes or four spots have values, if it is not clear
        which prediction, table, region or image is meant,
        if counts are not raw, or if ``ax`` has not one Axes a panel.
    """
    genes_as = GeneMatching(duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    shapes_key = check("region", region, Text | None)
    table_key = named_table(sdata, table_key, bin_um)
    where = Where(image_key=image_key, table_key=table_key, shapes_key=shapes_key, layer=layer, genes=genes_as)
    check("colours", colours, Literal["shared", "each"])
    check_style(strength=tissue_strength, scale=spot_scale, percentiles=percentiles, margin=margin)
    check_figure(figsize=figsize, save=save, tissue=tissue, show=show)
    key = get.only_key(sdata, key, table_key=table_key)
    section = read_section(sdata, key, where, margin=margin)
    values = read_values(sdata, key, where, rows=section.rows)
    maps, explained = _project(values)
    size = figsize or ((tissue + len(maps)) * PANEL_WIDTH, PANEL_WIDTH * section.aspect + 0.6)
    axes = make_axes(1, tissue + len(maps), ax=ax, size=size)
    if tissue:
        draw_tissue(axes[0, 0], section)
        axes[0, 0].set_title("H&E", fontsize=FONT)
    fitted = next(iter(maps.values()))
    for one, (title, scores) in zip(axes[0, tissue:], maps.items(), strict=True):
        shown = _complete(scores)
        colour = _to_colour(scores[shown], fitted if colours == "shared" else scores, percentiles)
        draw_tissue(one, section, strength=tissue_strength, grey=True)
        draw_spots(one, section, shown, scale=spot_scale, facecolors=colour)
        one.set_title(f"{title}\n{_legend(explained)}", fontsize=FONT)
    add_scale_bar(axes[0, 0], width=section.width, mpp=section.mpp)
    finish(figure_of(axes), save=save, show=show)
    return axes


def _project(values: Values) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Components ``(n_spots, 3)`` of each map, the one that they were fitted on first, and their share of variance."""
    genes = values.is_observed
    sources = {"observed": values.observed[:, genes], "predicted": values.predicted[:, genes]}
    if not genes.any():
        sources = {"predicted": values.predicted}
    complete = {name: expression[_complete(expression)] for name, expression in sources.items()}
    fitted_on = complete[next(iter(sources))]
    n_spots, n_genes = fitted_on.shape
    if n_spots < 4 or n_genes < 3:
        raise InvalidValueError(
            f"Three components need 4 spots and 3 genes with values, there are {n_spots} and {n_genes}."
        )
    pca = PCA(n_components=3, svd_solver="full").fit(fitted_on.astype(np.float64))
    return {name: _transform(pca, expression) for name, expression in sources.items()}, pca.explained_variance_ratio_


def _transform(pca: PCA, expression: NDArray[np.float32]) -> NDArray[np.float64]:
    """Components of each spot, NaN for those without values."""
    scores = np.full((len(expression), 3), np.nan)
    complete = _complete(expression)
    if complete.any():
        scores[complete] = pca.transform(expression[complete].astype(np.float64))
    return scores


def _complete(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Rows without NaN."""
    return np.asarray(np.isfinite(values).all(axis=1))


def _to_colour(
    scores: NDArray[np.float64], reference: NDArray[np.float64], percentiles: tuple[float, float]
) -> NDArray[np.float64]:
    """Scale components to 0-1 between percentiles of ``reference``."""
    low, high = np.nanpercentile(reference, percentiles, axis=0)
    # a component that does not vary is middle grey
    varies = high > low
    scaled = np.divide(scores - low, high - low, out=np.full_like(scores, 0.5), where=varies)
    return scaled.clip(0, 1)


def _legend(explained: NDArray[np.float64]) -> str:
    names = ("red", "green", "blue")
    return ", ".join(
        f"{name} PC{i} ({share:.0%})" for i, (name, share) in enumerate(zip(names, explained, strict=True), 1)
    )
