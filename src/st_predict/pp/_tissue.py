"""Where the tissue of an image is."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from skimage.color import rgb2gray
from skimage.filters import gaussian, sobel, threshold_li
from skimage.morphology import remove_small_holes, remove_small_objects
from skimage.transform import downscale_local_mean
from skimage.util import img_as_float32

from st_predict._containers import check_slide
from st_predict._errors import InvalidValueError
from st_predict._progress import shows_progress, track
from st_predict._reprs import ShortRepr
from st_predict._validated import Count, Positive, Probability, check
from st_predict.io import find_image, open_pyramid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.io import PyramidReader

__all__ = ["Tissue", "find_tissue"]

CONTRAST = (0.01, 0.03)
"""Bounds of the threshold: mean differences of neighbouring pixels, whose grey values go from 0 to 1.

Glass has less than the first even where stain has run onto it, so that an empty slide has no tissue. Nearly all tissue
has more than the second, so that an image with nothing but tissue is not split into its paler and darker half.
"""

BLUR = 3.0
"""Width over which differences are averaged, in pixels of the mask: about the gap between things that make up tissue."""

BLOCK = 2048
"""Side of the blocks that are read, in pixels: 50 MB as floating-point numbers of 32 bits."""

TOLERANCE = 1e-5
"""Change of the threshold at which the search for it ends; by default, it sorts all pixels to find the smallest difference."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Tissue(ShortRepr):
    """Where the tissue of an image is.

    Parameters
    ----------
    mask
        ``(height, width)``, True on tissue.
    downsample
        Width of a pixel of ``mask``, in pixels of level 0. A level-0 position ``x`` is in column
        ``floor(x / downsample)``.
    threshold
        Contrast above which a pixel is tissue.
    """

    mask: NDArray[np.bool_]
    downsample: float
    threshold: float

    def at(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether there is tissue at positions.

        Parameters
        ----------
        xy
            ``(..., 2)``: level-0 pixels.

        Returns
        -------
        ``(...)``; False outside the image.
        """
        columns, rows = np.moveaxis(np.floor(xy / self.downsample).astype(np.int64), -1, 0)
        height, width = self.mask.shape
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        return inside & self.mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]


@shows_progress
def find_tissue(
    sdata: SpatialData,
    image_key: str | None = None,
    *,
    size: int = 2000,
    threshold: float | None = None,
    min_area: float = 1e-3,
    progress: bool | None = None,
) -> Tissue:
    """Find the tissue on a stained slide by its texture.

    Tissue is where neighbouring pixels differ: the magnitude of the gradient of the grey value (Sobel), averaged over
    some pixels, is compared with the threshold of Li. Unlike colour or brightness, this is not misled by stain that
    has run onto the glass, and it finds pale stroma. All steps are those of scikit-image.

    Parameters
    ----------
    sdata
        Holds the image; it is not changed.
    image_key
        RGB image; may be left out if there is one.
    size
        Longest side of the mask, in pixels, at most.
    threshold
        Contrast that makes tissue, as a mean difference of neighbouring pixels of the mask with grey values from 0 to 1.
        By default that of Li, but from 0.01, so that an empty slide has no tissue, to 0.03, so that an image full of
        tissue is not split.
    min_area
        Pieces of tissue, and holes in it, that are smaller than this share of the image are removed.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    The mask, which may be empty.

    Raises
    ------
    KeyError
        If the image does not exist.
    ValueError
        If there are several images and none is named, the image holds nothing but 0 and 1, or an argument is out of range.

    Notes
    -----
    The coarsest level with ``size`` pixels or more is read, block by block, so that memory does not depend on the size
    of the image. The time does, if the image has no coarse level.
    """
    check_slide(sdata)
    size, min_area = check("size", size, Count), check("min_area", min_area, Probability)
    threshold = check("threshold", threshold, Positive | None)
    key = find_image(sdata, image_key)
    grey, downsample = _read_grey(open_pyramid(sdata, key), size=size)
    _refuse_black(grey, key)
    contrast = gaussian(sobel(grey), BLUR)  # type: ignore[no-untyped-call]
    if threshold is None:
        threshold = float(np.clip(float(threshold_li(contrast, tolerance=TOLERANCE)), *CONTRAST))  # type: ignore[no-untyped-call]
    n_smallest = round(min_area * grey.size)
    mask = remove_small_objects(contrast > threshold, max_size=n_smallest)
    mask = remove_small_holes(mask, max_size=n_smallest)
    logger.info("%.1f %% of image %r is tissue (contrast above %.3g).", 100 * mask.mean(), key, threshold)
    return Tissue(mask=mask, downsample=downsample, threshold=threshold)


def _refuse_black(grey: NDArray[np.float32], key: str) -> None:
    """Refuse an image of 8 bits that was made of numbers from 0 to 1 without scaling them."""
    if grey.max() <= 1.5 / 255:
        raise InvalidValueError(
            f"Image {key!r} is black: the brightest grey value is {255 * grey.max():.2g} of 255.",
            "if it was made of numbers from 0 to 1, convert these with st_predict.io.to_rgb8",
        )


def _read_grey(reader: PyramidReader, *, size: int) -> tuple[NDArray[np.float32], float]:
    """Grey values from 0 to 1 of the whole image, and how much they are downsampled."""
    level = max(i for i, shape in enumerate(reader.level_shapes) if i == 0 or max(shape) >= size)
    height, width = reader.level_shapes[level]
    factor = -(-max(height, width) // size)
    grey = np.empty((-(-height // factor), -(-width // factor)), np.float32)
    parts = list(blocks(height, width, side=factor * max(1, BLOCK // factor)))
    for y, x, h, w in track(parts, "Finding tissue", len(parts), unit="part"):
        block = rgb2gray(img_as_float32(reader.read(x, y, w, h, level=level)))  # type: ignore[no-untyped-call]
        # The last pixel of a row or column may cover less of the image; what is there is repeated.
        padded = np.pad(block, [(0, -h % factor), (0, -w % factor)], mode="edge")
        small = downscale_local_mean(padded, (factor, factor))  # type: ignore[no-untyped-call]
        grey[y // factor :, x // factor :][: small.shape[0], : small.shape[1]] = small
    return grey, factor * reader.downsamples[level]


def blocks(height: int, width: int, *, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, height and width of squares that cover a picture; those at the end are smaller."""
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield y, x, min(side, height - y), min(side, width - x)
