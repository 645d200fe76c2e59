"""Large arrays in a temporary folder, read back as views of files."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from st_predict._files import check_space

__all__ = ["Spool"]

LOGGED = 100_000_000
"""Bytes whose storing is logged first; then again whenever they have doubled."""

logger = logging.getLogger(__name__)


class Spool:
    """Arrays by key, in files that are removed with this object, at the latest when the program ends.

    Parameters
    ----------
    name
        Name of the image, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._axes: dict[Any, tuple[int, ...]] = {}
        self._files: dict[Any, Path] = {}
        self._n_bytes, self._next = 0, LOGGED

    def put(self, key: Any, value: Any) -> bool:
        """Store an array; return whether it is one, and can be stored.

        Raises
        ------
        OSError
            If there is no room on the disk.
        """
        if key in self._files:
            return True
        if type(value) is not np.ndarray or value.dtype.hasobject:
            return False
        check_space(f"pixels of image {self.name!r}", tempfile.gettempdir(), value.nbytes)
        self._log(value.nbytes)
        # as it lies in memory, so that neighbouring pixels stay neighbours
        axes = np.argsort([-abs(stride) for stride in value.strides], kind="stable")
        file = self._folder / f"{len(self._files)}.npy"
        np.save(file, value.transpose(axes), allow_pickle=False)
        self._axes[key], self._files[key] = tuple(np.argsort(axes).tolist()), file
        return True

    def get(self, key: Any) -> Any:
        """Return a view of a file, or ``None``. Each is mapped anew, so that pages are freed with the view."""
        if key not in self._files:
            return None
        return np.load(self._files[key], mmap_mode="r").transpose(self._axes[key])

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
