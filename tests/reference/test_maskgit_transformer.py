"""MaskGIT's transformer against the recorded one."""

import pytest
import torch
from tiny_parts import recorded_transformer, wrap
from torch.nn import LayerNorm
from torch.nn.functional import linear

from migm.bases.base import image_rows

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def case(read_vector, recorded_base):
    """The recorded tensors and the sequence of ids they were computed from."""
    tensors, meta = read_vector("maskgit_base_tiny")
    labels = torch.where(tensors["in.drop"], int(meta["nclass"]), tensors["in.y"])
    return tensors, recorded_base.transformer.sequence(tensors["in.tokens"].flatten(1), labels)


def test_ids_put_the_class_last_and_follow_the_published_numbering(case, read_vector):
    tensors, ids = case
    meta = read_vector("maskgit_base_tiny")[1]
    wanted = torch.where(tensors["in.drop"], int(meta["drop_id"]), tensors["in.y"] + int(meta["class_offset"]))
    assert torch.equal(ids[:, -1], wanted)
    assert torch.equal(ids[:, :-1], tensors["in.tokens"].flatten(1))


def test_every_stage_of_the_forward_equals_the_recorded_one(case, recorded_base):
    tensors, ids = case
    net = recorded_base.transformer
    x = net.first_layer(net.embed(ids))
    torch.testing.assert_close(x, tensors["act.first_layer"], **CLOSE)
    for block in net.transformer.layers:
        x = block(x)
    torch.testing.assert_close(x, tensors["act.transformer"], **CLOSE)
    torch.testing.assert_close(net(ids), tensors["out.feat"], **CLOSE)


def test_only_the_outer_norms_have_the_small_epsilon(recorded_base):
    """The recorded activations are too large to tell 1e-12 from torch's 1e-5 everywhere."""
    net = recorded_base.transformer
    found = [{m.eps for m in part.modules() if isinstance(m, LayerNorm)} for part in net.children()]
    assert [eps for eps in found if eps] == [{1e-12}, {1e-5}, {1e-12}]


def test_a_base_is_frozen_and_drops_nothing(case, read_vector):
    tensors, ids = case
    net = wrap(recorded_transformer(*read_vector("maskgit_base_tiny"), dropout=0.5).train(), "float32").transformer
    torch.testing.assert_close(net(ids), tensors["out.feat"], **CLOSE)
    assert not any(p.requires_grad for p in net.parameters())


def test_logits_equal_the_recorded_ones(case, recorded_base):
    tensors, ids = case
    net = recorded_base.transformer
    features = net(ids)
    branch = recorded_base.branch(torch.zeros(len(ids), 1, dtype=torch.long))
    logits = recorded_base.head(image_rows(features, branch))
    spec = recorded_base.spec
    assert logits.shape[1:] == (spec.num_tokens, spec.vocab_size)  # neither the class position nor the mask's column
    torch.testing.assert_close(logits, tensors["out.logits"], **CLOSE)
    full = linear(features, net.tok_emb.weight) + net.bias
    torch.testing.assert_close(full, tensors["out.logits_full_table"], **CLOSE)


def test_embed_at_positions_equals_the_rows_of_the_full_embedding(case, recorded_base):
    ids = case[1]
    net = recorded_base.transformer
    positions = torch.randint(0, ids.shape[1], (len(ids), 3), generator=torch.Generator().manual_seed(0))
    some = net.embed(ids.gather(1, positions), positions)
    batch = torch.arange(len(ids))[:, None]
    assert torch.equal(some, net.embed(ids)[batch, positions])
