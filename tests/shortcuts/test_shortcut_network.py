"""The shortcut network: published sizes, and its laws."""

import pytest
import torch

from migm.bases.base import Control
from migm.runtime.errors import UserError
from migm.shortcuts.maskgit import MaskGITShortcut


def advance(net, features, embeddings, mask_ratio, mask=None):
    """One call of the network with new tokens given as bare embeddings."""
    return net(features, Control(embeddings, torch.zeros(embeddings.shape[:2], dtype=torch.long), mask), mask_ratio)


def published_shapes():
    """The published checkpoint: 768 channels, R = 2, one block (docs/originals/maskgit.md, Shortcut keys)."""
    linears = {
        "proj_in": (384, 768),
        "proj_out": (768, 384),
        "new_token_proj_in": (384, 768),
        "last_layer.1": (384, 384),
        "time_embedder.mlp.0": (314, 256),
        "time_embedder.mlp.2": (384, 314),
        "adaLN_modulation": (768, 384),
    }
    norms = ["last_layer.0", "last_layer.3"]
    shapes = {}
    for name in ("blocks.0.cross_attn", "blocks.0.self_attn"):
        shapes[f"{name}.fn.mha.in_proj_weight"], shapes[f"{name}.fn.mha.in_proj_bias"] = (1152, 384), (1152,)
        linears[f"{name}.fn.mha.out_proj"] = (384, 384)
        linears[f"{name}_ff.fn.net.0"], linears[f"{name}_ff.fn.net.3"] = (1536, 384), (384, 1536)
        norms += [f"{name}.norm", f"{name}_ff.norm"]
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (384,)
    return shapes


def meta_shortcut(**changes):
    with torch.device("meta"):  # sizes only
        return MaskGITShortcut(**{"channels": 768, "num_heads": 16, **changes})


