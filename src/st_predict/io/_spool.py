"""Large arrays in a temporary folder, read back as views of files."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from st_predict._files import check_space
from st_predict._progress import track

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["Spool"]

LOGGED = 100_000_000
"""Bytes whose storing is logged first; then again whenever they have doubled."""

MAPPED = 32 << 20
"""Bytes that are written before a file is mapped anew."""

logger = logging.getLogger(__name__)


class StoredView(NamedTuple):
    """Place of an array in a file."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Spool:
    """Arrays by key, in files that are removed with this object, at the latest when the program ends.

    Parameters
    ----------
    name
        Name of the image, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._views: dict[Any, StoredView] = {}
        self._n_files, self._n_bytes, self._next = 0, 0, LOGGED

    def put(self, key: Any, value: Any) -> bool:
        """Store an array; return whether it is one, and can be stored.

        Raises
        ------
        OSError
            If there is no room on the disk.
        """
        if key in self._views:
            return True
        if (view := self._view_of(value)) is not None:
            self._views[key] = view
            return True
        if type(value) is not np.ndarray or value.dtype.hasobject:
            return False
        # as it lies in memory, so that neighbouring pixels stay neighbours
        axes = np.argsort([-abs(stride) for stride in value.strides], kind="stable")
        file = self._new_file(value.nbytes)
        np.save(file, value.transpose(axes), allow_pickle=False)
        self.put(key, np.load(file, mmap_mode="r").transpose(np.argsort(axes)))
        return True

    def put_parts(self, key: Any, shape: tuple[int, ...], parts: Iterable[tuple[int, int, NDArray[np.uint8]]]) -> None:
        """Store an array that never is in memory as a whole.

        Parameters
        ----------
        key
            Key of the array.
        shape
            ``(height, width, 3)``, uint8.
        parts
            Top, left and pixels of each part.

        Raises
        ------
        OSError
            If there is no room on the disk, or a part cannot be read.
        """
        file = self._new_file(math.prod(shape))
        np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        n_bytes, stored = 0, np.load(file, mmap_mode="r+")
        done = track(parts, f"Decoding image {self.name}", math.prod(shape), unit="B", size=lambda part: part[2].nbytes)
        for top, left, pixels in done:
            if n_bytes > MAPPED:  # written pages are counted as memory until they are unmapped
                n_bytes, stored = 0, np.load(file, mmap_mode="r+")
            stored[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            n_bytes += pixels.nbytes
        self.put(key, np.load(file, mmap_mode="r"))

    def drop(self, key: Any) -> None:
        """Remove an array and its file, of which there must be no other view."""
        self._views.pop(key).file.unlink()

    def get(self, key: Any) -> Any:
        """Return a view of a file, or ``None``. Each is mapped anew, so that pages are freed with the view."""
        view = self._views.get(key)
        if view is None:
            return None
        pages = np.memmap(view.file, mode="r", dtype=np.uint8)
        return np.ndarray(view.shape, view.dtype, buffer=pages, offset=view.offset, strides=view.strides)

    def _view_of(self, value: Any) -> StoredView | None:
        """Where an array lies in a file of this spool, if it does."""
        root = value
        while isinstance(getattr(root, "base", None), np.ndarray):
            root = root.base
        if not isinstance(root, np.memmap) or root.filename is None or Path(root.filename).parent != self._folder:
            return None
        offset = root.offset + value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        return StoredView(Path(root.filename), value.dtype, value.shape, value.strides, offset)

    def _new_file(self, n_bytes: int) -> Path:
        check_space(f"pixels of image {self.name!r}", tempfile.gettempdir(), n_bytes)
        self._log(n_bytes)
        self._n_files += 1
        return self._folder / f"{self._n_files}.npy"

    def _log(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        if self._n_bytes >= self._next:
            logger.info(
                "Image %r: %.1f GB of pixels are kept in %s for a while.", self.name, self._n_bytes / 1e9, self._folder
            )
            self._next = 2 * self._n_bytes

    @cached_property
    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="st_predict-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder
