"""Cell features of an encoder that sees the whole section: HIPT, as in iStar :cite:p:`Zhang2024`.

Tiles are shifted; a cell's features are the means over all shifts that cover it of three parts: its tile's token in the
section, its own token, and its colour. The first two are then averaged over windows of 16 and 4 cells; these even
windows extend one cell further up and left, and cells are mirrored at borders.

Differences from the published code: it divides by the number of all shifts even where fewer cover a cell, sets the last
16 rows and columns to zero, pads sections to a multiple of 4096 pixels before the section-level network, and moves
spots by half a cell down and right.

Shapes: R, C rows and columns of cells; P, Q rows and columns of tiles; D channels of a token and colours; E channels of
the section.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d

from st_predict._files import check_space
from st_predict._locks import owned_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from st_predict._sections._cell_grid import CellGrid
    from st_predict.encoders import CellSpec

    Tiles = Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]

__all__ = ["SectionNetwork", "describe_section", "section_tiles"]

_COLOURS = 3


class SectionNetwork(Protocol):
    """Network for tiles, and for all tiles of a section together."""

    narrow: torch.nn.Linear
    """Layer from tile channels to section channels."""

    def of_section(self, cls_PQD: torch.Tensor) -> torch.Tensor:
        """Return features of every tile in its section, ``(P, Q, E)``, from the tiles' class tokens."""


