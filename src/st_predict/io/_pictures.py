"""Whole pictures: JPEG, PNG and TIFF that are not tiled, turned upright."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from st_predict._errors import InvalidValueError, StPredictError
from st_predict.io._regions import FAILURES
from st_predict.io._tiff import orientation_of, refuse_stack
from st_predict.io._tiff_file import is_tiff, open_tiff
from st_predict.io._tiff_mpp import TiffMpp, mpp_of_tiff

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray

__all__ = ["is_picture", "read_picture", "read_tiff_mpp", "upright"]

logger = logging.getLogger(__name__)

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
PNG_BITS = 24
"""Place of the number of bits per sample in a PNG file."""

ORIENTATION = 274
RGB, YCBCR = 2, 6
PREMULTIPLIED, STRAIGHT = 1, 2
IN_MEMORY = 1 << 29
"""Bytes of a decoded TIFF above which it is decoded into a file."""

TURNED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""From stored to shown pixels, by the orientation tag."""


def is_picture(path: Path) -> bool:
    """Whether a file begins as JPEG or PNG do."""
    with path.open("rb") as file:
        start = file.read(8)
    return start.startswith((JPEG, PNG))


def read_picture(path: Path, *, scratch: Path | None = None) -> NDArray[Any]:
    """Decode a JPEG, PNG or TIFF and turn it upright.

    The orientation tag of EXIF or TIFF is applied in all formats, as image viewers do, and a warning says so.

    Parameters
    ----------
    path
        The file. A TIFF with several images must be a pyramid; its finest level is read.
    scratch
        Folder for pixels of a large TIFF, which then do not need memory.

    Returns
    -------
    ndarray
        ``(height, width, 3 or 4)``, RGB or RGBA, in the type of the file.

    Raises
    ------
    ValueError
        If the file is none of these, is damaged, or is not RGB.
    """
    with path.open("rb") as file:
        start = file.read(8)
    try:
        if start.startswith(JPEG):
            return _read_jpeg(path)
        if start.startswith(PNG):
            return _read_png(path)
        if is_tiff(path):
            return _read_tiff(path, scratch)
    except StPredictError:
        raise
    except (SyntaxError, TypeError, *FAILURES) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise InvalidValueError(f"{path} cannot be read: {error}. It is damaged.", "get it again") from error
    raise InvalidValueError(f"{path} is no JPEG, PNG or TIFF image.")


def upright(pixels: NDArray[Any], orientation: int, path: Path) -> NDArray[Any]:
    """Turn ``(height, width, ...)`` as an orientation tag demands; a view.

    Raises
    ------
    ValueError
        If there is no such orientation.
    """
    if orientation not in TURNED:
        raise InvalidValueError(f"{path} has the orientation tag {orientation}; known are 1 to 8.", "remove the tag")
    if orientation != 1:
        logger.warning(
            "%s has the orientation tag %d: the image is turned upright, as viewers show it. Pixel coordinates must refer "
            "to the upright image.",
            path,
            orientation,
        )
    return TURNED[orientation](pixels)


def _read_jpeg(path: Path) -> NDArray[Any]:
    # Image.open takes a whole section for a decompression bomb, and its limit can only be changed for everybody
    with JpegImageFile(path) as file:
        _check_mode(file.mode, path)
        return upright(np.asarray(file), file.getexif().get(ORIENTATION, 1), path)


def _read_png(path: Path) -> NDArray[Any]:
    with path.open("rb") as stream:
        bits = stream.read(PNG_BITS + 1)[PNG_BITS:]
    with PngImageFile(path) as file:
        orientation, palette = file.getexif().get(ORIENTATION, 1), file.mode == "P"
        _check_mode("RGB" if palette else file.mode, path)
        if bits == b"\x10":  # Pillow takes the upper 8 bits
            return upright(imagecodecs.png_decode(path.read_bytes()), orientation, path)
        image = file.convert("RGBA" if "transparency" in file.info else "RGB") if palette else file
        return upright(np.asarray(image), orientation, path)


def _check_mode(mode: str, path: Path) -> None:
    if mode not in {"RGB", "RGBA"}:
        raise InvalidValueError(
            f"{path}: expected an 8-bit RGB image, got mode {mode!r} of Pillow.", "convert it first"
        )


def _check_samples(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    n = pixels.shape[2] if pixels.ndim == 3 else 1
    if n not in {3, 4}:
        raise InvalidValueError(f"{path}: expected an 8-bit RGB image, got {n} values per pixel.", "convert it first")
    return pixels


def _read_tiff(path: Path, scratch: Path | None) -> NDArray[Any]:
    with open_tiff(path) as file:
        page = _finest(file, path)
        large = page.size * page.dtype.itemsize > IN_MEMORY and scratch is not None
        pixels = page.asarray(out=f"memmap:{scratch}" if large else None)
        orientation, alpha = orientation_of(page), page.extrasamples[:1]
        pixels = pixels if page.planarconfig == 1 else np.moveaxis(pixels, 0, -1)
    pixels = upright(_check_samples(pixels, path), orientation, path)
    return _straightened(pixels, alpha[0], path) if alpha else pixels


def _finest(file: tifffile.TiffFile, path: Path) -> Any:
    refuse_stack(file, path)
    page = file.series[0].keyframe
    photometric = int(page.photometric)
    if photometric not in {RGB, YCBCR}:
        raise InvalidValueError(
            f"{path}: expected an 8-bit RGB image, got the photometric interpretation {page.photometric}.",
            "convert it first",
        )
    return page


def _straightened(pixels: NDArray[Any], alpha: int, path: Path) -> NDArray[Any]:
    """Put colours that were multiplied by alpha on white; straight ones stay."""
    if alpha == STRAIGHT:
        return pixels
    if alpha == PREMULTIPLIED and pixels.dtype == np.uint8:
        # as on black, so white comes in where alpha leaves room for it
        return np.minimum(pixels[..., :3] + (255 - pixels[..., 3:].astype(np.uint16)), 255).astype(np.uint8)
    raise InvalidValueError(
        f"{path} has a fourth value per pixel that is not plain transparency (extra sample {alpha}).",
        "save the image without it",
    )


def read_tiff_mpp(path: Path) -> TiffMpp | None:
    """Micrometres per pixel that a TIFF states, unchecked; ``None`` for other files."""
    if not is_tiff(path):
        return None
    with open_tiff(path) as file:
        return mpp_of_tiff(file, path)
