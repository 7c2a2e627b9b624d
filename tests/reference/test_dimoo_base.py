"""Lumina-DiMOO's transformer and sequences against the recorded ones."""

import pytest
import torch
from tiny_parts import moment
from torch.nn.functional import linear

from migm.bases.llada import rotate

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def forward(read_vector):
    return read_vector("dimoo_base_forward")[0]


def test_features_and_logits_equal_the_recorded_ones(forward, recorded_dimoo):
    net = recorded_dimoo().transformer
    features = net(forward["input_ids"])
    torch.testing.assert_close(features, forward["last_feat"], **CLOSE)
    torch.testing.assert_close(linear(features, net.ff_out.weight), forward["logits"], rtol=2e-5, atol=2e-4)


def test_every_block_gets_the_recorded_input(forward, recorded_dimoo):
    net = recorded_dimoo().transformer
    x, ctx = net.prepare(forward["input_ids"])
    for i, block in enumerate(net.blocks):
        torch.testing.assert_close(x, forward[f"hidden.{i}"], **CLOSE)
        x = block(x, ctx)
    torch.testing.assert_close(net.finalize(x), forward[f"hidden.{len(net.blocks)}"], **CLOSE)


def test_the_parts_of_the_first_block_equal_the_recorded_ones(forward, recorded_dimoo):
    net = recorded_dimoo().transformer
    x, ctx = net.prepare(forward["input_ids"])
    block, seen = net.blocks[0], {}
    for name, part in block.named_children():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    block(x, ctx)
    for name, value in seen.items():
        torch.testing.assert_close(value, forward[f"block0.{name}"], **CLOSE)
    assert set(seen) == {key.removeprefix("block0.") for key in forward if key.startswith("block0.")} - {
        "q_rot",
        "k_rot",
    }
    heads = net.config.n_heads
    q = seen["q_proj"].unflatten(-1, (heads, -1)).transpose(1, 2)
    torch.testing.assert_close(rotate(q, ctx), forward["block0.q_rot"], **CLOSE)
    torch.testing.assert_close(block.k(x, ctx), forward["block0.k_rot"], **CLOSE)


def test_in_bfloat16_features_are_as_near_to_the_recorded_ones_as_those_are_to_float32(forward, recorded_dimoo):
    """Kernels add in another order than the recording's, so that last bits differ from machine to machine."""
    features = recorded_dimoo(dtype="bfloat16").transformer(forward["input_ids"])
    assert features.dtype == torch.bfloat16
    recorded = forward["last_feat_bf16"].float()
    assert (features.float() - recorded).norm() < 1.5 * (recorded - forward["last_feat"]).norm()


@pytest.mark.parametrize("one_pass", [False, True])
def test_sequences_are_the_recorded_ones(read_vector, recorded_dimoo, one_pass):
    run, meta = read_vector("dimoo_sample_vanilla")
    base = recorded_dimoo(one_pass=one_pass)
    v, start, mask = base.spec.vocab_size, int(meta["code_start"]), base.layout.mask
    for name in ("x0", "x.02", "x.07"):
        wanted = run[name]
        tokens = torch.full((1, base.spec.num_tokens), v)
        image = wanted.gather(1, base.layout.places[None] + start - 2)
        tokens = torch.where(image == mask, v, image - base.offset)
        branches = base.encode(["any"], guided=True)
        ids = []
        for branch in branches:
            x, _ = base.prepare(tokens, branch, moment(torch.ones(1)))
            ids += list((x[:, :, None] == base.transformer.wte.weight).all(-1).int().argmax(-1))
        uncond = torch.cat([run["uncon_ids"], wanted[:, start - 2 :]], 1)
        for got, row in zip(ids, (wanted, uncond), strict=True):
            assert torch.equal(got[: row.shape[1]], row[0])
