"""Layers and checks shared by several networks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn import functional as F

from st_predict._errors import InvalidValueError
from st_predict.models._checks import check_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from st_predict.crops import Batch
    from st_predict.specs import CropSpec

__all__ = [
    "Head",
    "Positions",
    "SectionBlock",
    "check_crops",
    "check_lattice",
    "full_precision",
    "mlp",
    "patch_mlp",
    "patches",
    "renamed",
    "resize_on_load",
    "rows_of_sections",
]


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Compute in float32 on the device of ``x``, also if the rest of a network runs in bfloat16.

    At the size of a log count, bfloat16 has steps of 0.03: many genes vary no more over a section.
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()


class Head(nn.Linear):
    """Last layer: ``(n_spots, n_features)`` to ``(n_spots, n_genes)``, always in float32."""

    def __init__(self, n_features: int, n_genes: int) -> None:
        if n_genes < 1:
            raise InvalidValueError(f"n_genes must be at least 1, got {n_genes}.")
        super().__init__(n_features, n_genes)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the prediction."""
        with full_precision(x_BD):
            return super().forward(x_BD.to(self.weight.dtype))

    @torch.no_grad()
    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene."""
        self.bias.copy_(mean_G)


class Positions(nn.Module):
    """Learned vectors of rows and columns: ``(n_spots, 2)`` whole numbers to ``(n_spots, dim)``."""

    def __init__(self, n_pos: int, dim: int) -> None:
        super().__init__()
        self.n_pos = n_pos
        self.rows, self.columns = nn.Embedding(n_pos, dim), nn.Embedding(n_pos, dim)

    def forward(self, grid_B2: Tensor) -> Tensor:
        if grid_B2.device.type != "meta" and len(grid_B2):
            self._check(*(int(end) for end in grid_B2.aminmax()))
        return self.rows(grid_B2[:, 0]) + self.columns(grid_B2[:, 1])

    def _check(self, least: int, largest: int) -> None:
        if least < 0 or largest >= self.n_pos:
            raise InvalidValueError(
                f"The network knows {self.n_pos} (n_pos) rows and columns of the lattice, 0 to {self.n_pos - 1}; the spots "
                f"have {least} to {largest}.",
                f"train a network with n_pos of at least {max(largest, 0) + 1}"
                f"{', and count rows and columns from 0' if least < 0 else ''}",
            )


class SectionBlock(nn.Module):
    """Attention and MLP over the spots of a section, each with a residual connection: ``(n_spots, dim)`` to the same."""

    def __init__(self, dim: int, *, heads: int, head_dim: int, mlp_dim: int, drop: float) -> None:
        super().__init__()
        self.attention = SectionAttention(dim, heads=heads, head_dim=head_dim, drop=drop)
        self.mlp = mlp(dim, mlp_dim, drop=drop, last=nn.Dropout(drop))

    def forward(self, x_ND: Tensor) -> Tensor:
        x_ND = x_ND + self.attention(x_ND)
        return x_ND + self.mlp(x_ND)


class SectionAttention(nn.Module):
    """Self-attention over the spots of a section, fused, so memory does not grow with pairs of spots."""

    def __init__(self, dim: int, *, heads: int, head_dim: int, drop: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x_ND: Tensor) -> Tensor:
        qkv_N3HE = self.qkv(self.norm(x_ND)).unflatten(1, (3, self.heads, -1))
        q_1HNE, k_1HNE, v_1HNE = qkv_N3HE.permute(1, 2, 0, 3)[:, None]  # fused kernels need four dimensions
        read_1HNE = F.scaled_dot_product_attention(q_1HNE, k_1HNE, v_1HNE)
        return self.drop(self.out(read_1HNE[0].transpose(0, 1).flatten(1)))


def mlp(dim: int, hidden: int, *, drop: float, last: nn.Module) -> nn.Sequential:
    """Layer norm and two-layer perceptron, with ``last`` behind it: ``(..., dim)`` to the same."""
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(drop), nn.Linear(hidden, dim), last
    )


def patch_mlp(patch: int, dim: int, *, halvings: int) -> nn.Sequential:
    """Embedding of flattened patches whose side is halved ``halvings`` times; smaller patches have fewer hidden channels."""
    pixels, hidden = 3 * (patch >> halvings) ** 2, 3 * dim >> halvings
    return nn.Sequential(
        nn.LayerNorm(pixels), nn.Linear(pixels, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.LayerNorm(dim)
    )


def patches(x_BCSS: Tensor, patch: int) -> Tensor:
    """Cut into patches in reading order, each flattened by row, column and colour: ``(B, N, patch * patch * C)``."""
    b, c, size = x_BCSS.shape[:3]
    n = size // patch
    x_BnPnL = x_BCSS.permute(0, 2, 3, 1).reshape(b, n, patch, n, patch * c)  # L: a line of a patch
    return x_BnPnL.transpose(2, 3).reshape(b, n * n, patch * patch * c)


def check_crops(batch: Batch, crop: CropSpec) -> None:
    """Refuse a batch whose crops differ from the network's.

    Raises
    ------
    ValueError
        If number, shape or type of the crops differ.
    """
    expected = [f"torch.uint8 {(len(batch), 3, level.size, level.size)}" for level in crop.levels]
    got = [f"{crop.dtype} {tuple(crop.shape)}" for crop in batch.crops]
    if got != expected:
        raise InvalidValueError(f"The network reads crops {expected}, finest first; the batch has {got}.")


def check_lattice(grids: Mapping[str, NDArray[np.int64]], n_pos: int) -> None:
    """Refuse sections whose lattice has more rows or columns than a network has positions for.

    Raises
    ------
    ValueError
        If the lattice of a section is larger than ``n_pos``.
    """
    last = {section: int(grid.max()) for section, grid in grids.items()}
    if wider := {section: place for section, place in last.items() if place >= n_pos}:
        raise InvalidValueError(
            f"It knows {n_pos} (n_pos) rows and columns of a lattice, 0 to {n_pos - 1}; the sections go up to {wider}.",
            f"train a network with n_pos of at least {max(wider.values()) + 1}",
        )


def rows_of_sections(batch: Batch) -> list[Tensor]:
    """Rows of a batch, per section."""
    if batch.section is None:
        return [torch.arange(len(batch), device=batch.index.device)]
    return [torch.nonzero(batch.section == section).flatten() for section in torch.unique(batch.section)]


def renamed(theirs: Mapping[str, Tensor], names: Mapping[str, str], *, model: str) -> dict[str, Tensor]:
    """Rename the tensors of a published state dict: ``names`` maps our names to published ones.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    check_names(theirs, set(names.values()), model=model)
    return {ours: theirs[name] for ours, name in names.items()}


def resize_on_load(module: nn.Module, *names: str) -> None:
    """Let buffers take their length from a state dict, as only training knows it; rows keep their shape."""

    def resize(module: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
        for name in names:
            own = getattr(module, name)
            if (stored := state.get(prefix + name)) is not None and stored.shape[1:] == own.shape[1:]:
                setattr(module, name, own.new_empty(stored.shape))

    module.register_load_state_dict_pre_hook(resize)  # type: ignore[no-untyped-call]
