"""Blocks of whole tiles that a slide is read in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from st_predict.io._edges import regular_edges

if TYPE_CHECKING:
    from st_predict.io._edges import Edges

__all__ = ["LARGEST_TILE", "block_edges"]

CHUNK = 512
"""Side of a block in pixels, before it is made a whole number of tiles of the file."""

LARGEST_TILE = 4096
"""Files that are wider in one tile are stored in strips, which are not blocks to read by."""


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
