"""Linears in lower precision: where they stand, and what tells them apart."""

import json

import pytest
import torch
from safetensors.torch import save_file
from test_linear import LOWER
from tiny_parts import MARKERS, moment, naming, text_base, wrap
from torch import nn

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.dimoo import LuminaDiMOO
from migm.bases.linear import (
    KINDS,
    QuantisedLinear,
    quantise,
)
from migm.bases.llada import PREFIX, LLaDA, LLaDAConfig, RMSNorm
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer, PackedAttention
from migm.bases.words import Checksums
from migm.config.earlier import former_settings
from migm.runtime.errors import UserError
from migm.shortcuts.checkpoint import save_shortcut
from migm.shortcuts.dimoo import DiMOOShortcut

CONFIG = LLaDAConfig(48, 4, 2, 64, 60, 10000.0, 1e-5)


def relative(found, right):
    """The error of each output over its own size."""
    return (found.double() - right).norm(dim=0) / right.norm(dim=0)


def kinds_of(module):
    return {name: type(part) for name, part in module.named_modules()}


@pytest.mark.parametrize("kind", LOWER)
def test_the_blocks_linears_alone_are_replaced(kind, make_transformer):
    base = wrap(make_transformer(), "float32")
    before = kinds_of(base.transformer)
    lower = wrap(make_transformer(), "float32", linear=kind)
    after = kinds_of(lower.transformer)
    changed = {name for name in after if after[name] is not before.get(name)}
    parts = ("0.fn.mha.in_proj", "0.fn.mha.out_proj", "1.fn.net.0", "1.fn.net.3")
    assert changed == {f"transformer.layers.{i}.{part}" for i in range(2) for part in parts}
    assert all(after[name] is KINDS[kind] for name in changed)
    assert not any("in_proj_weight" in name for name in lower.transformer.state_dict())


@pytest.mark.parametrize("kind", LOWER)
def test_a_text_base_replaces_its_blocks_linears_alone(kind):
    lower = text_base(linear=kind, dtype="float32").transformer
    kinds = kinds_of(lower)
    assert {name.split(".")[2] for name, made in kinds.items() if issubclass(made, QuantisedLinear)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "attn_out",
        "ff_proj",
        "up_proj",
        "ff_out",
    }
    assert type(lower.ff_out) is nn.Linear
    assert not any(isinstance(part, nn.Linear) for part in lower.blocks.modules())
    assert all(isinstance(block.attn_norm, RMSNorm) for block in lower.blocks)


@pytest.mark.parametrize("kind", ["plain", *LOWER])
def test_random_weights_are_the_same_for_every_kind(kind):
    ours, plain = (text_base(linear=each, dtype="float32").transformer for each in (kind, "plain"))
    assert torch.equal(ours.wte.weight, plain.wte.weight)
    weight, right = ours.blocks[1].q_proj.weight.float(), plain.blocks[1].q_proj.weight
    scale = 1 if kind == "plain" else ours.blocks[1].q_proj.scale.T
    torch.testing.assert_close(
        weight * scale, right, rtol=0, atol=0.0 if kind == "plain" else 0.05 * float(right.abs().max())
    )


@pytest.mark.parametrize("kind", LOWER)
def test_features_are_near_those_of_the_plain_base(kind, make_transformer):
    plain, lower = (wrap(make_transformer(), "float32", linear=each) for each in ("plain", kind))
    tokens = torch.randint(25, (3, 16))
    found, right = (
        base.features(tokens, base.encode(torch.tensor([1, 2, 3]), guided=True)[0], moment(torch.ones(3)))
        for base in (lower, plain)
    )
    error = (found - right).norm() / right.norm()
    assert 1e-4 < error < {"fp8_rowwise": 0.1, "int8_weights": 0.02}[kind]


@pytest.mark.parametrize("kind", LOWER)
def test_layers_by_rows_are_the_fused_ones(kind, make_transformer):
    base = wrap(make_transformer(), "float32", linear=kind)
    x, ctx = base.prepare(
        torch.randint(25, (2, 16)), base.encode(torch.tensor([1, 2]), guided=False)[0], moment(torch.ones(2))
    )
    block = base.blocks[0]
    y = x + block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
    torch.testing.assert_close(y + block.mlp_delta(y, ctx), block(x, ctx), rtol=1e-4, atol=1e-4)