@pytest.fixture
def inputs():
    """Features (3, 17, 48), new tokens (3, 5, 48) and mask ratios (3,), in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 17, 48), (3, 5, 48)]
    features, new = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return features, new, torch.tensor([0.9, 0.5, 0.0625], dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 5_081_914),
        ({"time": False}, 4_584_576),
        ({"depth": 2}, 8_630_842),
        ({"bottleneck_ratio": 1}, 16_405_435),
        ({"bottleneck_ratio": 4}, 1_545_054),
    ],
)
def test_parameter_counts_are_the_published_ones(changes, count):
    assert sum(p.numel() for p in meta_shortcut(**changes).parameters()) == count


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    ours = {name: tuple(value.shape) for name, value in meta_shortcut().state_dict().items()}
    assert len(ours) == 42
    assert ours == published_shapes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bottleneck_ratio": 5}, r"shortcut\.bottleneck_ratio=5 must divide .* 768 channels"),
        ({"num_heads": 7}, r"shortcut\.num_heads=7 must divide the inner width 384"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_by_name(changes, words):
    with pytest.raises(UserError, match=words):
        meta_shortcut(**changes)


@pytest.mark.parametrize("changes", [{}, {"bottleneck_ratio": 1, "depth": 2}, {"bottleneck_ratio": 4, "time": False}])
def test_padding_has_no_influence(make_shortcut, inputs, changes):
    features, new, ratio = inputs
    net = make_shortcut(**changes)
    lengths = [5, 2, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    padded = advance(net, features, torch.where(mask[..., None], new, 1e3), ratio, mask)
    for i, k in enumerate(lengths):
        alone = advance(net, features[i : i + 1], new[i : i + 1, :k], ratio[i : i + 1])
        torch.testing.assert_close(padded[i : i + 1], alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        advance(net, features, new, ratio, torch.ones(3, 5, dtype=torch.bool)), advance(net, *inputs)
    )


def test_padding_has_no_influence_in_bfloat16(make_shortcut, inputs):
    features, new, ratio = (x.bfloat16() for x in inputs)
    net = make_shortcut().bfloat16()
    mask = torch.arange(5).expand(3, -1) < 3
    padded = advance(net, features, torch.where(mask[..., None], new, 50.0), ratio, mask)
    torch.testing.assert_close(padded, advance(net, features, new[:, :3], ratio), rtol=0.02, atol=0.02)


def test_a_zero_output_projection_leaves_the_features_unchanged(make_shortcut, inputs):
    net = make_shortcut()
    assert not torch.allclose(advance(net, *inputs), inputs[0], atol=0.01)
    net.proj_out.weight.zero_()
    net.proj_out.bias.zero_()
    assert torch.equal(advance(net, *inputs), inputs[0])


@pytest.mark.parametrize("ratio", [1, 2])
def test_output_depends_on_every_new_token_but_not_on_their_order(make_shortcut, inputs, ratio):
    features, new, mask_ratio = inputs
    net = make_shortcut(bottleneck_ratio=ratio)
    before = advance(net, *inputs)
    for k in range(5):
        changed = new.clone()
        changed[:, k] += torch.linspace(-1, 1, 48)
        assert (advance(net, features, changed, mask_ratio) - before).abs().amax((1, 2)).min() > 1e-5
    torch.testing.assert_close(advance(net, features, new.flip(1), mask_ratio), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ratio", [1, 2])
def test_without_cross_attention_new_tokens_are_ignored(make_shortcut, inputs, ratio):
    features, new, mask_ratio = inputs
    net = make_shortcut(cross_attention=False, bottleneck_ratio=ratio)
    assert not any("new_token" in name for name in net.state_dict())
    before = advance(net, *inputs)
    assert torch.equal(advance(net, features, torch.zeros_like(new), mask_ratio), before)
    assert torch.equal(advance(net, features, new[:, :2], mask_ratio, torch.ones(3, 2, dtype=torch.bool)), before)
    assert not torch.allclose(before, features, atol=0.01)


@pytest.mark.parametrize("time", [True, False])
def test_the_mask_ratio_matters_exactly_when_time_is_on(make_shortcut, inputs, time):
    features, new, ratio = inputs
    net = make_shortcut(time=time)
    assert torch.equal(advance(net, features, new, ratio / 2), advance(net, *inputs)) is not time


def test_a_row_of_a_batch_does_not_depend_on_the_others(make_shortcut, inputs):
    whole = advance(make_shortcut(), *inputs)
    alone = advance(make_shortcut(), *(x[1:2] for x in inputs))
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-10, atol=1e-10)


def test_dropout_acts_in_training_alone(make_shortcut, inputs):
    net, dry = make_shortcut(dropout=0.5), make_shortcut()
    assert torch.equal(advance(net, *inputs), advance(dry, *inputs))
    net.train()
    torch.manual_seed(0)
    assert not torch.allclose(advance(net, *inputs), advance(dry, *inputs), atol=1e-3)


def test_config_rebuilds_the_network(make_shortcut):
    net = make_shortcut(bottleneck_ratio=4, depth=2, time=False, cross_attention=False)
    again = MaskGITShortcut(**net.config)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config


def test_positions_are_told_to_the_first_rows_only(make_shortcut, inputs):
    features, new, ratio = inputs
    swapped = features.clone()
    swapped[:, [0, 1]] = features[:, [1, 0]]
    without, told = make_shortcut(), make_shortcut(num_positions=features.shape[1] - 2)
    for net, first_move in ((without, True), (told, False)):
        ahead, after = advance(net, features, new, ratio), advance(net, swapped, new, ratio)
        assert torch.allclose(after[:, 1], ahead[:, 0]) is first_move
    alone = make_shortcut(num_positions=features.shape[1] - 2)
    alone.pos_emb.data.zero_()
    alone.load_state_dict(without.state_dict(), strict=False)
    assert torch.equal(advance(alone, features, new, ratio), advance(without, features, new, ratio))
    with pytest.raises(UserError, match=r"shortcut\.num_positions=99 is more than the \d+ rows"):
        advance(make_shortcut(num_positions=99), features, new, ratio)
