"""The DiMOO shortcut against the recorded ones, loaded as a published checkpoint."""

import json

import pytest
import torch

from migm.bases.base import Control
from migm.shortcuts.checkpoint import load_shortcut
from migm.shortcuts.dimoo import DiMOOShortcut

VARIANTS = "ABCD"  # as published, D = 2 with R = 1, no cross attention, R = 4 without time
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(params=VARIANTS)
def case(request, read_vector, tmp_path):
    """The network, its recorded inputs and outputs, and how it was built."""
    state, meta = read_vector(f"dimoo_shortcut_{request.param}_state")
    config, variant = json.loads(meta["config"]), json.loads(meta["variant"])
    torch.save(state, tmp_path / "published.pth")
    known = {"num_heads": config["n_heads"], "rope_theta": config["rope_theta"]}
    net, _ = load_shortcut(tmp_path / "published.pth", "any base", "key", **known)
    return net, read_vector(f"dimoo_shortcut_{request.param}_io")[0], config, variant


def advance(net, io):
    """The recorded call."""
    rows = io["new_token_map"].nonzero()[:, 1][None]
    return net(io["prev_feat"], Control(io["new_token"], rows), io["mask_ratio"])


def test_class_and_sizes_are_read_from_the_names(case):
    net, io, config, variant = case
    assert isinstance(net, DiMOOShortcut)
    assert net.config == {
        "channels": io["prev_feat"].shape[-1],
        "bottleneck_ratio": variant["bottleneck"],
        "depth": variant["n_block"],
        "num_heads": config["n_heads"],
        "mlp_channels": config["mlp_hidden_size"],
        "rope_theta": config["rope_theta"],
        "eps": config["rms_norm_eps"],
        "time": variant["embed_t"],
        "cross_attention": not variant["no_ca"],
        "prompt": True,
    }


def test_output_equals_the_recorded_one(case):
    net, io, *_ = case
    torch.testing.assert_close(advance(net, io), io["out"], **CLOSE)
    assert not torch.allclose(io["prev_feat"], io["out"], atol=0.01)


def test_every_part_gives_the_recorded_result(case):
    """What a cross attention block gives is what the self attention after it takes."""
    net, io, _, variant = case
    modules, seen = dict(net.named_modules()), {}
    recorded = {name.removeprefix("inter."): value for name, value in io.items() if name.startswith("inter.")}
    for name in recorded:
        if name.endswith("cross_attn"):
            follower = modules[name.replace("cross_attn", "self_attn")]
            follower.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        elif name in modules:
            modules[name].register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    advance(net, io)
    assert recorded.keys() - seen.keys() == ({"new_token_proj_in"} if variant["no_ca"] else set())
    for name, value in seen.items():
        torch.testing.assert_close(value, recorded[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_what_is_added_to_the_features_is_close_to_the_recorded_half_precision(case):
    net, io, *_ = case
    ours, half = (x.float() - io["prev_feat"] for x in (advance(net, io), io["out_cpu_autocast_bf16"]))
    assert torch.cosine_similarity(ours.flatten(), half.flatten(), dim=0) > 0.999
