"""Tissue detection on H&E images."""

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
"""Bounds of the threshold: mean differences of neighbouring pixels, with grey values from 0 to 1.

Glass stays below the first even with stain on it, so that an empty slide has no tissue. Nearly all tissue exceeds the
second, so that an image full of tissue is not split into a paler and a darker half.
"""

BLUR = 3.0
"""Width over which differences are averaged, in pixels of the mask: about the gap between structures of the tissue."""

BLOCK = 2048
"""Side of the blocks to read, in pixels: 50 MB as floating-point numbers of 32 bits."""

TOLERANCE = 1e-5
"""Change of the threshold at which the search for it ends; by default, it sorts all pixels to find the smallest difference."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Tissue(ShortRepr):
    """Tissue mask of an image; returned by :func:`find_tissue`.

    Parameters
    ----------
    mask
        ``(height, width)``, True on tissue.
    downsample
        Width of a mask pixel in level-0 pixels. A level-0 position ``x`` is in column ``floor(x / downsample)``.
    threshold
        Contrast above which a pixel is tissue.

    Examples
    --------
    >>> import numpy as np
    >>> import st_predict as stp
    >>> tissue = stp.pp.Tissue(mask=np.array([[False, True]]), downsample=4.0, threshold=0.02)
    >>> tissue.at(np.array([[2.0, 1.0], [6.0, 1.0]]))
    array([False,  True])
    """

    mask: NDArray[np.bool_]
    downsample: float
    threshold: float

    def at(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether positions are on tissue.

        Parameters
        ----------
        xy
            ``(..., 2)``: positions in level-0 pixels.

        Returns
        -------
        ndarray
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

    Tissue has contrast between neighbouring pixels: the gradient magnitude of the grey value (Sobel filter), smoothed,
    is compared with Li's threshold. Unlike colour or brightness, it ignores stain on the glass and finds pale stroma.
    All steps use scikit-image.

    Parameters
    ----------
    sdata
        Object with the image; it is not changed.
    image_key
        Key of the RGB image; optional if there is only one.
    size
        Maximum longer side of the mask, in pixels.
    threshold
        Minimum contrast of tissue: mean difference of neighbouring mask pixels, with grey values from 0 to 1. By
        default Li's threshold, limited to at least 0.01 (an empty slide has no tissue) and at most 0.03 (an image full
        of tissue is not split).
    min_area
        Minimum size of pieces of tissue and of holes, as a share of the image; smaller ones are removed.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Tissue
        Tissue mask, which may be empty.

    Raises
    ------
    KeyError
        If the image does not exist.
    ValueError
        If the image is ambiguous, it only has the values 0 and 1, or an argument is out of range.

    Notes
    -----
    The coarsest level with at least ``size`` pixels is read block by block, so that memory does not depend on the image
    size. Without coarse levels, the time does.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> tissue = stp.pp.find_tissue(sdata)
    >>> tissue.mask.shape, tissue.downsample
    ((720, 880), 1.0)
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
    """Refuse an 8-bit image made from unscaled numbers from 0 to 1."""
    if grey.max() <= 1.5 / 255:
        raise InvalidValueError(
            f"Image {key!r} is black: the brightest grey value is {255 * grey.max():.2g} of 255.",
            "if it was made from numbers from 0 to 1, convert them with st_predict.io.to_rgb8",
        )


def _read_grey(reader: PyramidReader, *, size: int) -> tuple[NDArray[np.float32], float]:
    """Grey values from 0 to 1 of the whole image, and their downsampling factor."""
    level = max(i for i, shape in enumerate(reader.level_shapes) if i == 0 or max(shape) >= size)
    height, width = reader.level_shapes[level]
    factor = -(-max(height, width) // size)
    grey = np.empty((-(-height // factor), -(-width // factor)), np.float32)
    parts = list(blocks(height, width, side=factor * max(1, BLOCK // factor)))
    for y, x, h, w in track(parts, "Finding tissue", len(parts), unit="part"):
        block = rgb2gray(img_as_float32(reader.read(x, y, w, h, level=level)))  # type: ignore[no-untyped-call]
        # The last pixel of a row or column may cover less of the image; edge values are repeated.
        padded = np.pad(block, [(0, -h % factor), (0, -w % factor)], mode="edge")
        small = downscale_local_mean(padded, (factor, factor))  # type: ignore[no-untyped-call]
        grey[y // factor :, x // factor :][: small.shape[0], : small.shape[1]] = small
    return grey, factor * reader.downsamples[level]


def blocks(height: int, width: int, *, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, height and width of blocks that cover an image; the last ones are smaller."""
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield y, x, min(side, height - y), min(side, width - x)
