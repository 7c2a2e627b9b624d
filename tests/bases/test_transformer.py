"""MaskGIT's transformer: published sizes, and its attention against torch's."""

import pytest
import torch
from tiny_parts import composed
from torch.nn.functional import scaled_dot_product_attention

from migm.bases.transformer import MaskTransformer, PackedAttention, attention
from migm.config.building import build


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"base\.transformer\.channels=48.*base\.transformer\.num_heads=5"):
        MaskTransformer(16, 24, 10, channels=48, depth=1, num_heads=5, mlp_channels=96)


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


@pytest.mark.parametrize("source_rows", [None, 5])
def test_packed_attention_is_torchs_multi_head_attention(source_rows):
    torch.manual_seed(0)
    ours, theirs = PackedAttention(48, 4), torch.nn.MultiheadAttention(48, 4, batch_first=True)
    torch.nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are torch's
    query = torch.randn(2, 7, 48)
    source = query if source_rows is None else torch.randn(2, source_rows, 48)
    wanted = theirs(query, source, source, need_weights=False)[0]
    got = ours(query, None if source_rows is None else source)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    near = ours.bfloat16()(query.bfloat16(), source.bfloat16()).float()  # the explicit path
    torch.testing.assert_close(near, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("maskgit_256", 305, 174_160_874),
        ("maskgit_512", 305, 176_306_666),
        ("maskgit_big_256", 401, 341_953_002),
        ("maskgit_big_512", 401, 344_295_402),
        ("maskgit_huge_256", 593, 509_921_770),
        ("maskgit_huge_512", 593, 512_264_170),
    ],
)
def test_published_sizes_have_the_published_parameters(name, tensors, parameters):
    config = composed("generate", f"base={name}").base.transformer
    with torch.device("meta"):
        state = build(config).state_dict()
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) == parameters


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
