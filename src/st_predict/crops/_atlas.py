"""Chunks on a device, and crops gathered from them there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Atlas", "staged"]


class Atlas:
    """Chunks of one level in pages of one size; a table says which page holds which chunk.

    The first page is the outside of the image, so that crops need no padding of their own.

    Parameters
    ----------
    edges
        Of the chunks, along y and x.
    pad_value
        Grey value of what lies outside the image.
    device
        Where the pages are.
    """

    def __init__(
        self, edges: tuple[NDArray[np.int64], NDArray[np.int64]], *, pad_value: int, device: torch.device
    ) -> None:
        self._device = device
        self._n_cols = len(edges[1]) - 1
        self._edges = [torch.from_numpy(edge).to(device) for edge in edges]
        # chunks are counted from 1 here: 0 and the last are what lies before and behind the image
        self._corner = [torch.from_numpy(np.concatenate([[0], edge])).to(device) for edge in edges]
        self._sides = [int(np.diff(edge).max()) for edge in edges]
        self._table = torch.zeros([len(edge) + 1 for edge in edges], dtype=torch.int64, device=device)
        self._pages = torch.full((1, 3, *self._sides), pad_value, dtype=torch.uint8, device=device)
        self._page_of: dict[int, int] = {}
        self._free: list[int] = []

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._page_of

    def add(self, chunk: int, pixels: Tensor) -> None:
        """Copy a chunk, ``(3, height, width)``, to a page."""
        if not self._free:
            self._grow()
        page = self._page_of[chunk] = self._free.pop()
        row, col = divmod(chunk, self._n_cols)
        self._pages[page, :, : pixels.shape[1], : pixels.shape[2]].copy_(pixels, non_blocking=True)
        self._table[row + 1, col + 1] = page

    def drop(self, chunk: int) -> None:
        """Give the page of a chunk to the next one."""
        self._free.append(self._page_of.pop(chunk))

    def cut(self, origins: NDArray[np.int64], size: int) -> Tensor:
        """Gather squares by their left and top ``(x, y)``, ``(n, 2)``: ``(n, 3, size, size)``."""
        corners = torch.from_numpy(origins).to(self._device, non_blocking=True)
        offsets = torch.arange(size, device=self._device)
        (row_NS, y_NS), (col_NS, x_NS) = (self._locate(corners[:, [1 - i]] + offsets, i) for i in (0, 1))
        height, width = self._sides
        page_NSS = self._table[row_NS[:, :, None], col_NS[:, None, :]]
        first_NSS = (page_NSS * (3 * height) + y_NS[:, :, None]) * width + x_NS[:, None, :]
        colour_C11 = torch.arange(3, device=self._device)[:, None, None] * (height * width)
        return self._pages.view(-1)[first_NSS[:, None] + colour_C11]

    def _locate(self, at: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Which row or column of chunks pixels lie in, and where in it."""
        number = torch.bucketize(at, self._edges[axis], right=True)
        return number, (at - self._corner[axis][number]).clamp_(0, self._sides[axis] - 1)

    def _grow(self) -> None:
        n = len(self._pages)
        self._pages = torch.cat([self._pages, torch.empty_like(self._pages)])
        self._free = list(range(2 * n - 1, n - 1, -1))


def staged(pixels: NDArray[np.uint8]) -> Tensor:
    """Copy a chunk to where a GPU can fetch it by itself, while the program goes on."""
    stage = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    stage.numpy()[:] = pixels
    return stage
