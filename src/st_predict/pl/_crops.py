"""Plot of the crops that a network reads."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._validated import Number, Text, check
from st_predict.io import find_image, find_mpp, find_region, level_offsets, named_table, open_pyramid, read_spots
from st_predict.pl._figure import Output, add_scale_bar, make_axes, plot
from st_predict.pl._labels import FONT
from st_predict.pl._view import read_view
from st_predict.specs import CropSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.io import PyramidReader
    from st_predict.specs import LevelSpec

__all__ = ["crops"]

COLOURS = ("#ffe119", "#42d4f4", "#3cff5a", "#ff9f1c", "#ffffff")
"""Colours that do not occur in H&E."""

AROUND = 1.4
"""Side of the image shown, relative to the largest field of view."""


@plot
def crops(  # noqa: PLR0913 - plots have many options
    sdata: SpatialData,
    crop: CropSpec,
    *,
    spot: str | tuple[float, float] | None = None,
    mpp: float | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    image_key: str | None = None,
    region: str | None = None,
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw a network's fields of view around a spot: as squares on the image, and as the network's inputs.

    Fields have the size that a prediction uses: a pixel of the finest level is ``crop.mpp`` um wide, or one image pixel
    if ``crop.mpp`` is ``None``.

    Parameters
    ----------
    sdata
        Object with the image and the spots.
    crop
        Crop of a network, such as ``st_predict.models.get_spec("m2ost").crop``.
    spot
        Name of a spot, or ``(x, y)`` in level-0 pixels of the image. By default the most central spot.
    mpp
        Micrometres per pixel (mpp) of the image at level 0; by default found by :func:`st_predict.io.find_mpp`.
    table_key
        Key of the spots' table; optional if there is only one.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.
    image_key
        Key of the image; optional if there is only one.
    region
        Section of the spot, if the table annotates several.
    ax
        Axes to draw on: one for the image and one per level; by default a new figure.
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
        Axes, ``(1 + n_levels,)``. With ``return_fig``, the figure.

    Raises
    ------
    KeyError
        If the spot, table or image does not exist; the message lists the existing ones.
    TypeError
        If ``sdata`` or ``crop`` has another type.
    ValueError
        If an argument has another type or range, if ``mpp`` is required and unknown, if the image is coarser than the
        crop, or if the number of ``ax`` is not the number of panels.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import st_predict as stp
    >>> crop = stp.models.get_spec("ridge").crop
    >>> axes = stp.pl.crops(stp.datasets.toy(), crop, show=False)
    >>> [ax.get_title().splitlines()[0] for ax in axes]
    ['spot P1S1_3x2', '64 x 64 px of 2 µm', '64 x 64 px of 4 µm', '64 x 64 px of 8 µm']
    >>> plt.close()
    """
    table_key = named_table(sdata, table_key, bin_um)
    if not isinstance(crop, CropSpec):
        raise InvalidTypeError(
            f"crop must be a CropSpec, got {crop!r}.",
            "take the crop of a network, such as st_predict.models.get_spec(...).crop",
        )
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    check("region", region, Text | None)
    image_key = find_image(sdata, image_key, region=find_region(sdata, table_key, region))
    reader = open_pyramid(sdata, image_key)
    found = find_mpp(sdata, image_key=image_key, table_key=table_key, shapes_key=region, mpp=mpp)
    image_mpp = None if found is None else found.value
    name, xy = _find_spot(sdata, spot, table_key=table_key, image_key=image_key, region=region)
    _check_inside(reader, xy, name)
    # Imported here because it needs torch, which other plots do not.
    from st_predict.crops import iter_batches, plan_crops

    downsamples, offsets = reader.downsamples, level_offsets(reader)
    plan = plan_crops(np.array([xy]), crop, downsamples=downsamples, mpp=image_mpp, offsets=offsets)
    (batch,) = iter_batches(reader, plan, pad_value=crop.pad_value)
    fields = _scale_to_image(crop, image_mpp)
    n_panels = 1 + len(fields)
    axes = make_axes(1, n_panels, ax=ax, size=figsize or (n_panels * 1.8, 2.4)).ravel()
    _draw_around(axes[0], reader, xy, fields=fields, mpp=image_mpp, pad_value=crop.pad_value)
    axes[0].set_title(name, fontsize=FONT)
    for one, field, pixels in zip(axes[1:], fields, batch.crops, strict=True):
        _draw_crop(one, pixels[0].permute(1, 2, 0).numpy(), field, mpp=image_mpp)
    return output.finish(axes)


