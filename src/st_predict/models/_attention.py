"""Multi-head softmax attention with a kernel for CPUs, and a summary of tokens that saves work in the last block.

:func:`attend` calls PyTorch's fused kernel on GPUs and for float32 training on CPUs. In other cases on CPUs that kernel is
slow: in bfloat16 about half as fast as two matrix products with powers of two between them, which run instead.

:func:`digest` replaces the tokens of a level by two with the same class token and the same mean. Later layers read only
these two, so attention computes two rows instead of all.

Shapes: B spots, H heads, N tokens, E channels per head, D channels per token, X spots times heads.
"""

from __future__ import annotations

from math import e, log2, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["DropKeys", "SelfAttention", "attend", "digest", "join_heads", "split_heads"]


class SelfAttention(nn.Module):
    """Multi-head self-attention with DropAttention, ``(B, N, D)`` to the same."""

    def __init__(self, dim: int, *, heads: int, head_dim: int, drop: float, drop_keys: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.drop_keys = DropKeys(drop_keys)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BHNE, k_BHNE, v_BHNE = split_heads(self.qkv(x_BND), self.head_dim)
        return self.drop(self.out(join_heads(attend(q_BHNE, k_BHNE, v_BHNE, self.drop_keys(k_BHNE)))))


def attend(
    q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, keep_BH1N: Tensor | None = None, *, digested: bool = False
) -> Tensor:
    """Softmax attention, ``(B, H, N, E)``.

    Parameters
    ----------
    q_BHNE, k_BHNE, v_BHNE
        Queries, keys and values. The numbers of queries and keys may differ.
    keep_BH1N
        Boolean mask of the keys to read; the weights of these keys sum to 1. By default all keys.
    digested
        Whether to return the :func:`digest` of the result, ``(B, H, 2, E)``.
    """
    # On CPUs the fused kernel is faster only for float32 with a backward pass.
    in_products = q_BHNE.dtype == torch.bfloat16 or not q_BHNE.requires_grad
    if q_BHNE.device.type == "cpu" and in_products and not torch.compiler.is_compiling():
        return _attend_in_products(q_BHNE, k_BHNE, v_BHNE, keep_BH1N, digested=digested)
    out_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=keep_BH1N)
    return digest(out_BHNE) if digested else out_BHNE


def _attend_in_products(
    q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, keep_BH1N: Tensor | None, *, digested: bool
) -> Tensor:
    """Attention as two matrix products, with softmax as fallback for spots whose powers overflow or underflow.

    Powers of 2, divided by each row's sum after the second product, take half the time of a softmax.
    """
    weights_XNN, sums_XN1 = _powers(q_BHNE, k_BHNE, keep_BH1N)
    sums_BN = sums_XN1.detach().reshape(len(q_BHNE), -1)
    moderate_B111 = ((sums_BN > 1e-30) & (sums_BN < 1e30)).all(1)[:, None, None, None]
    if moderate_B111.all():
        return _read_values(weights_XNN, sums_XN1, v_BHNE, digested=digested)
    # The products keep all spots: rounding depends on the batch size, and no spot may depend on its neighbours.
    tame = _powers(torch.where(moderate_B111, q_BHNE, 0), torch.where(moderate_B111, k_BHNE, 0), keep_BH1N)
    logits_BHNN = (q_BHNE / sqrt(q_BHNE.shape[-1])) @ k_BHNE.mT
    if keep_BH1N is not None:
        logits_BHNN = logits_BHNN.masked_fill(~keep_BH1N, -torch.inf)
    plain_BHNE = logits_BHNN.softmax(-1) @ v_BHNE  # unlike the fused kernel, this propagates NaN
    plain_BHNE = digest(plain_BHNE) if digested else plain_BHNE
    return torch.where(moderate_B111, _read_values(*tame, v_BHNE, digested=digested), plain_BHNE)


def _powers(q_BHNE: Tensor, k_BHNE: Tensor, keep_BH1N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unnormalised weights of the keys, and the sum per row."""
    q_XNE, k_XNE = q_BHNE.flatten(0, 1), k_BHNE.flatten(0, 1)
    scale = log2(e) / sqrt(q_XNE.shape[-1])
    weights_XNN = torch.baddbmm(q_XNE.new_empty(()), q_XNE, k_XNE.mT, beta=0, alpha=scale).exp2_()
    if keep_BH1N is not None:
        weights_XNN = weights_XNN * keep_BH1N.flatten(0, 1)
    return weights_XNN, weights_XNN.sum(-1, keepdim=True)


def _read_values(weights_XNN: Tensor, sums_XN1: Tensor, v_BHNE: Tensor, *, digested: bool) -> Tensor:
    """Weighted means of the values, ``(B, H, N, E)``, or only their digest."""
    v_XNE = v_BHNE.flatten(0, 1)
    if digested:
        rows_2N = digest(torch.eye(weights_XNN.shape[1])).to(v_XNE)
        out_XNE = torch.bmm(rows_2N / sums_XN1.mT, weights_XNN) @ v_XNE
    else:
        out_XNE = torch.bmm(weights_XNN, v_XNE) / sums_XN1
    return out_XNE.reshape(*v_BHNE.shape[:2], *out_XNE.shape[1:])


def digest(x_ND: Tensor) -> Tensor:
    """Two tokens with the same mean as all tokens, ``(2, D)``; the first is the class token.

    It commutes with linear layers: each row is a weighted sum of tokens, with weights that add up to 1.
    """
    cls_D = x_ND[..., 0, :]
    return torch.stack([cls_D, 2 * x_ND.mean(-2) - cls_D], -2)


class DropKeys(_DropoutNd):
    """DropAttention :cite:p:`Zehui2019`: random mask of keys per spot and head, ``(B, H, 1, N)``; keeps at least one key.

    Returns ``None`` if no key is dropped.
    """

    def forward(self, k_BHNE: Tensor) -> Tensor | None:
        if not (self.training and self.p):
            return None
        u_BH1N = torch.rand(k_BHNE.shape[:-1], device=k_BHNE.device).unsqueeze(2)
        return (u_BH1N >= self.p) | (u_BH1N == u_BH1N.amax(-1, keepdim=True))


def split_heads(x_BND: Tensor, head_dim: int) -> tuple[Tensor, ...]:
    """Queries, keys and values, each ``(B, H, N, E)``, from the output of one linear layer."""
    heads = x_BND.shape[-1] // (3 * head_dim)
    return x_BND.reshape(*x_BND.shape[:2], 3, heads, head_dim).permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def join_heads(x_BHNE: Tensor) -> Tensor:
    """Joined channels of all heads, ``(B, N, H * E)``."""
    return x_BHNE.transpose(1, 2).flatten(2)
