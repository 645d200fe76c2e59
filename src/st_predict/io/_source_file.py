"""The TIFF behind a task of a lazy image, read in parts: libraries that make lazy images decode it as a whole."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from dask.core import get as compute
from dask.core import get_dependencies

from st_predict._errors import InvalidValueError
from st_predict.io._regions import FAILURES
from st_predict.io._tiff_file import is_tiff, open_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Key = Any
    Graph = dict[Key, Any]
    Part = tuple[int, int, NDArray[np.uint8]]

__all__ = ["SourceFile", "source_file"]

PART = 16 << 20
"""Bytes of an uncompressed file that are read at a time."""

BUFFER = 16 << 20
"""Encoded bytes that are read at a time."""

IMAGE_LENGTH, DESCRIPTION, STRIPS, TILES = 257, 270, (273, 279), (324, 325)
"""Tags: number of rows, description, offsets and byte counts."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A TIFF that one task decodes as a whole.

    Parameters
    ----------
    path
        The file.
    shape
        ``(height, width, 3)``, uint8.
    task
        Key of the task.
    name
        Key of the array with the path, the task's only input.
    """

    path: Path
    shape: tuple[int, ...]
    task: Key
    name: Key

    def parts(self) -> Iterator[Part]:
        """Decode the file part by part: yield top, left and pixels ``(height, width, 3)``."""
        with open_tiff(self.path) as file:
            page = file.pages.first
            if page.is_memmappable:
                pixels = page.asarray(out="memmap")
                n_rows = _rows_of_part(page)
                for top in range(0, self.shape[0], n_rows):
                    yield top, 0, pixels[top : top + n_rows]
                return
            for part, (_, _, top, left, _), (_, height, width, _) in page.segments(buffersize=BUFFER):
                size = min(height, self.shape[0] - top), min(width, self.shape[1] - left)
                if part is None:  # never written
                    yield top, left, np.full((*size, 3), page.nodata, np.uint8)
                else:
                    yield top, left, part[0, : size[0], : size[1]]

    def agrees(self, graph: Graph, pixels: NDArray[np.uint8]) -> bool:
        """Whether the task gives these pixels, judged by some rows: it is run on a file that has only them.

        Parameters
        ----------
        graph
            Holds the task.
        pixels
            ``(height, width, 3)``, as :meth:`parts` gave them.
        """
        folder = Path(tempfile.mkdtemp(prefix="st_predict-"))
        try:
            excerpt = folder / self.path.name
            top, n_rows = _write_excerpt(self.path, excerpt)
            own = {self.task: graph[self.task], self.name: np.array([str(excerpt)])}
            (found,) = compute(own, [self.task])
            found = np.asarray(found)
            return bool(np.array_equal(found.reshape(found.shape[-3:]), pixels[top : top + n_rows]))
        except FAILURES as error:
            logger.debug("Rows of %s could not be compared: %s", self.path, error)
            return False
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def source_file(graph: Graph, *, larger_than: int) -> SourceFile | None:
    """Find a task that decodes a TIFF as a whole whose parts can be decoded one by one.

    Parameters
    ----------
    graph
        Tasks by key.
    larger_than
        Bytes of pixels above which it is worth it.

    Returns
    -------
    SourceFile or None
        The file, or ``None`` if there is no such task, or more than one.
    """
    names = {key: path for key, value in graph.items() if (path := _path_in(value)) is not None}
    tasks = [(key, needs) for key in graph if (needs := get_dependencies(graph, key)) & names.keys()]
    if len(names) != 1 or len(tasks) != 1 or len(tasks[0][1]) != 1:
        return None
    ((name, path),) = names.items()
    shape, has_parts = _layout(path)
    if math.prod(shape) <= larger_than:
        return None
    if not has_parts:
        logger.info("%s is decoded as a whole, as it cannot be decoded in parts.", path)
        return None
    return SourceFile(path=path, shape=shape, task=tasks[0][0], name=name)


def _path_in(value: Any) -> Path | None:
    """The TIFF that an array of a single text names."""
    value = getattr(value, "value", value)
    if not isinstance(value, np.ndarray) or value.shape != (1,) or not isinstance(value[0], str):
        return None
    path = Path(value[0])
    try:
        return path if path.is_file() and is_tiff(path) else None
    except OSError:
        return None


def _layout(path: Path) -> tuple[tuple[int, ...], bool]:
    """Shape of the pixels of a TIFF, and whether they are 8-bit RGB that can be decoded in parts."""
    try:
        with open_tiff(path) as file:
            page = file.pages.first
            plain = page.dtype == np.uint8 and page.ndim == 3 and page.shape[2] == 3 and page.planarconfig == 1
            plain &= file.series[0].keyframe.index == 0
            return page.shape, plain and (page.is_memmappable or len(page.dataoffsets) > 1)
    except InvalidValueError:
        return (0,), False


def _write_excerpt(path: Path, copy: Path) -> tuple[int, int]:
    """Write a TIFF with all tags of another one, and a few of its rows; return the first of them and their number.

    Everything is at its old place, so that no offset changes; the rest is a hole.
    """
    with open_tiff(path) as file:
        page = file.pages.first
        places, n_rows, top = _telling_rows(page)
        form = file.tiff
        with path.open("rb") as source, copy.open("wb") as target:
            source.seek(page.offset)
            n_tags = int.from_bytes(source.read(form.tagnosize), "little" if form.byteorder == "<" else "big")
            parts = [(0, 16), (page.offset, form.tagnosize + n_tags * form.tagsize)]  # and no next page
            parts += [(tag.valueoffset, tag.valuebytecount) for tag in page.tags]
            for offset, n_bytes in [*parts, *places]:
                source.seek(offset)
                target.seek(offset)
                target.write(source.read(n_bytes))
            target.truncate(path.stat().st_size)
        codes = TILES if page.is_tiled else STRIPS
    with tifffile.TiffFile(copy, mode="r+") as file:
        tags = file.pages.first.tags
        for code, values in zip(codes, zip(*places, strict=True), strict=True):
            tags[code].overwrite(values if len(values) > 1 else values[0])
        tags[IMAGE_LENGTH].overwrite(n_rows)
        if file.is_shaped or file.is_ome:  # the description states the shape
            tags[DESCRIPTION].overwrite("")
    return top, n_rows


def _telling_rows(page: Any) -> tuple[list[tuple[int, int]], int, int]:
    """Places of the encoded bytes of some rows, as ``(offset, n_bytes)``, the number of rows, and the first of them.

    Among parts of the same number of rows, the ones with the most bytes show more than empty ones.
    """
    height, width = page.shape[:2]
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    if len(offsets) == 1:  # not compressed
        n_rows = min(_rows_of_part(page), height)
        row = (height - n_rows) // 2
        return [(int(offsets[0]) + row * width * 3, n_rows * width * 3)], n_rows, row
    n_rows = page.tilelength if page.is_tiled else page.rowsperstrip
    across = math.ceil(width / page.tilewidth) if page.is_tiled else 1
    n_whole = max(1, height // n_rows)
    row = int(counts.reshape(-1, across).sum(axis=1)[:n_whole].argmax())
    which = slice(row * across, (row + 1) * across)
    return list(zip(offsets[which].tolist(), counts[which].tolist(), strict=True)), n_rows, row * n_rows


def _rows_of_part(page: Any) -> int:
    return max(1, PART // (page.shape[1] * 3))
