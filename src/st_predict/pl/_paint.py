"""Spots of a map on grey tissue: patches, or one image where there are too many patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgba_array

from st_predict.pl._labels import size_in
from st_predict.pl._raster import rasterise
from st_predict.pl._view import draw_spots, draw_tissue, faded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from st_predict.pl._view import MapStyle, View

__all__ = ["Paint"]

MANY = 20_000
"""Number of spots from which a map is an image by default."""

OVERSAMPLING = 2
"""Pixels of that image per pixel of the saved figure, so that edges are as smooth as on patches."""

MAX_FACTOR = 4


@dataclass(frozen=True, slots=True, eq=False)
class Paint:
    """Draws the maps of a section.

    Parameters
    ----------
    section
        Section to draw.
    style
        Look of the maps.
    factor
        Pixels of the image per pixel of the view; ``None`` if spots are drawn as patches.
    known
        Spot of each pixel, ``(height, width)``, for each set of spots that was drawn.
    """

    section: View
    style: MapStyle
    factor: int | None
    known: dict[bytes, NDArray[np.int32]] = field(default_factory=dict)

    @classmethod
    def of(cls, section: View, style: MapStyle, axes: Axes, *, dpi: int) -> Paint:
        """Decide between patches and an image, which is fine enough for ``axes`` saved with ``dpi``."""
        if not (len(section.spots) > MANY if style.raster is None else style.raster):
            return cls(section, style, None)
        width, height = size_in(axes)
        needed = OVERSAMPLING * dpi * max(width, height) / max(section.pixels.shape)
        return cls(section, style, int(np.clip(np.ceil(needed), 1, MAX_FACTOR)))

    def draw(self, axes: Axes, shown: NDArray[np.bool_], **colours: Any) -> ScalarMappable:
        """Draw grey tissue and some of the spots.

        Parameters
        ----------
        axes
            Axes with level-0 pixels as data units.
        shown
            ``(n_spots,)``, True where a spot is drawn.
        colours
            ``array``, ``norm`` and ``cmap``, or ``facecolors``, of the shown spots.

        Returns
        -------
        Mapping from values to colours, for a colour bar.
        """
        if self.factor is None:
            draw_tissue(axes, self.section, strength=self.style.strength, grey=True)
            return draw_spots(axes, self.section, shown, scale=self.style.scale, linewidths=0, **colours)
        mapping = ScalarMappable(norm=colours.get("norm"), cmap=colours.get("cmap"))
        if "array" in colours:
            mapping.set_array(colours["array"])
            rgba = np.asarray(mapping.to_rgba(colours["array"], bytes=True))
        else:
            rgba = np.rint(255 * to_rgba_array(colours["facecolors"])).astype(np.uint8)
        self._draw_image(axes, shown, rgba[:, :3], factor=self.factor)
        return mapping

    def _draw_image(self, axes: Axes, shown: NDArray[np.bool_], colours: NDArray[np.uint8], *, factor: int) -> None:
        """Draw tissue and spots as one image, which mixes them at edges as patches do."""
        tissue = faded(self.section.pixels, strength=self.style.strength, grey=True)
        image = tissue.repeat(factor, axis=0).repeat(factor, axis=1)
        mask = shown.tobytes()  # maps of several genes mostly have the same spots
        if mask not in self.known:
            self.known[mask] = _index(self.section, shown, self.style.scale, factor=factor)
        row = self.known[mask]
        image[row >= 0] = colours[row[row >= 0]]
        left, top, right, bottom = self.section.box
        axes.imshow(image, extent=(left, right, bottom, top), interpolation="antialiased")
        axes.set_axis_off()


def _index(section: View, shown: NDArray[np.bool_], scale: float, *, factor: int) -> NDArray[np.int32]:
    """Return the number of each pixel's spot among the shown ones, -1 for none; ``factor`` pixels per pixel of the view."""
    height, width = (factor * side for side in section.pixels.shape[:2])
    left, top, right, bottom = section.box
    origin, pixel = np.array([left, top]), np.array([(right - left) / width, (bottom - top) / height])
    xy = (section.spots.xy[shown] - origin) / pixel
    if isinstance(section.outlines, np.ndarray):
        return rasterise(xy, scale * section.outlines[shown] / pixel.mean(), shape=(height, width))
    drawn = compress(section.outlines, shown)
    outlines = [centre + scale * ((o - origin) / pixel - centre) for centre, o in zip(xy, drawn, strict=True)]
    return rasterise(xy, outlines, shape=(height, width))
