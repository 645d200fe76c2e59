"""Softmax attention against one that is written out, and the digest of tokens."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from st_predict.models._attention import DropKeys, SelfAttention, attend, digest, join_heads


@pytest.fixture
def qkv() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=g) for n in (5, 11, 11)]


def plain_attention(q, k, v, *, heads, keep=None):
    """Head by head; ``keep`` (B, H, N) drops columns of the weights, whose rows are then brought back to 1."""
    outs = []
    for h, (qh, kh, vh) in enumerate(zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True)):
        weights = torch.softmax(torch.einsum("bid,bjd->bij", qh, kh) / qh.shape[-1] ** 0.5, -1)
        if keep is not None:
            weights = weights * keep[:, h, None]
            weights = weights / weights.sum(-1, keepdim=True)
        outs.append(torch.einsum("bij,bjd->bid", weights, vh))
    return torch.cat(outs, -1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_attention(qkv, masked, dtype, tolerance):
    """In products against a softmax that is written out, and the mean over all queries."""
    keep_BHN = (torch.arange(11) % 3 != 0).expand(2, 3, 11) if masked else None
    keep_BH1N = None if keep_BHN is None else keep_BHN.unsqueeze(2)
    q, k, v = (join_heads(x) for x in qkv)
    expected = plain_attention(q, k, v, heads=3, keep=keep_BHN)
    low = [x.to(dtype) for x in qkv]
    ours = attend(*low, keep_BH1N)
    digested = attend(*low, keep_BH1N, digested=True)
    assert ours.dtype == digested.dtype == dtype
    close = partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance)
    close(join_heads(ours).float(), expected)
    close(join_heads(digested)[:, 0].float(), expected[:, 0])
    close(join_heads(digested).mean(1).float(), expected.mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("digested", [False, True])
@pytest.mark.parametrize("size", [400.0, -400.0])
def test_attention_with_logits_beyond_any_power(dtype, digested, size):
    """All logits are near ``size``, where powers are infinite or zero."""
    q = torch.ones(1, 1, 4, 16, dtype=dtype) * size / 4
    k = (torch.ones(16) + torch.arange(6)[:, None] / 512 * torch.eye(16)[0]).to(dtype)[None, None]
    v = torch.arange(6.0)[:, None].expand(6, 16).to(dtype)[None, None]
    logits = (q.double() @ k.double().mT) / 4
    assert (logits.abs() > 300).all()
    expected = logits.softmax(-1) @ v.double()
    out = attend(q, k, v, digested=digested)
    torch.testing.assert_close(out.double(), expected[:, :, : out.shape[2]], atol=0.05, rtol=0.05)


def test_attention_beyond_any_power_goes_back_finite():
    q, k, v = (torch.randn(2, 1, 6, 16, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    q[0], k[0] = 90, k[0] + 9
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attend(*inputs).float().square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert inputs[0].grad[1].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("digested", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_spot_does_not_depend_on_its_neighbours(dtype, digested, masked):
    """The middle spot has logits beyond any power, or has not; the others are the same to the bit."""
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(3, 2, 9, 16, generator=g).to(dtype) for _ in range(3))
    q[1], k[1] = 90, torch.randn(2, 9, 16, generator=g).to(dtype) + 9
    keep = (torch.arange(9) != 4).expand(3, 2, 1, 9) if masked else None
    together = attend(q, k, v, keep, digested=digested)
    logits = q.double() @ k.double().mT / 4
    assert (logits[1] > 800).any()
    expected = (logits if keep is None else logits.masked_fill(~keep, -torch.inf)).softmax(-1) @ v.double()
    expected = digest(expected) if digested else expected
    torch.testing.assert_close(together.double(), expected, atol=0.05, rtol=0.05)
    q[1] = 0.1
    calm = attend(q, k, v, keep, digested=digested)
    assert torch.equal(together[[0, 2]], calm[[0, 2]])
    assert not torch.equal(together[1], calm[1])
    k[1] = torch.nan
    broken = attend(q, k, v, keep, digested=digested)
    assert torch.equal(broken[[0, 2]], calm[[0, 2]])
    assert broken[1].isnan().all()


@pytest.mark.parametrize("digested", [False, True])
def test_attention_goes_back_right_in_bfloat16(qkv, digested):
    """The gradients of products with powers against those of a softmax in double precision."""
    exact = [x.double().requires_grad_() for x in qkv]
    plain = (exact[0] @ exact[1].mT / 8**0.5).softmax(-1) @ exact[2]
    (digest(plain) if digested else plain).square().sum().backward()
    low = [x.bfloat16().requires_grad_() for x in qkv]
    attend(*low, digested=digested).float().square().sum().backward()
    for ours, theirs in zip(low, exact, strict=True):
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=0.03 * scale, rtol=0)


def test_digest_keeps_class_token_and_mean():
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    short = digest(x)
    assert short.shape == (2, 2, 7)
    torch.testing.assert_close(short[:, 0], x[:, 0])
    torch.testing.assert_close(short.mean(1), x.mean(1))


# DropAttention.


def test_drop_attention_drops_columns_and_brings_rows_back_to_one():
    layer = SelfAttention(24, heads=2, head_dim=12, drop=0, drop_keys=0.4).train()
    x = torch.randn(3, 17, 24, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    with torch.no_grad():
        ours = layer(x)
        torch.set_rng_state(state)
        keep = torch.rand(3, 2, 17) >= 0.4
        q, k, v = layer.qkv(x).chunk(3, -1)
        expected = layer.out(plain_attention(q, k, v, heads=2, keep=keep))
        assert not torch.allclose(ours, layer(x))  # drawn anew
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(layer.eval()(x), layer.out(plain_attention(q, k, v, heads=2)))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_never_drops_all_keys(rate):
    keep = DropKeys(rate)(torch.zeros(200, 4, 50, 8))
    assert keep.shape == (200, 4, 1, 50)
    assert keep.any(-1).all()
    assert keep.float().mean().item() == pytest.approx(max(1 - rate, 1 / 50), abs=0.02)