@dataclass(frozen=True, slots=True)
class _Field:
    """A level of a crop on this image; ``width`` is in level-0 pixels."""

    level: LevelSpec
    width: float
    colour: str

    @property
    def pixel(self) -> float:
        """Width of an input pixel of the network, in level-0 pixels."""
        return self.width / self.level.size


def _scale_to_image(crop: CropSpec, mpp: float | None) -> list[_Field]:
    base = 1.0 if crop.mpp is None or mpp is None else crop.mpp / mpp
    return [
        _Field(level=level, width=level.fov * base, colour=COLOURS[place % len(COLOURS)])
        for place, level in enumerate(crop.levels)
    ]


def _find_spot(
    sdata: SpatialData,
    spot: str | tuple[float, float] | None,
    *,
    table_key: str | None,
    image_key: str | None,
    region: str | None,
) -> tuple[str, tuple[float, float]]:
    """Name and centre of a spot."""
    if spot is not None and not isinstance(spot, str):
        given = tuple(spot.tolist()) if isinstance(spot, np.ndarray) and spot.ndim else spot
        x, y = check("spot", given, tuple[Number, Number] | str)
        return f"x {x:g}, y {y:g}", (x, y)
    spots = read_spots(sdata, image_key=image_key, table_key=table_key, region=region)
    if spot is None:
        row = int(np.linalg.norm(spots.xy - np.median(spots.xy, axis=0), axis=1).argmin())
    elif spot in spots.names:
        row = int(spots.names.get_loc(spot))
    else:
        close = difflib.get_close_matches(spot, list(spots.names), cutoff=0.5) or list(spots.names[:5])
        raise NotFoundError(f"No spot {spot!r} among {len(spots)}, which are named like {close}.")
    return f"spot {spots.names[row]}", (float(spots.xy[row, 0]), float(spots.xy[row, 1]))


def _check_inside(reader: PyramidReader, xy: tuple[float, float], name: str) -> None:
    (x, y), (height, width) = xy, reader.level_shapes[0]
    if not (0 <= x < width and 0 <= y < height):
        raise InvalidValueError(f"{name} is outside the image of {width} x {height} px, at x {x:g}, y {y:g}.")


def _draw_around(
    axes: Axes,
    reader: PyramidReader,
    xy: tuple[float, float],
    *,
    fields: Sequence[_Field],
    mpp: float | None,
    pad_value: int,
) -> None:
    """Draw the image around a spot, with a square for each field."""
    (x, y), (height, width) = xy, reader.level_shapes[0]
    side = AROUND * max(field.width for field in fields)
    half = side / 2
    inside = max(x - half, 0), max(y - half, 0), min(x + half, width), min(y + half, height)
    pixels, (left, top, right, bottom) = read_view(reader, inside)
    axes.add_patch(Rectangle((x - half, y - half), side, side, color=str(pad_value / 255), zorder=-1))
    axes.imshow(pixels, extent=(left, right, bottom, top))
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    # coarse levels first and thick, so that fields of the same size all stay visible
    for place, field in enumerate(fields[::-1]):
        thickness = 1.2 + 2.4 * sum(other.width == field.width for other in fields[::-1][place + 1 :])
        corner = x - field.width / 2, y - field.width / 2
        square = Rectangle(corner, field.width, field.width, fill=False)
        _outline(square, field.colour, thickness)
        axes.add_patch(square)
    axes.set_axis_off()
    add_scale_bar(axes, width=side, mpp=mpp)


def _outline(square: Rectangle, colour: str, thickness: float) -> None:
    """Give a square a coloured line with thin black edges."""
    square.set(edgecolor=colour, linewidth=thickness, joinstyle="miter")
    square.set_path_effects([Stroke(linewidth=thickness + 0.8, foreground="black", joinstyle="miter"), Normal()])


def _draw_crop(axes: Axes, pixels: NDArray[np.uint8], field: _Field, *, mpp: float | None) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    # inside the image, as spines would leave gaps at the corners
    inset = 0.008
    frame = Rectangle((inset, inset), 1 - 2 * inset, 1 - 2 * inset, fill=False, transform=axes.transAxes)
    _outline(frame, field.colour, 2.0)
    axes.add_patch(frame)
    size = field.level.size
    of_um, field_um = ("", "") if mpp is None else (f" of {field.pixel * mpp:.3g} µm", f" = {field.width * mpp:.0f} µm")
    axes.set_title(f"{size} x {size} px{of_um}\nfield {field.width:.0f} px{field_um}", fontsize=FONT)
