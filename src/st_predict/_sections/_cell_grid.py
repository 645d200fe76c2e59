"""Square cells of an image, their positions, and the cells of each spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from st_predict.crops import plan_crops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from st_predict.encoders import CellEncoder
    from st_predict.io import PyramidReader
    from st_predict.specs import CropSpec

__all__ = ["CellGrid", "cells_of_spots"]

_SPOTS = 4096  # spots per step


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGrid:
    """Cells of an image, from its corner, numbered tile by tile and in reading order within a tile.

    Parameters
    ----------
    width
        Side of a cell in level-0 pixels.
    shape
        Number of rows and columns of cells with their centre in the image.
    n
        Number of cells along a side of a tile.
    """

    width: float
    shape: tuple[int, int]
    n: int

    @classmethod
    def of(cls, reader: PyramidReader, encoder: CellEncoder, crop: CropSpec, *, mpp: float | None) -> CellGrid:
        """Make the grid of an encoder's cells on an image, for tiles cut by ``crop``."""
        (plan,) = plan_crops(np.zeros((1, 2)), crop, downsamples=reader.downsamples, mpp=mpp)
        width = encoder.cells.cell * plan.read_size / plan.size * reader.downsamples[plan.level]
        rows, columns = (max(1, int(np.ceil(side / width + 0.5)) - 1) for side in reader.level_shapes[0])
        return cls(width=width, shape=(rows, columns), n=encoder.cells.n_cells)

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.shape[0] // self.n), -(-self.shape[1] // self.n)

    def numbers(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of cells."""
        tile = rows // self.n * self.tiles[1] + columns // self.n
        return tile * self.n**2 + rows % self.n * self.n + columns % self.n

    def places(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of cells."""
        tile, inside = np.divmod(cells, self.n**2)
        return tuple(  # type: ignore[return-value]
            outer * self.n + inner
            for outer, inner in zip(np.divmod(tile, self.tiles[1]), np.divmod(inside, self.n), strict=True)
        )

    def centres(self, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``(n_cells, 2)``: x and y in level-0 pixels."""
        return (np.stack(self.places(cells)[::-1], axis=1) + 0.5) * self.width

    def tile_centres(self, tiles: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``(n_tiles, 2)``: x and y in level-0 pixels."""
        row, column = np.divmod(tiles, self.tiles[1])
        return (np.stack([column, row], axis=1) + 0.5) * self.n * self.width

    def bands(self) -> Iterator[NDArray[np.int64]]:
        """Yield the cell numbers of each row of tiles, in ascending order."""
        size = self.tiles[1] * self.n**2
        for start in range(0, self.tiles[0] * size, size):
            cells = np.arange(start, start + size)
            rows, columns = self.places(cells)
            yield cells[(rows < self.shape[0]) & (columns < self.shape[1])]


def cells_of_spots(grid: CellGrid, xy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find the cells with their centre in a spot's disk; the nearest cell if there is none.

    Parameters
    ----------
    grid
        Grid of cells.
    xy, radius
        ``(n_spots, 2)`` and ``(n_spots,)``: disks in level-0 pixels.

    Returns
    -------
    ndarray
        ``(n_spots, n_cells)``: cell numbers, padded with -1.
    """
    parts = [_in_disks(grid, xy[i : i + _SPOTS], radius[i : i + _SPOTS]) for i in range(0, len(xy), _SPOTS)]
    most = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(p, ((0, 0), (0, most - p.shape[1])), constant_values=-1) for p in parts])


def _in_disks(grid: CellGrid, xy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.int64]:
    place = xy[:, ::-1] / grid.width - 0.5  # row and column; whole numbers at cell centres
    nearest = np.clip(np.rint(place), 0, np.array(grid.shape) - 1).astype(np.int64)
    reach = int(np.ceil(radius.max() / grid.width))
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    cells = nearest[:, None] + steps
    inside = np.square(cells - place[:, None]).sum(axis=2) <= np.square(radius / grid.width)[:, None]
    inside &= ((cells >= 0) & (cells < grid.shape)).all(axis=2)
    inside[:, len(steps) // 2] |= ~inside.any(axis=1)
    spot, step = np.nonzero(inside)
    n = inside.sum(axis=1)
    found = np.full((len(xy), n.max()), -1)
    found[spot, np.arange(len(spot)) - np.repeat(np.cumsum(n) - n, n)] = grid.numbers(*cells[spot, step].T)
    return found
