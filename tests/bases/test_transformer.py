"""MaskGIT's transformer: published sizes, and its attention layer against torch's."""

import pytest
import torch
from tiny_parts import composed

from migm.bases.transformer import MaskTransformer, PackedAttention
from migm.config.building import build


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"base\.transformer\.channels=48.*base\.transformer\.num_heads=5"):
        MaskTransformer(16, 24, 10, channels=48, depth=1, num_heads=5, mlp_channels=96)


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
