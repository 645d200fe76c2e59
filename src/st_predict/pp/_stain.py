"""Stain of a slide, measured with squidpy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError
from st_predict._progress import shows_progress, track
from st_predict._stain import Method, Stain
from st_predict._validated import Text, check
from st_predict.io import find_image, open_pyramid
from st_predict.pp._tissue import BLOCK, blocks, find_tissue

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from st_predict.io import PyramidReader

__all__ = ["fit_stain"]

logger = logging.getLogger(__name__)

SIZE = 2000
"""Maximum longer side of the image on which colours are measured, in pixels; a coarse level."""

LEAST = 1000
"""Minimum number of tissue pixels to measure a stain."""

_WAYS = (Advice("leave out {}", "stain"), "use a network trained without stain normalisation")


@shows_progress
def fit_stain(
    sdata: SpatialData, method: Method = "macenko", *, image_key: str | None = None, progress: bool | None = None
) -> Stain:
    """Measure the stain of a slide, as a reference for stain normalisation.

    Uses ``squidpy.experimental.im.fit_stain_reference`` (squidpy 1.8.2 or newer) on the tissue that :func:`find_tissue`
    finds, at a coarse level of the image.

    Parameters
    ----------
    sdata
        Object with the image; it is not changed.
    method
        ``"macenko"``: directions of haematoxylin and eosin in optical density :cite:p:`Macenko2009`. ``"reinhard"``:
        mean and standard deviation of lightness and colours :cite:p:`Reinhard2001`.
    image_key
        Key of the RGB image; optional if there is only one.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Stain
        Stain, for the argument ``stain`` of :func:`st_predict.tl.train` and :func:`st_predict.tl.predict`.

    Raises
    ------
    KeyError
        If the image does not exist.
    ModuleNotFoundError
        If squidpy is not installed or older than 1.8.2.
    ValueError
        If there is too little tissue, or it does not have two distinct stains, as on a slide with a single stain.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.simulate(1, 1, shape=(1200, 1200)).sections["P1S1"]
    >>> stp.pp.fit_stain(sdata, "reinhard").method
    'reinhard'
    """
    check_slide(sdata)
    method, image_key = check("method", method, Method), check("image_key", image_key, Text | None)
    key = find_image(sdata, image_key)
    tissue = find_tissue(sdata, key, size=SIZE)
    pixels = _read(open_pyramid(sdata, key), tissue.downsample, tissue.mask.shape)
    if (n_pixels := int(tissue.mask.sum())) < LEAST:
        raise InvalidValueError(
            f"The stain of image {key!r} cannot be measured: {n_pixels} pixels of {tissue.mask.size} are tissue.",
            *_WAYS,
            Advice("name another image with {}", "image_key"),
        )
    return _fit(pixels, tissue.mask, method, key)


def _read(reader: PyramidReader, downsample: float, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Image at the mask's resolution: every nth pixel of its level, ``(height, width, 3)``."""
    level = max(i for i, own in enumerate(reader.downsamples) if own <= downsample * (1 + 1e-6))
    step = round(downsample / reader.downsamples[level])
    height, width = reader.level_shapes[level]
    pixels = np.full((*shape, 3), 255, np.uint8)
    parts = list(blocks(height, width, side=step * max(1, BLOCK // step)))
    for y, x, h, w in track(parts, "Reading colours", len(parts), unit="part"):
        part = reader.read(x, y, w, h, level=level)[::step, ::step]
        pixels[y // step :, x // step :][: part.shape[0], : part.shape[1]] = part
    return pixels


def _fit(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], method: Method, key: str) -> Stain:
    fit = _squidpy()
    image = Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"))
    labels = Labels2DModel.parse(mask[: pixels.shape[0], : pixels.shape[1]].astype(np.uint8), dims=("y", "x"))
    slide = SpatialData(images={"slide": image}, labels={"slide_tissue": labels})
    try:
        found = fit(slide, "slide", method=method)
    except (RuntimeError, ValueError) as error:
        raise InvalidValueError(
            f"The stain of image {key!r} cannot be measured by {method!r}: {error}",
            *_WAYS,
            Advice("choose another method with {}", "method"),
        ) from error
    return Stain.of_macenko(found.stain_matrix) if method == "macenko" else Stain.of_reinhard(found.mu, found.sigma)


def _squidpy() -> Callable[..., Any]:
    """Return squidpy's function that measures a stain."""
    try:
        from squidpy.experimental.im import fit_stain_reference
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Measuring a stain needs squidpy 1.8.2 or newer: pip install 'squidpy>=1.8.2' ({error})."
        ) from error
    return cast("Callable[..., Any]", fit_stain_reference)