def section_tiles(spec: CellSpec, grid: CellGrid) -> Iterator[tuple[tuple[int, int], NDArray[np.float64]]]:
    """Yield each shift in cells, down and right, and the centres of its tiles in level-0 pixels, in reading order."""
    starts = [shift // spec.cell for shift in spec.shifts]
    for shift in product(starts, starts):
        n_rows, n_columns = _tiles(grid, shift)
        if n_rows > 0 and n_columns > 0:
            rows, columns = np.indices((n_rows, n_columns)).reshape(2, -1)
            corner = np.stack([columns * grid.n + shift[1], rows * grid.n + shift[0]], axis=1)
            yield shift, np.asarray((corner + grid.n / 2) * grid.width, dtype=np.float64)


def _tiles(grid: CellGrid, shift: tuple[int, int]) -> tuple[int, int]:
    return -(-(grid.shape[0] - shift[0]) // grid.n), -(-(grid.shape[1] - shift[1]) // grid.n)


def describe_section(
    cells: NDArray[np.int64],
    grid: CellGrid,
    *,
    spec: CellSpec,
    network: SectionNetwork,
    read: Callable[[NDArray[np.float64]], Tiles],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Compute the features of some cells of a section, in ascending order of cell numbers.

    Sums over tiles are kept in a temporary file.

    Parameters
    ----------
    cells
        Numbers of the cells.
    grid
        All cells of the section.
    spec, network
        Specification and network of the encoder.
    read
        Function that yields the network's output for tiles with given centres, in any order: index, and ``(n, 1 +
        n_cells, D)``.

    Yields
    ------
    tuple of ndarray and ndarray
        Indices into ``cells``, and their features ``(n, n_features)``.
    """
    n_channels = network.narrow.in_features + _COLOURS
    with owned_folder(Path(tempfile.gettempdir()), "st_predict-cells-") as folder:
        check_space("cells of the section", folder, 4 * n_channels * grid.shape[0] * grid.shape[1])
        sum_RCD = np.lib.format.open_memmap(
            folder / "sum.npy", mode="w+", dtype=np.float32, shape=(*grid.shape, n_channels)
        )
        around = {}
        for shift, centres in section_tiles(spec, grid):
            cls_PQD = _add(sum_RCD, grid, shift, read(centres))
            with torch.inference_mode():
                cls = torch.from_numpy(cls_PQD).to(network.narrow.weight.device)
                around[shift] = network.of_section(cls).cpu().numpy()
        rows, columns = grid.places(cells)
        for band in np.unique(rows // grid.n):
            places = np.flatnonzero(rows // grid.n == band)
            described = _band(sum_RCD, around, grid, int(band), windows=spec.windows)
            yield places, described[rows[places] - band * grid.n, columns[places]]
        del sum_RCD


def _add(sum_RCD: NDArray[np.float32], grid: CellGrid, shift: tuple[int, int], tiles: Tiles) -> NDArray[np.float32]:
    """Add the cell tokens of a shift's tiles to the sums; return the class token of each tile."""
    n_rows, n_columns = _tiles(grid, shift)
    cls_PQD = np.empty((n_rows, n_columns, sum_RCD.shape[2] - _COLOURS), dtype=np.float32)
    for index, maps in tiles:
        for tile, tokens_ND in zip(index, maps, strict=True):
            p, q = divmod(int(tile), n_columns)
            cls_PQD[p, q] = tokens_ND[0, :-_COLOURS]
            top, left = p * grid.n + shift[0], q * grid.n + shift[1]
            inside = sum_RCD[top : top + grid.n, left : left + grid.n]
            inside += tokens_ND[1:].reshape(grid.n, grid.n, -1)[: inside.shape[0], : inside.shape[1]]
    return cls_PQD


def _band(
    sum_RCD: NDArray[np.float32],
    around: dict[tuple[int, int], NDArray[np.float32]],
    grid: CellGrid,
    band: int,
    *,
    windows: tuple[int, int],
) -> NDArray[np.float32]:
    """Return the features of the cells of a row of tiles."""
    rows = np.arange(band * grid.n, min((band + 1) * grid.n, grid.shape[0]))
    wide, narrow = (_mirrored(rows, window, grid.shape[0]) for window in windows)
    around_RCE = _smooth(_around(around, grid, wide), windows[0])
    tokens_RCD = sum_RCD[narrow] / _coverage(around, grid, narrow)
    own_RCD = _smooth(tokens_RCD[..., :-_COLOURS], windows[1])
    colours = tokens_RCD[windows[1] // 2 : windows[1] // 2 + len(rows), :, -_COLOURS:]
    return np.concatenate([around_RCE, own_RCD, colours], axis=2)


def _mirrored(rows: NDArray[np.int64], window: int, n: int) -> NDArray[np.int64]:
    """Return the rows that windows around ``rows`` need, mirrored at the borders."""
    reach = np.arange(rows[0] - window // 2, rows[-1] + window - window // 2)
    folded = reach % (2 * n)
    return np.minimum(folded, 2 * n - 1 - folded)


def _smooth(x_RCD: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Return means over windows; surrounding rows are consumed."""
    before = window // 2
    means = uniform_filter1d(x_RCD, window, axis=0)[before : len(x_RCD) - (window - 1 - before)]
    smooth: NDArray[np.float32] = uniform_filter1d(means, window, axis=1, mode="reflect")
    return smooth


def _around(
    around: dict[tuple[int, int], NDArray[np.float32]], grid: CellGrid, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mean over shifts of the tile features of each cell."""
    columns = np.arange(grid.shape[1])
    total = np.zeros((len(rows), len(columns), next(iter(around.values())).shape[2]), dtype=np.float32)
    for shift, of_tile_PQE in around.items():
        below, right = rows >= shift[0], columns >= shift[1]
        tiles = np.ix_((rows[below] - shift[0]) // grid.n, (columns[right] - shift[1]) // grid.n)
        total[np.ix_(below, right)] += of_tile_PQE[tiles]
    return total / _coverage(around, grid, rows)


def _coverage(shifts: Iterable[tuple[int, int]], grid: CellGrid, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the number of shifts that cover each cell, ``(R, C, 1)``."""
    columns = np.arange(grid.shape[1])
    covered = sum(np.multiply.outer(rows >= shift[0], columns >= shift[1]).astype(np.float32) for shift in shifts)
    return np.asarray(covered, dtype=np.float32)[..., None]
