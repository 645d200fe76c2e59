"""Where the pixels of one level of an image lie, and how to read the blocks that they are stored in."""

from __future__ import annotations

import math
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numcodecs.abc
import numpy as np
import zarr
from dask.array.core import getter
from zarr.storage import FsspecStore, LocalStore

from st_predict.io._blocks import SharedBlocks, block_keys
from st_predict.io._edges import edges_of, regular_edges
from st_predict.io._lazy import reader_behind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from st_predict.io._edges import Edges
    from st_predict.io._lazy import ReaderLevel

__all__ = ["levels_of"]

LARGE = 32 << 20
"""Pixels times channels of a block from which it is read in pieces."""

PIECE = 512
"""Side of the pieces, in pixels."""

# Codecs whose output says all about how to decode it.
_CODECS = {"BloscCodec": numcodecs.Blosc, "GzipCodec": numcodecs.GZip, "ZstdCodec": numcodecs.Zstd}


class DaskLevel:
    """A level that dask computes.

    Parameters
    ----------
    array
        ``(3, height, width)``.
    blocks
        Computes the blocks of the array, and perhaps of others.
    """

    def __init__(self, array: da.Array, blocks: SharedBlocks) -> None:
        self._array, self._blocks = array, blocks
        self._stored = edges_of(array.chunks[1:])
        self.edges = _edges_to_read(array)

    def read(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return ``(3, height, width)``."""
        block = _block_at(self._stored, rows, cols)
        if block is not None and len(self._array.chunks[0]) == 1:
            # readers run in threads already; dask's own pool would only be in the way
            return np.asarray(self._blocks.get((self._array.name, 0, *block)))
        region = np.empty((self._array.shape[0], rows.stop - rows.start, cols.stop - cols.start), np.uint8)
        first = np.cumsum([0, *self._array.chunks[0]])
        for row in _blocks_in(self._stored[0], rows):
            for col in _blocks_in(self._stored[1], cols):
                for i, channels in enumerate(map(slice, first[:-1], first[1:])):
                    pixels = self._blocks.get((self._array.name, i, row, col))
                    _copy_overlap(
                        pixels, region[channels], edges=self._stored, block=(row, col), corner=(rows.start, cols.start)
                    )
        return region


class MemoryLevel:
    """A level whose blocks lie in memory: reading a block copies nothing.

    Parameters
    ----------
    array
        ``(3, height, width)``.
    """

    def __init__(self, array: da.Array) -> None:
        self._array = array
        self.edges = edges_of(array.chunks[1:])
        self.interleaved = all(block.strides[0] < min(block.strides[1:]) for block in self._graph.values())

    def read(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return ``(3, height, width)``."""
        block = _block_at(self.edges, rows, cols)
        if block is None:
            return np.asarray(self._array[:, rows, cols].compute(scheduler="synchronous"))
        return self._graph[self._array.name, 0, *block]

    @cached_property
    def _graph(self) -> dict[Any, Any]:
        return dict(self._array.dask)


class ZarrLevel:
    """A level of a zarr array; blocks in files are read and decoded without zarr, in a third of the time.

    Parameters
    ----------
    array
        ``(3, height, width)``, uint8.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        block: Sequence[int] = array.chunks[1:]
        if array.shards:  # not as a whole, as they may be large: some chunks of them
            block = [chunk * math.ceil(PIECE / chunk) for chunk in block]
        self.edges = regular_edges(array.shape[1:], block)

    def read(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return ``(3, height, width)``."""
        if self._files is None:
            return np.asarray(self._array[:, rows, cols])
        block = _block_at(self.edges, rows, cols)
        if block is not None:
            return self._block(block)[:, : rows.stop - rows.start, : cols.stop - cols.start]
        region = np.empty((self._array.shape[0], rows.stop - rows.start, cols.stop - cols.start), np.uint8)
        for row in _blocks_in(self.edges[0], rows):
            for col in _blocks_in(self.edges[1], cols):
                _copy_overlap(
                    self._block((row, col)), region, edges=self.edges, block=(row, col), corner=(rows.start, cols.start)
                )
        return region

    def _block(self, block: tuple[int, int]) -> NDArray[np.uint8]:
        assert self._files is not None  # else zarr reads
        folder, codec = self._files
        return self._decode(folder / self._array.metadata.encode_chunk_key((0, *block)), codec)

    @cached_property
    def _files(self) -> tuple[Path, Any] | None:
        """Folder of the blocks and their codec, if each block is a file that one known codec wrote."""
        array = self._array
        plain = not array.filters and array.shards is None and array.order == "C" and array.chunks[0] == array.shape[0]
        folder = _folder(array.store)
        if not plain or folder is None or len(array.compressors) > 1:
            return None
        codec = array.compressors[0] if array.compressors else None
        if codec is not None and not isinstance(codec, numcodecs.abc.Codec):
            if type(codec).__name__ not in _CODECS:
                return None
            codec = _CODECS[type(codec).__name__]()
        return folder / array.path, codec

    def _decode(self, path: Path, codec: Any) -> NDArray[np.uint8]:
        shape = self._array.chunks
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # a block that was never written
            return np.full(shape, self._array.fill_value or 0, np.uint8)
        if isinstance(codec, numcodecs.Blosc) and int.from_bytes(data[12:16], "little") != len(data):
            # Blosc reads on behind the end
            raise OSError(f"{str(path)!r} is damaged: it has {len(data)} bytes, and its header says another number")
        try:
            pixels = np.frombuffer(data if codec is None else codec.decode(data), np.uint8)
            return pixels.reshape(shape)
        except (EOFError, RuntimeError, ValueError, zlib.error) as error:
            raise OSError(f"{str(path)!r} is damaged: {error}") from error


def _folder(store: Any) -> Path | None:
    """Folder of a store on a local disk."""
    if isinstance(store, LocalStore):
        return Path(store.root)
    if isinstance(store, FsspecStore) and "file" in store.fs.protocol:
        return Path(store.path)
    return None


def levels_of(arrays: Sequence[da.Array], name: str) -> list[DaskLevel | MemoryLevel | ReaderLevel | ZarrLevel]:
    """Take the shortest way to the pixels of each level.

    Parameters
    ----------
    arrays
        ``(3, height, width)`` each. Results that several levels need are computed once.
    name
        Name of the image, for messages.
    """
    known = [reader_behind(array) or _in_memory(array) or _zarr_behind(array) for array in arrays]
    lazy = [array for array, level in zip(arrays, known, strict=True) if level is None]
    # what other levels are computed from is not read a second time beside dask
    needed = {layer for array in lazy for layer in array.dask.layers}
    computed = [
        array
        for array, level in zip(arrays, known, strict=True)
        if level is None or (isinstance(level, ZarrLevel) and array.name in needed)
    ]
    held = {key for array in computed if _is_large(array) for key in block_keys(array)}
    blocks = SharedBlocks(computed, name=name, held=held)
    names = {array.name for array in computed}
    return [
        DaskLevel(array, blocks) if level is None or array.name in names else level
        for array, level in zip(arrays, known, strict=True)
    ]


def _is_large(array: da.Array) -> bool:
    """Whether blocks are too large to be held as a whole while crops need a part of them."""
    return math.prod(array.chunksize) > LARGE


def _edges_to_read(array: da.Array) -> Edges:
    """Edges of the blocks; large ones are cut in pieces."""
    if not _is_large(array):
        return edges_of(array.chunks[1:])
    return edges_of([[piece for length in lengths for piece in _pieces(length)] for lengths in array.chunks[1:]])


def _pieces(length: int) -> list[int]:
    return [min(PIECE, length - start) for start in range(0, length, PIECE)]


def _in_memory(array: da.Array) -> MemoryLevel | None:
    if len(array.dask.layers) > 1 or len(array.chunks[0]) > 1:
        return None
    return MemoryLevel(array) if all(isinstance(block, np.ndarray) for block in array.dask.values()) else None


def _zarr_behind(array: da.Array) -> ZarrLevel | None:
    """The zarr array that ``array`` shows as it is: nothing but dask's plain getter stands between them."""
    layers = list(array.dask.layers.values())
    reads = [layer for layer in layers if getattr(getattr(layer, "task", None), "func", None) is getter]
    if len(layers) != 2 or len(reads) != 1:
        return None
    sources = [value for layer in layers if layer is not reads[0] for value in dict(layer).values()]
    if len(sources) != 1 or not isinstance(sources[0], zarr.Array):
        return None
    source = sources[0]
    return ZarrLevel(source) if source.shape == array.shape and source.dtype == array.dtype == np.uint8 else None


def _copy_overlap(
    pixels: NDArray[np.uint8],
    region: NDArray[np.uint8],
    *,
    edges: Edges,
    block: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    """Copy what a block has in common with a region.

    Parameters
    ----------
    pixels
        ``(channels, height, width)`` of the block, or more.
    region
        ``(channels, height, width)``, written to.
    edges, block
        Edges of all blocks along y and x, and row and column of this one.
    corner
        Top and left of the region.
    """
    (y, bottom), (x, right) = ((int(edge[i]), int(edge[i + 1])) for edge, i in zip(edges, block, strict=True))
    top, left = corner
    rows = slice(max(y, top), min(bottom, top + region.shape[1]))
    cols = slice(max(x, left), min(right, left + region.shape[2]))
    part = pixels[:, rows.start - y : rows.stop - y, cols.start - x : cols.stop - x]
    region[:, rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = part


def _blocks_in(edge: NDArray[np.int64], part: slice) -> range:
    """Numbers of the blocks along one axis that a part of it overlaps."""
    if part.start >= part.stop:
        return range(0)
    return range(int(np.searchsorted(edge, part.start, "right")) - 1, int(np.searchsorted(edge, part.stop, "left")))


def _block_at(edges: Edges, rows: slice, cols: slice) -> tuple[int, int] | None:
    """Row and column of the block that is exactly this region."""
    at = []
    for edge, part in zip(edges, (rows, cols), strict=True):
        i = int(np.searchsorted(edge, part.start))
        if i + 1 >= len(edge) or edge[i] != part.start or edge[i + 1] != part.stop:
            return None
        at.append(i)
    return at[0], at[1]