def test_a_plain_attention_projects_as_it_did():
    torch.manual_seed(0)
    attention = PackedAttention(48, 4)
    nn.init.normal_(attention.in_proj_bias)
    x, source = torch.randn(2, 9, 48), torch.randn(2, 5, 48)
    q = nn.functional.linear(x, attention.in_proj_weight[:48], attention.in_proj_bias[:48])
    k, v = nn.functional.linear(source, attention.in_proj_weight[48:], attention.in_proj_bias[48:]).chunk(2, -1)
    heads = [attention._heads(part) for part in (q, k, v)]
    assert torch.equal(attention(x, source), attention._attend(*heads))
    assert sorted(attention.state_dict()) == ["in_proj_bias", "in_proj_weight", "out_proj.bias", "out_proj.weight"]


@pytest.mark.parametrize("make", ["maskgit", "dimoo"])
def test_fingerprints_tell_kinds_apart_and_plain_ones_stay(make, make_transformer):
    def made(kind):
        return wrap(make_transformer(), "float32", linear=kind) if make == "maskgit" else text_base_of(kind)

    plain, *lower = (made(kind) for kind in ("plain", *LOWER))
    prints = [base.fingerprint() for base in (plain, *lower)]
    assert len(set(prints)) == 3
    assert {base.plain_fingerprint() for base in (plain, *lower)} == {plain.fingerprint()}


def text_base_of(kind, **changes):
    """A text base whose weights nothing changes after they were drawn or loaded."""
    torch.manual_seed(0)
    vq = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1)
    parts = {"random_weights": True, "dtype": "float32", "device": "cpu", "linear": kind, **changes}
    return LuminaDiMOO(CONFIG, vq, 24, 16, 16, MARKERS, "", **parts)


