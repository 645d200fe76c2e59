"""Edges of the blocks that an image is read in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LARGEST_TILE", "Edges", "block_edges", "edges_of", "regular_edges"]

Edges = tuple["NDArray[np.int64]", "NDArray[np.int64]"]

CHUNK = 512
"""Side of a block in pixels, before it is made a whole number of tiles of the file."""

LARGEST_TILE = 4096
"""Files that are wider in one tile are stored in strips, which are not blocks to read by."""


def edges_of(chunks: Sequence[Sequence[int]]) -> Edges:
    """Where blocks begin and end along y and x, from the lengths of the blocks."""
    y, x = (np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) for lengths in chunks)
    return y, x


def regular_edges(shape: Sequence[int], block: Sequence[int]) -> Edges:
    """Where blocks of one size begin and end along y and x; the last may be smaller."""
    y, x = (np.append(np.arange(0, side, step), side) for side, step in zip(shape, block, strict=True))
    return y, x


def block_edges(shape: tuple[int, int], tile: tuple[int, int]) -> Edges:
    """Edges of blocks of whole tiles, about 512 px apart.

    Parameters
    ----------
    shape
        ``(height, width)`` of the level.
    tile
        ``(height, width)`` of a tile of the file.
    """
    return regular_edges(shape, [_block(*sides) for sides in zip(shape, tile, strict=True)])


def _block(side: int, tile: int) -> int:
    if tile > LARGEST_TILE:
        return min(side, CHUNK)
    return min(side, tile * math.ceil(CHUNK / tile))
