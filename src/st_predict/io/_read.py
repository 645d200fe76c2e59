"""Open any picture as a SpatialData object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dask.array as da
from spatialdata import SpatialData

from st_predict._errors import Advice, InvalidValueError
from st_predict._multiscale import image_of_levels
from st_predict._progress import shows_progress
from st_predict._validated import File, Name, check
from st_predict.io._lazy import lazy_level
from st_predict.io._mpp import Mpp
from st_predict.io._pictures import is_picture, read_tiff_mpp
from st_predict.io._regions import check_file
from st_predict.io._slides import open_blocks
from st_predict.io._stored import spool
from st_predict.io._tiff_file import is_tiff

if TYPE_CHECKING:
    from os import PathLike

    from st_predict.io._openslide import OpenSlidePyramid
    from st_predict.io._tiff import TiffPyramid


__all__ = ["read_image", "read_wsi"]


@shows_progress
def read_image(
    path: str | PathLike[str],
    *,
    mpp: float | None = None,
    image_key: str = "he",
    value_range: tuple[float, float] | None = None,
    cache: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """Open an image of any kind: whole-slide image, TIFF, PNG or JPEG.

    Slides and tiled TIFF keep the levels of the file; opening reads at most one tile per level. Pixels outside the scan are
    white. See :func:`open_slide` for the readers.

    Images without tiles (striped TIFF, PNG, JPEG) are decoded once and stored as a pyramid in the cache, where later calls
    find them. JPEG and PNG need memory for the whole image in the first call.

    An orientation tag is applied, as in image viewers, with a warning. RGBA is composited on white.

    Parameters
    ----------
    path
        Path of the image.
    mpp
        Micrometres per pixel of level 0, stored with the image for all later functions. By default from the metadata of the
        slide or TIFF. JPEG and PNG have none.
    image_key
        Name of the image.
    value_range
        Values that become 0 and 255, for images that do not have 8 bits: ``(0, 4095)`` for 12-bit data in a 16-bit file,
        ``(0, 65535)`` for 16-bit data. Floats are 0 to 1 by default. The converted image is stored in the cache.
    cache
        Folder of stored pyramids. By default the folder ``images`` in ``ST_PREDICT_CACHE``, or in the user's cache.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    SpatialData
        One image, 8-bit RGB, in the coordinate system ``"global"`` (pixels) and, if mpp is known, ``"um"``.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    OSError
        If pixels are damaged, or the cache cannot be written.
    ValueError
        If no reader can open the file; if it is not RGB; if its samples do not have 8 bits and ``value_range`` is
        missing or wrong; if ``image_key`` cannot be stored; if mpp is not positive, or, without mpp, if the file states
        no positive number or pixels that are not square.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import tifffile
    >>> import st_predict as stp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "slide.tif"
    ...     tifffile.imwrite(path, np.full((512, 768, 3), 200, np.uint8), tile=(256, 256), photometric="rgb")
    ...     sdata = stp.io.read_image(path, mpp=0.5)
    ...     stp.io.find_mpp(sdata).value
    0.5
    """
    path, folder = Path(check("path", path, File)), check("cache", cache, File | None)
    check("image_key", image_key, Name)
    given = None if mpp is None else Mpp(mpp, "argument").value
    check_file(path)
    if value_range is None and (reader := open_blocks(path)) is not None:
        return _of_slide(reader, image_key, given)
    _check_spoolable(path)
    arrays = spool(path, value_range=value_range, cache=None if folder is None else Path(folder))
    if given is None:
        stated = read_tiff_mpp(path)
        given = None if stated is None else sum(stated.checked()) / 2
    levels = [da.from_zarr(array) for array in arrays]  # type: ignore[no-untyped-call]
    return SpatialData(images={image_key: image_of_levels(levels, mpp=given)})


def read_wsi(path: str | PathLike[str], *, image_key: str = "he", mpp: float | None = None) -> SpatialData:
    """Open a whole-slide image: :func:`read_image` with its defaults.

    Parameters
    ----------
    path
        The file.
    image_key
        Name of the image.
    mpp
        Micrometres per pixel of level 0. By default from the metadata of the file.

    Returns
    -------
    SpatialData
        One image, in the coordinate system ``"global"`` (pixels) and, if mpp is known, ``"um"``.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        In the cases of :func:`read_image`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import tifffile
    >>> import st_predict as stp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "slide.tif"
    ...     tifffile.imwrite(path, np.full((512, 768, 3), 200, np.uint8), tile=(256, 256), photometric="rgb")
    ...     sdata = stp.io.read_wsi(path, mpp=0.5)
    ...     list(sdata.images)
    ['he']
    """
    return read_image(path, image_key=image_key, mpp=mpp)


def _of_slide(reader: TiffPyramid | OpenSlidePyramid, image_key: str, mpp: float | None) -> SpatialData:
    if mpp is None and (of_file := reader.mpp) is not None:
        mpp = sum(of_file) / 2
    levels = [lazy_level(reader, level) for level in range(len(reader.level_shapes))]
    return SpatialData(images={image_key: image_of_levels(levels, mpp=mpp)})


def _check_spoolable(path: Path) -> None:
    if not (is_picture(path) or is_tiff(path)):
        raise InvalidValueError(
            f"{path} is not TIFF, PNG or JPEG, whose values can be scaled.",
            Advice("leave out {}", "value_range"),
            "convert it to one of these",
        )
