"""M2OST as it was published, written plainly: every level on its own, every token of every block, attention step by step.

The way that others run it, to be timed; and an independent computation that ours must equal.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from st_predict.models.m2ost import M2OST, Block


class PublishedM2OST(nn.Module):
    """The published computation with the weights of a network of ours that has the published hyper-parameters."""

    def __init__(self, network: M2OST) -> None:
        super().__init__()
        ours = deepcopy(network)
        self.patch_mlps, self.cls, self.positions = ours.embed.mlps, ours.embed.cls, ours.embed.positions
        self.blocks = nn.ModuleList(PublishedBlock(block, ours.config.heads) for block in ours.blocks)
        self.norm, self.head = ours.norm, ours.head

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Predict from float crops between 0 and 1, each ``(n, 3, size, size)``."""
        size = fine.shape[-1]
        half, quarter = (slice(size // 4, size * 3 // 4),) * 2, (slice(size * 3 // 8, size * 5 // 8),) * 2
        regions = [
            [(0, fine)],
            [(1, middle[:, :, *half]), (0, middle)],
            [(2, coarse[:, :, *quarter]), (1, coarse[:, :, *half]), (0, coarse)],
        ]
        x = [self._tokens(*region, positions=p) for region, p in zip(regions, self.positions, strict=True)]
        for block in self.blocks:
            x = block(x)
        return self.head(torch.cat([self.norm(level)[:, 0] for level in x], dim=-1))

    def _tokens(self, *regions: tuple[int, Tensor], positions: Tensor) -> Tensor:
        tokens = [self.patch_mlps[k](flat_patches(image, 16 >> k)) for k, image in regions]
        return torch.cat([self.cls.expand(len(tokens[0]), -1, -1), *tokens], dim=1) + positions


def flat_patches(image: Tensor, patch: int) -> Tensor:
    n, colours, size, _ = image.shape
    side = size // patch
    grid = image.reshape(n, colours, side, patch, side, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, side * side, patch * patch * colours)


class PublishedBlock(nn.Module):
    def __init__(self, block: Block, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.within_qkv = nn.ModuleList(layer.qkv for layer in block.itmm.layers)
        self.within_out = nn.ModuleList(layer.out for layer in block.itmm.layers)
        self.mlp = block.mlp.layer
        self.norm = block.ctmm.norm
        parts = [[linear_of(weight) for weight in layer.weight.chunk(3)] for layer in block.ctmm.qkv]
        self.to_q, self.to_k, self.to_v = (nn.ModuleList(part) for part in zip(*parts, strict=True))
        self.out = block.ctmm.out
        self.gate = block.ccmm.layer

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [self._within(i, level) for i, level in enumerate(x)]
        x = [self.mlp(level) + level for level in x]
        x = self._between(x)
        means = torch.cat([F.adaptive_avg_pool1d(level.transpose(1, 2), 1).flatten(1) for level in x], dim=-1)
        scores = self.gate(means).chunk(len(x), dim=-1)
        return [level * score[:, None].expand_as(level) + level for level, score in zip(x, scores, strict=True)]

    def _within(self, i: int, level: Tensor) -> Tensor:
        q, k, v = (self._split(part) for part in self.within_qkv[i](level).chunk(3, dim=-1))
        return self.within_out[i](attention(q, k, v)) + level

    def _between(self, x: list[Tensor]) -> list[Tensor]:
        x = [self.norm(level) for level in x]
        q, k, v = (
            [self._split(linear(level)) for linear, level in zip(linears, x, strict=True)]
            for linears in (self.to_q, self.to_k, self.to_v)
        )
        read = [[attention(q[i], k[j], v[j]) for j in range(len(x)) if j != i] for i in range(len(x))]
        return [linear(torch.cat(others, dim=-1)) for linear, others in zip(self.out, read, strict=True)]

    def _split(self, level: Tensor) -> Tensor:
        n, tokens, _ = level.shape
        return level.reshape(n, tokens, self.heads, -1).transpose(1, 2)


def linear_of(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach().clone())
    return linear


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    read = torch.matmul(logits.softmax(dim=-1), v)
    return read.transpose(1, 2).flatten(2)
