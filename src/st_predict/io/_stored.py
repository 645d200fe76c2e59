"""Pictures without tiles, stored once as a pyramid that blocks can be read from."""

from __future__ import annotations

import logging
import shutil
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import cache_dir, make_folder, sha256, sha256_of_file, whole
from st_predict._multiscale import halve
from st_predict._progress import track
from st_predict.io._pictures import read_picture
from st_predict.io._rgb8 import check_range, rgb8

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from st_predict.io._rgb8 import Range

__all__ = ["spool"]

logger = logging.getLogger(__name__)

CHUNK = 512
WIDEST = 16 * CHUNK
"""Columns that are converted at a time."""

COARSEST = 1024
"""Levels are added until the longer side is not longer than this."""

FORMAT = "1"
"""Part of the key in the cache; changes when the stored pixels change."""


def spool(path: Path, *, value_range: Range | None, cache: Path | None) -> list[zarr.Array[Any]]:
    """Store a picture as a pyramid of zarr arrays, unless it is in the cache.

    Each level has half the sides of the one before, by means of 2 x 2 pixels. The key in the cache is the content of
    the file, so a changed file is stored again.

    Parameters
    ----------
    path
        JPEG, PNG or TIFF.
    value_range
        Values that become 0 and 255; see :func:`to_rgb8`.
    cache
        Folder of the cache; ``None`` for the folder ``images`` in the cache of the package.

    Returns
    -------
    list of Array
        Levels ``(3, height, width)``, uint8, finest first.

    Raises
    ------
    ValueError
        If the picture cannot be read or converted.
    OSError
        If the cache has no room for it or cannot be written.
    """
    folder = cache_dir() / "images" if cache is None else cache
    key = sha256(FORMAT, sha256_of_file(path), repr(value_range))[:24]
    store = folder / f"{key}.zarr"
    if not store.exists():
        make_folder(folder)
        try:
            with whole(store) as fresh:
                _write(path, fresh, value_range=value_range)
        except OSError:
            if not store.exists():  # else another process was faster
                raise
    n_levels = sum(1 for _ in store.iterdir())
    return [zarr.open_array(store / str(level), mode="r") for level in range(n_levels)]


def _write(path: Path, store: Path, *, value_range: Range | None) -> None:
    with tempfile.TemporaryDirectory(dir=store.parent) as scratch:
        pixels = read_picture(path, scratch=Path(scratch))
        value_range = check_range(pixels.dtype, value_range, what=str(path))
        height, width = pixels.shape[:2]
        if min(height, width) == 0:
            raise InvalidValueError(f"{path} has no pixels: {width} x {height}.")
        _check_space(path, store.parent, needed=height * width * 4)
        logger.info("Storing %s (%d x %d px) as a pyramid in %s, once.", path, width, height, store.parent.parent)
        levels = [_level(store, 0, (height, width))]
        windows = list(_windows(height, width))
        for rows, cols in track(windows, f"Storing {path.name}", len(windows), unit="part"):
            planes = np.moveaxis(pixels[rows, cols], -1, 0)
            levels[0][:, rows, cols] = rgb8(planes, value_range=value_range, what=str(path))
    while max(levels[-1].shape[1:]) > COARSEST and min(levels[-1].shape[1:]) > 1:
        levels.append(_halved(levels[-1], store, len(levels)))


def _level(store: Path, number: int, shape: tuple[int, int]) -> zarr.Array[Any]:
    return zarr.create_array(store / str(number), shape=(3, *shape), chunks=(3, CHUNK, CHUNK), dtype=np.uint8)


def _halved(finer: zarr.Array[Any], store: Path, number: int) -> zarr.Array[Any]:
    height, width = (side // 2 for side in finer.shape[1:])
    level = _level(store, number, (height, width))
    for rows, cols in _windows(height, width):
        window: NDArray[np.uint8] = np.asarray(finer[:, 2 * rows.start : 2 * rows.stop, 2 * cols.start : 2 * cols.stop])
        level[:, rows, cols] = np.moveaxis(halve(np.moveaxis(window, 0, -1)), -1, 0)
    return level


def _windows(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of windows of whole chunks, of which each fits into memory however wide the image is."""
    for top, left in product(range(0, height, CHUNK), range(0, width, WIDEST)):
        yield slice(top, min(top + CHUNK, height)), slice(left, min(left + WIDEST, width))


def _check_space(path: Path, folder: Path, *, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidValueError(
            f"{path} is not tiled and needs up to {needed / 1e9:.1f} GB as a pyramid, and {folder.parent} has "
            f"{free / 1e9:.1f} GB free.",
            Advice("name a folder with more room with {}", "cache"),
            "set ST_PREDICT_CACHE to such a folder",
        )
