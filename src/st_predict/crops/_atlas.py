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
        Sides of the chunks, along y and x.
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
        # a pixel is one number of 4 bytes, the last of them unused, so that it is gathered in one piece
        pad = torch.full((1, *self._sides, 4), pad_value, dtype=torch.uint8, device=device)
        self._pages = pad.view(torch.int32).squeeze(-1)
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
        height, width = pixels.shape[1:]
        to_HWC = self._pages[page].view(torch.uint8).view(*self._sides, 4)[:height, :width, :3]
        to_HWC.copy_(pixels.to(self._device, non_blocking=True).permute(1, 2, 0))
        self._table[row + 1, col + 1] = page * self._pages[0].numel()

    def drop(self, chunk: int) -> None:
        """Give the page of a chunk to the next one."""
        self._free.append(self._page_of.pop(chunk))

    def cut(self, origins: NDArray[np.int64], size: int) -> Tensor:
        """Gather squares by their left and top ``(x, y)``, ``(n, 2)``: ``(n, 3, size, size)``."""
        corners = torch.from_numpy(origins).to(self._device, non_blocking=True)
        offsets = torch.arange(size, device=self._device)
        (row_NS, y_NS), (col_NS, x_NS) = (self._locate(corners[:, [1 - i]] + offsets, i) for i in (0, 1))
        place_NSS = (row_NS * self._table.shape[1])[:, :, None] + col_NS[:, None]
        place_NSS = self._table.view(-1)[place_NSS].add_((y_NS * self._sides[1])[:, :, None]).add_(x_NS[:, None])
        pixels_NSS4 = self._pages.view(-1)[place_NSS].view(torch.uint8).view(*place_NSS.shape, 4)
        return pixels_NSS4[..., :3].permute(0, 3, 1, 2).contiguous()

    def _locate(self, at: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Which row or column of chunks pixels lie in, and where in it."""
        number = torch.bucketize(at, self._edges[axis], right=True)
        return number, (at - self._corner[axis][number]).clamp_(0, self._sides[axis] - 1)

    def _grow(self) -> None:
        n = len(self._pages)
        self._pages = torch.cat([self._pages, torch.empty_like(self._pages)])
        self._free = list(range(2 * n - 1, n - 1, -1))


def staged(pixels: NDArray[np.uint8]) -> Tensor:
    """Copy a chunk, ``(3, height, width)``, to where a GPU can fetch it by itself, while the program goes on.

    Colours that lie side by side stay so, as in the pages of an :class:`Atlas`.
    """
    side_by_side = pixels.strides[0] == pixels.itemsize
    stored = pixels.transpose(1, 2, 0) if side_by_side else pixels
    stage = torch.empty(stored.shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    stage.numpy()[:] = stored
    return stage.permute(2, 0, 1) if side_by_side else stage
