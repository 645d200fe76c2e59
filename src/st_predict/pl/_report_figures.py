"""Figures of a report, embedded in the page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from st_predict._errors import StPredictError
from st_predict.io import find_image, find_region
from st_predict.pl._figure import add_scale_bar
from st_predict.pl._labels import FONT
from st_predict.pl._spatial import spatial
from st_predict.pl._view import draw_spots, draw_tissue
from st_predict.pp import find_tissue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._where import Where
    from st_predict.pl._view import View

__all__ = ["map_of_gene", "overview"]

DPI = 200
QUALITY = 88
"""Quality of WebP images, 0 to 100."""

WIDTH = 7.0
"""Width of the overview in inches."""

PREDICTED, LEFT_OUT, TISSUE = "#0072B2", "#D55E00", "#009E73"
"""Colour-blind safe palette (Okabe and Ito)."""


def overview(sdata: SpatialData, view: View, done: NDArray[np.bool_], where: Where) -> tuple[str, str]:
    """Draw the whole slide with the tissue, predicted spots and left-out spots.

    Parameters
    ----------
    sdata
        Object with the image.
    view
        The section.
    done
        ``(n_spots,)``: whether a spot has a prediction.
    where
        Image to draw on.

    Returns
    -------
    tuple of str and str
        The figure, and a small one for an index.
    """
    figure = plt.figure(figsize=(WIDTH, WIDTH * view.aspect + 0.5), layout="compressed")
    try:
        axes = figure.subplots()
        draw_tissue(axes, view)
        marks = [_outline(axes, sdata, view, where)]
        for shown, colour, label in ((done, PREDICTED, "predicted"), (~done, LEFT_OUT, "left out")):
            if shown.any():
                draw_spots(axes, view, shown, facecolors=colour, alpha=0.45, linewidths=0)
                words = f"{shown.sum():,} spots {label}"
                marks.append(Line2D([], [], marker="o", linestyle="", color=colour, alpha=0.6, label=words))
        add_scale_bar(axes, width=view.width, mpp=view.mpp)
        legend = [mark for mark in marks if mark is not None]
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=FONT, frameon=False)
        return picture(figure), picture(figure, dpi=DPI / 3)
    finally:
        plt.close(figure)


def _outline(axes: Axes, sdata: SpatialData, view: View, where: Where) -> Line2D | None:
    """Draw the border of the tissue, if it is found."""
    region = where.shapes_key or find_region(sdata, where.table_key)
    image_key = find_image(sdata, cast("str | None", where.image_key), region=region)
    try:
        tissue = find_tissue(sdata, image_key)
    except StPredictError:  # a black image
        return None
    if not tissue.mask.any() or tissue.mask.all():
        return None
    height, width = tissue.mask.shape
    x, y = ((np.arange(n) + 0.5) * tissue.downsample for n in (width, height))
    axes.contour(x, y, tissue.mask, levels=[0.5], colors=TISSUE, linewidths=0.8)
    return Line2D([], [], color=TISSUE, label="border of the tissue")


def map_of_gene(sdata: SpatialData, gene: str, key: str, where: Where) -> str:
    """Draw the map of a gene, beside measured values if there are any."""
    figure = spatial(
        sdata,
        [gene],
        key=key,
        table_key=where.table_key,
        image_key=cast("str | None", where.image_key),
        region=where.shapes_key,
        layer=where.layer,
        duplicates=where.genes.duplicates,
        ignore_case=where.genes.ignore_case,
        id_column=where.genes.id_column,
        aliases=where.genes.aliases,
        tissue=False,
        show=False,
        return_fig=True,
    )
    try:
        return picture(figure)
    finally:
        plt.close(figure)


def picture(figure: Figure, *, dpi: float | None = None) -> str:
    """Return a figure as a data URL, at ``DPI`` by default."""
    data = io.BytesIO()
    figure.savefig(data, format="webp", dpi=dpi or DPI, pil_kwargs={"quality": QUALITY})
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
