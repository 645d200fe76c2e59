"""Overlaps of squares with the chunks of an image: the pieces that a square is put together from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from st_predict.crops._boxes import Boxes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from st_predict.crops._boxes import Ints, Selection

__all__ = ["ChunkLayout", "Pieces"]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of squares, each from one chunk; fields are int32 arrays ``(n_pieces,)``, 40 bytes per piece.

    Parameters
    ----------
    spot
        Number of the square, in ascending order.
    chunk
        Number of the chunk, in ascending order per square.
    in_square, in_chunk
        Boxes of the pixels, relative to the square and to the chunk; both have the same size.
    """

    spot: Ints
    chunk: Ints
    in_square: Boxes
    in_chunk: Boxes

    @classmethod
    def cat(cls, parts: Sequence[Pieces]) -> Pieces:
        """Concatenate pieces."""
        return cls(
            np.concatenate([part.spot for part in parts]),
            np.concatenate([part.chunk for part in parts]),
            Boxes.cat([part.in_square for part in parts]),
            Boxes.cat([part.in_chunk for part in parts]),
        )

    def __getitem__(self, which: slice) -> Pieces:
        return Pieces(self.spot[which], self.chunk[which], self.in_square[which], self.in_chunk[which])

    def __iter__(self) -> Iterator[tuple[int, int, Selection, Selection]]:
        """Yield number of the square, number of the chunk, index in the square and index in the chunk."""
        selections = self.in_square.selections(), self.in_chunk.selections()
        return zip(self.spot.tolist(), self.chunk.tolist(), *selections, strict=True)


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """Positions of the chunks of one level; chunks are numbered row by row.

    Parameters
    ----------
    y, x
        Edges between chunks, ascending from 0 to the height and to the width of the level.
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]

    @property
    def image(self) -> Boxes:
        """The whole level, as a single box."""
        return Boxes(self.y[:1], self.x[:1], self.y[-1:], self.x[-1:])

    def boxes(self, chunks: Ints) -> Boxes:
        """Return the pixels of chunks."""
        row, col = np.divmod(chunks, len(self.x) - 1)
        return Boxes(self.y[row], self.x[col], self.y[row + 1], self.x[col + 1])

    def corner_and_size(self, chunk: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of a chunk: in plain integers, as this is asked for each by itself."""
        row, col = divmod(chunk, len(self.x) - 1)
        top, bottom, left, right = map(int, (self.y[row], self.y[row + 1], self.x[col], self.x[col + 1]))
        return left, top, right - left, bottom - top

    def cut(self, squares: Boxes) -> Pieces:
        """Cut squares along the edges of chunks; parts outside the image give no pieces."""
        inside = squares.intersect(self.image)
        spot, chunk = self._overlaps(inside)
        chunks = self.boxes(chunk)
        overlap = inside[spot].intersect(chunks)
        return Pieces(
            spot.astype(np.int32),
            chunk.astype(np.int32),
            in_square=overlap.relative_to(squares[spot]).astype(np.int32),
            in_chunk=overlap.relative_to(chunks).astype(np.int32),
        )

    def _overlaps(self, boxes: Boxes) -> tuple[Ints, Ints]:
        """Return all overlapping pairs of a box and a chunk, by number; sorted by box, then by chunk."""
        first_row, n_rows = _span(self.y, boxes.top, boxes.bottom)
        first_col, n_cols = _span(self.x, boxes.left, boxes.right)
        n_chunks = np.where(boxes.empty, 0, n_rows * n_cols)
        box = np.repeat(np.arange(len(n_chunks)), n_chunks)
        first_pair = np.cumsum(n_chunks) - n_chunks
        row, col = np.divmod(np.arange(len(box)) - first_pair[box], n_cols[box])
        return box, (first_row[box] + row) * (len(self.x) - 1) + first_col[box] + col


def _span(edges: NDArray[np.int64], start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """Return the first interval between edges that ``[start, stop)`` overlaps, and the number of intervals."""
    first = np.searchsorted(edges, start, side="right") - 1
    return first, np.searchsorted(edges, stop, side="left") - first
