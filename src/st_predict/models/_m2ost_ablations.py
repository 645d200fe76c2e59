"""Ablations of M2OST: the network without one of its parts, as in Table 1 of the paper :cite:p:`Wang2025`.

Each ablation is a hyper-parameter of :class:`st_predict.models.m2ost.M2OSTConfig`; see :class:`Ablations` for values. The
modules here replace modules in the model's own file.

Shapes: B spots, C colours, S pixels per side, N tokens per level, D channels per level, W channels of all levels joined.
"""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Flag, validated
from st_predict.models._attention import digest
from st_predict.models._layers import patch_mlp, patches

if TYPE_CHECKING:
    from st_predict.models._levels import Levels

__all__ = ["Ablations", "Joined", "LevelEmbedding", "Unmixed", "mean_token"]

_WITHOUT_DPE = Advice("set dpe to False in {}", "hparams")


@validated
class Ablations:
    """Parts of M2OST that can be left out or replaced; the defaults are the full network.

    Parameters
    ----------
    dpe
        Whether coarse levels have patches of several sizes. If False, each level has patches of one size and its own
        embedding, :class:`LevelEmbedding`.
    itmm
        Attention and MLP per level (``"split"``) or on the joined channels of all levels (``"joint"``, :class:`Joined`).
    ctmm
        Whether levels attend to each other. If False, :class:`Unmixed` replaces this.
    ccmm
        Gates on the channels of all levels (``"gate"``) or an MLP on the joined channels (``"ffn"``, :class:`Joined`).
    pool
        Input of the head: class tokens (``"cls"``) or token means (``"mean"``, :func:`mean_token`).
    """

    dpe: Flag = True
    itmm: Literal["split", "joint"] = "split"
    ctmm: Flag = True
    ccmm: Literal["gate", "ffn"] = "gate"
    pool: Literal["cls", "mean"] = "cls"

    def check_joined(self, n_tokens: list[int]) -> None:
        """Refuse to join levels with different numbers of tokens.

        Raises
        ------
        ValueError
            If levels with different numbers of tokens are to be joined.
        """
        if len(set(n_tokens)) > 1 and (self.itmm == "joint" or self.ccmm == "ffn"):
            raise InvalidValueError(
                f"itmm 'joint' and ccmm 'ffn' need equally many tokens per level, got {n_tokens}.", _WITHOUT_DPE
            )

    def check_sizes(self, n_tokens: list[int], coarsest: int, *, dim: int, size: int, patch: int) -> None:
        """Refuse sizes that do not suit the chosen parts.

        Raises
        ------
        ValueError
            If a size is not divisible into patches, or levels with different numbers of tokens are to be joined.
        """
        for name, value in (("patch", patch), ("dim", dim)):
            if self.dpe and value % 2**coarsest:
                raise InvalidValueError(
                    f"{name} must be a multiple of {2**coarsest}, to be halved {coarsest} times for level {coarsest}; "
                    f"got {value}.",
                    _WITHOUT_DPE,
                )
        self.check_joined(n_tokens)
        # The border around the smallest central region must be a whole number of pixels as well.
        step = lcm(patch, 2 ** (coarsest + 1)) if self.dpe else patch
        below = size // step * step
        if size != below:
            nearest = [good for good in (below, below + step) if good]
            raise InvalidValueError(f"size must be a multiple of {step}, got {size}; the nearest: {nearest}.")


class LevelEmbedding(nn.Module):
    """``dpe=False``: one embedding per level, with patches of one size."""

    def __init__(self, *, dim: int, patch: int, n_tokens: list[int]) -> None:
        super().__init__()
        self.patch = patch
        self.mlps = nn.ModuleList(patch_mlp(patch, dim, halvings=0) for _ in n_tokens)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.ParameterList(torch.randn(1, n + 1, dim) for n in n_tokens)

    def forward(self, crops: list[Tensor]) -> Levels:
        """Tokens of each level, ``(B, N, D)``, class token first."""
        return [
            torch.cat([self.cls.expand(len(x_BCSS), -1, -1), mlp(patches(x_BCSS, self.patch))], 1) + positions
            for mlp, x_BCSS, positions in zip(self.mlps, crops, self.positions, strict=True)
        ]


class Joined(nn.Module):
    """``itmm="joint"`` or ``ccmm="ffn"``: one layer on the joined channels of all levels, with a residual connection."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Levels) -> Levels:
        x_BNW = torch.cat(x, -1)
        return list((x_BNW + self.layer(x_BNW)).chunk(len(x), -1))


class Unmixed(nn.Module):
    """``ctmm=False``, or a single level: levels do not attend to each other."""

    def forward(self, x: Levels, _: Tensor | None, *, digested: bool = False) -> Levels:
        return [digest(x_BND) for x_BND in x] if digested else x


def mean_token(x_BND: Tensor, norm: nn.Module) -> Tensor:
    """``pool="mean"``: mean of all tokens after layer norm, ``(B, 1, D)``."""
    return norm(x_BND).mean(1, keepdim=True)