def checkpoint(folder):
    """A checkpoint of a text base in two shards, and its tokenizer's file."""
    base = text_base_of("plain")
    tensors = {PREFIX + name: tensor.bfloat16() for name, tensor in base.transformer.state_dict().items()}
    names = sorted(tensors)
    of = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(of.values()):
        save_file({name: tensors[name] for name in names if of[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": of}))
    CONFIG.write(folder / "config.json")
    save_file({k: v.contiguous() for k, v in base.tokenizer.state_dict().items()}, folder / "vq.safetensors")
    return base


@pytest.mark.parametrize("kind", LOWER)
def test_a_checkpoint_is_replaced_tensor_by_tensor(kind, tmp_path, monkeypatch):
    checkpoint(tmp_path)
    monkeypatch.setattr("migm.bases.dimoo.TokenizerFile", lambda *_: Checksums(30))
    files = {"random_weights": False, "weights": tmp_path, "tokenizer_weights": tmp_path / "vq.safetensors"}
    plain = text_base_of("plain", **files)
    held, made = [], KINDS[kind].quantised

    def watched(weight):
        held.append(sum(isinstance(part, nn.Linear) and not part.weight.is_meta for part in watched.net.modules()))
        return made(weight)

    class Net(LLaDA):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            watched.net = self

    monkeypatch.setattr(KINDS[kind], "quantised", staticmethod(watched))
    monkeypatch.setattr("migm.bases.prompted.LLaDA", Net)
    lower = text_base_of(kind, **files)
    assert len(held) == 14
    assert max(held) <= 2  # the one at work, and the head
    for block, right in zip(lower.transformer.blocks, plain.transformer.blocks, strict=True):
        values, scale = made(right.ff_proj.weight)
        assert torch.equal(block.ff_proj.weight.float(), values.float())
        assert torch.equal(block.ff_proj.scale, scale.T)
    assert lower.plain_fingerprint() == plain.fingerprint() != lower.fingerprint()


def test_sizes_that_8_bit_floats_cannot_multiply_are_refused_by_the_key(make_transformer):
    torch.manual_seed(0)
    odd = MaskTransformer(16, 24, 10, 40, 2, 4, 96)
    with pytest.raises(
        UserError, match=naming("base.linear=fp8_rowwise", "16", "120 x 40", "base.linear=int8_weights")
    ):
        wrap(odd, "float32", linear="fp8_rowwise")
    assert wrap(MaskTransformer(16, 24, 10, 40, 2, 4, 96), "float32", linear="int8_weights").linear == "int8_weights"


def features_after_one_step(base, predictor):
    branch = base.encode(torch.tensor([1, 2]), guided=True)[0]
    tokens = torch.randint(24, (2, 16), generator=torch.Generator().manual_seed(0))
    advance = predictor.start(base, branch)
    advance.update(0, base.features(tokens, branch, moment(torch.ones(2))))
    return advance.predict(1, tokens, torch.tensor([[1, 5, 9], [0, 2, 3]]), moment(torch.ones(2)))


@pytest.mark.parametrize("kind", LOWER)
def test_a_shortcut_has_linears_of_its_own(kind, make_shortcut, tmp_path, make_transformer):
    """Its kind is not that of the base; it stands in the identity and in the fingerprint."""
    base = wrap(make_transformer(), "float32")
    file = tmp_path / "shortcut.safetensors"
    net = make_shortcut(bottleneck_ratio=1)
    save_shortcut(net, base.fingerprint(), file)
    plain, lower = Shortcut(file), Shortcut(file, linear=kind)
    ours, right = (features_after_one_step(base, each) for each in (lower, plain))
    assert 0 < (ours - right).norm() / right.norm() < 0.1
    assert torch.equal(features_after_one_step(base, Shortcut(module=net, linear=kind)), ours)
    assert lower.fingerprint(base) != plain.fingerprint(base)
    settings = [Accelerator(Uniform(2), each).identity for each in (plain, lower)]
    assert "linear" not in settings[0]
    assert f"linear={kind}" in settings[1]
    module, _ = lower._network(base)
    quantised = {name for name, part in module.named_modules() if isinstance(part, QuantisedLinear)}
    assert quantised
    assert all(name.startswith("blocks.") for name in quantised)
    assert not any(isinstance(part, nn.Linear) for part in module.blocks.modules())


@pytest.mark.parametrize("kind", LOWER)
def test_a_base_of_lower_precision_takes_shortcuts_of_the_plain_one_alone(
    kind, make_shortcut, tmp_path, make_transformer
):
    plain, lower = (wrap(make_transformer(), "float32", linear=each) for each in ("plain", kind))
    for base in (plain, lower):
        save_shortcut(make_shortcut(), base.fingerprint(), tmp_path / f"{base.linear}.safetensors")
    assert Shortcut(tmp_path / "plain.safetensors").fingerprint(lower)
    assert Shortcut(tmp_path / f"{kind}.safetensors").fingerprint(lower)
    with pytest.raises(UserError, match="was trained for base"):
        Shortcut(tmp_path / f"{kind}.safetensors").fingerprint(plain)


@pytest.mark.parametrize("kind", LOWER)
def test_a_text_shortcut_keeps_its_key_projection_and_time(kind):
    torch.manual_seed(1)
    net = DiMOOShortcut(96, num_heads=4, mlp_channels=64, rope_theta=10000.0)
    lower = Shortcut(module=net, linear=kind).module
    assert type(lower.proj_in) is type(lower.adaLN_modulation) is nn.Linear
    assert {type(part) for part in lower.blocks[0].cross_attn.children()} == {RMSNorm, KINDS[kind]}
    assert type(net.blocks[0].cross_attn.q_proj) is nn.Linear  # the given module stays


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UserError, match=naming("accelerator.predictor.linear=int8_weights", "Linear", "no blocks")):
        Shortcut(module=nn.Linear(4, 4), linear="int8_weights")


def test_plain_changes_nothing():
    net = nn.Sequential(nn.Linear(4, 4))
    before = net[0]
    quantise(net, "plain", "key")
    assert net[0] is before


def test_hashes_of_earlier_results_know_no_plain_linears():
    node = {"policy": None, "predictor": {"_target_": "migm.accelerators.predictors.shortcut.Shortcut"}}
    plain, lower = ({**node, "predictor": {**node["predictor"], "linear": kind}} for kind in ("plain", "int8_weights"))
    assert former_settings(plain) == former_settings(node) != former_settings(lower)
