"""Attention against torch's: masks, and rows without a key."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from migm.bases.attention import attention


def heads(dtype, keys=9):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, n, 12, generator=generator).to(dtype) for n in (7, keys, keys)]


@pytest.mark.parametrize("masked", [False, True])
def test_explicit_bfloat16_attention_is_close_to_the_fused_one(masked):
    q, k, v = heads(torch.bfloat16)
    mask = (torch.arange(9) < 5).expand(2, 1, 1, 9) if masked else None
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, mask).double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_keys_have_no_influence(dtype):
    q, k, v = heads(dtype)
    mask = (torch.arange(9) < 5).expand(2, 1, 1, 9)
    before = attention(q, k, v, mask)
    k[:, :, 5:], v[:, :, 5:] = 30.0, -1000.0
    torch.testing.assert_close(attention(q, k, v, mask), before)
    torch.testing.assert_close(attention(q, k[:, :, :5], v[:, :, :5]), before, rtol=0.02, atol=0.02)
    assert not torch.allclose(attention(q, k, v), before, atol=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_without_any_key_gets_zero_and_a_finite_gradient(dtype):
    """The next row of new tokens after a step that revealed nothing."""
    q, k, v = (x.requires_grad_() for x in heads(dtype))
    mask = (torch.arange(9) < torch.tensor([[0], [5]]))[:, None, None]
    found = attention(q, k, v, mask)
    assert not found[0].any()
    torch.testing.assert_close(found[1:], attention(q[1:], k[1:, :, :5], v[1:, :, :5]), rtol=0.02, atol=0.02)
    found.float().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert not attention(*heads(dtype, keys=0)).any()
