"""Lazy levels of a reader of files, and the way back from such a level to its reader."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import dask.array as da
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Edges = tuple[NDArray[np.int64], NDArray[np.int64]]

__all__ = ["ReaderLevel", "lazy_level", "reader_behind"]


class FileReader(Protocol):
    """Parts of a reader of files that are needed here."""

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of each level, finest first."""

    def edges(self, level: int) -> Edges:
        """Edges of blocks along y and x."""

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        """Return ``(height, width, 3)``."""


class ReaderLevel:
    """A level that a reader of files reads, without dask.

    Parameters
    ----------
    reader
        Reader of the file.
    level
        Level of the reader.
    """

    def __init__(self, reader: FileReader, level: int) -> None:
        self._reader, self._level = reader, level
        self.edges: Edges = reader.edges(level)
        self.interleaved = bool(getattr(reader, "interleaved", False))

    def read(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return ``(3, height, width)``."""
        width, height = cols.stop - cols.start, rows.stop - rows.start
        return self._reader.read(cols.start, rows.start, width, height, level=self._level).transpose(2, 0, 1)


def lazy_level(reader: FileReader, level: int) -> da.Array:
    """Make a dask array ``(3, height, width)`` of a level, in the blocks of the reader."""
    chunks = ((3,), *(tuple(np.diff(edges).tolist()) for edges in reader.edges(level)))
    return da.map_blocks(  # type: ignore[no-untyped-call]
        partial(_read_block, reader, level), chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )


def _read_block(reader: FileReader, level: int, *, block_info: Any) -> NDArray[np.uint8]:
    _, (top, bottom), (left, right) = block_info[None]["array-location"]
    return reader.read(left, top, right - left, bottom - top, level=level).transpose(2, 0, 1)


def reader_behind(array: da.Array) -> ReaderLevel | None:
    """Level of the reader that ``array`` shows as it is, if :func:`lazy_level` made it."""
    layers = list(array.dask.layers.values())
    inputs = getattr(layers[0], "indices", None) if len(layers) == 1 else None
    function = inputs[0][0] if inputs else None
    if not isinstance(function, partial) or function.func is not _read_block:
        return None
    reader, level = function.args
    return ReaderLevel(reader, level) if array.shape == (3, *reader.level_shapes[level]) else None
