"""Halton-MaskGIT's transformer against the recorded one."""

import pytest
import torch
from halton_cases import close, halton_transformer

from migm.bases.halton_net import PARTS


@pytest.fixture(scope="module", params=["halton_base_tiny", "halton_base_odd"])
def case(request, read_vector):
    """The recorded tensors, their network, tokens (b, l) and labels (b,)."""
    tensors, meta = read_vector(request.param)
    labels = torch.where(tensors["in.drop"], int(meta["drop_id"]), tensors["in.y"])
    return tensors, halton_transformer(tensors, meta), tensors["in.tokens"].flatten(1), labels


def test_what_is_read_of_the_class_equals_the_recorded_vectors(case):
    tensors, net, _, labels = case
    close(net.cls_emb(labels), tensors["act.cond"])
    close(net.modulation(labels)[:, :PARTS].flatten(1), tensors["act.block0.modulation"])


def test_every_stage_of_the_forward_equals_the_recorded_one(case):
    tensors, net, tokens, labels = case
    x, ctx = net.prepare(tokens, net.modulation(labels))
    close(x, tensors["act.embed"])
    for block in net.transformer.layers:
        x = block(x, ctx)
    close(x, tensors["act.blocks"])
    features, n = net.finalize(x, ctx), tokens.shape[1]
    close(net.last_norm.norm_final(x[:, :n]), tensors["act.norm_final"])
    close(features[:, :n], tensors["out.feat"])
    assert torch.equal(features, net(tokens, labels))
    close(net.logits(features[:, :n]), tensors["out.logits"])


def test_the_parts_of_the_first_block_equal_the_recorded_ones(case):
    tensors, net, tokens, labels = case
    x, ctx = net.prepare(tokens, net.modulation(labels))
    block, seen = net.transformer.layers[0], {}
    for name in ("ln1", "ff", "attn.wo"):
        keep = lambda _, __, out, name=name: seen.update({name: out})  # noqa: E731
        block.get_submodule(name).register_forward_hook(keep)
    close(block(x, ctx), tensors["act.block0.out"])
    for name, recorded in (("ln1", "ln1"), ("ff", "ff"), ("attn.wo", "attn")):
        close(seen[name], tensors[f"act.block0.{recorded}"])
    close(block.k(x, ctx).transpose(1, 2).flatten(2), tensors["act.block0.k"])
    asked = []  # the queries, which the block gives to no one
    block.attn.wq.register_forward_hook(lambda _, __, out: asked.append(out))
    block(x, ctx)
    q = asked[0] / (asked[0].square().mean(-1, keepdim=True) + 1e-5).sqrt()
    close(q, tensors["act.block0.q"])


def test_under_autocast_it_is_as_near_to_the_recording_as_bfloat16_rounds(case):
    """The published flow: bfloat16 products, and a stream of float32 between them."""
    tensors, net, tokens, labels = case
    with torch.autocast("cpu", torch.bfloat16):
        x, ctx = net.prepare(tokens, net.modulation(labels))
        first = net.transformer.layers[0](x, ctx)
        features = net(tokens, labels)[:, : tokens.shape[1]]
        found = {"block0.out": first, "feat": features, "logits": net.logits(features)}
    assert first.dtype == features.dtype == torch.float32
    assert found["logits"].dtype == torch.bfloat16
    for name, ours in found.items():
        recorded, plain = tensors[f"autocast.{name}"].float(), tensors[PLAIN[name]]
        assert (ours.float() - recorded).norm() < (recorded - plain).norm()


PLAIN = {"block0.out": "act.block0.out", "feat": "out.feat", "logits": "out.logits"}
