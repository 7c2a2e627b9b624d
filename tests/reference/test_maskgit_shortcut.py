"""The shortcut network against the recorded ones."""

import pytest
import torch
from torch.nn import LayerNorm

from migm.bases.base import Control

RECORDED = ["maskgit_shortcut_r2_n1", "maskgit_shortcut_r1_n2", "maskgit_shortcut_r4_n1_notime"]
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def advance(net, features, embeddings, mask_ratio):
    """One call of the network with new tokens given as bare embeddings."""
    return net(features, Control(embeddings, torch.zeros(embeddings.shape[:2], dtype=torch.long)), mask_ratio)


@pytest.mark.parametrize("name", RECORDED)
def test_output_equals_the_recorded_one(read_vector, recorded_shortcut, name):
    tensors, _ = read_vector(name)
    rows = tensors["in.new_token_map"].nonzero()[:, 1].view(len(tensors["in.prev_feat"]), -1)
    new = tensors["buf.wte"][tensors["in.new_token_ids"]] + tensors["buf.wpe"][0, rows]
    got = advance(recorded_shortcut(name), tensors["in.prev_feat"], new, tensors["in.mask_ratio"])
    torch.testing.assert_close(got, tensors["out.feat"], **CLOSE)
    assert not torch.allclose(got, tensors["in.prev_feat"], atol=0.01)


@pytest.mark.parametrize("name", RECORDED)
def test_only_the_last_norms_have_the_small_epsilon(recorded_shortcut, name):
    net = recorded_shortcut(name)
    last, blocks = (
        {m.eps for m in part.modules() if isinstance(m, LayerNorm)} for part in (net.last_layer, net.blocks)
    )
    assert (last, blocks) == ({1e-12}, {1e-5})


@pytest.mark.parametrize("name", RECORDED[:2])
def test_time_embedding_equals_the_recorded_one(read_vector, recorded_shortcut, name):
    tensors, _ = read_vector(name)
    embedder = recorded_shortcut(name).time_embedder
    torch.testing.assert_close(embedder.sinusoid(tensors["in.mask_ratio"]), tensors["act.sinusoid"], rtol=0, atol=1e-4)
    torch.testing.assert_close(embedder(tensors["in.mask_ratio"]), tensors["act.time_emb"], rtol=1e-4, atol=1e-4)


def test_new_token_embeddings_are_those_of_the_base(read_vector, recorded_base):
    """The recorded tables are the base's, so `base.control` gives what the network was trained on."""
    tensors, _ = read_vector(RECORDED[0])
    rows = tensors["in.new_token_map"].nonzero()[:, 1].view(len(tensors["in.prev_feat"]), -1)
    new = tensors["buf.wte"][tensors["in.new_token_ids"]] + tensors["buf.wpe"][0, rows]
    branch = recorded_base.branch(torch.zeros(len(rows), 1, dtype=torch.long))
    assert torch.equal(recorded_base.control(tensors["in.new_token_ids"], rows, branch).embeddings, new)
