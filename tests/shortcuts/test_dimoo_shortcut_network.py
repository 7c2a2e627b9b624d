"""The DiMOO shortcut: published sizes, and its laws."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.base import Control
from migm.runtime.errors import UserError
from migm.shortcuts.dimoo import DiMOOShortcut

SIZES = {"channels": 48, "num_heads": 4, "mlp_channels": 40}
VARIANTS = [
    {},
    {"bottleneck_ratio": 1, "depth": 2},
    {"bottleneck_ratio": 3, "time": False},
    {"cross_attention": False},
    {"prompt": False},
]
every_variant = pytest.mark.parametrize("changes", VARIANTS, ids=str)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def make(**changes):
    """A random float64 network, of other sizes than any default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = DiMOOShortcut(**{**SIZES, **changes}).double().eval()
        for name, weight in net.named_parameters():
            if "norm" in name or name == "ln_f.weight":
                torch.nn.init.normal_(weight, 1.0, 0.3)  # ones would hide a wrong norm
    return net


def meta(**changes):
    with torch.device("meta"):  # sizes only
        return DiMOOShortcut(**{"channels": 4096, **changes})


@pytest.fixture
def case():
    """Features (3, 11, 48); new tokens (3, 5, 48), the first two of the prompt; ratios (3,), in float64."""
    generator = torch.Generator().manual_seed(0)
    features, new = (torch.randn(3, n, 48, generator=generator, dtype=torch.float64) for n in (11, 5))
    rows = torch.tensor([[0, 1, 3, 4, 6], [0, 1, 2, 5, 6], [0, 1, 2, 3, 5]])
    return features, Control(new, rows, prompt=2), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)


def entries(new: Control, *chosen: int) -> Control:
    """A few of the new tokens only."""
    at = torch.tensor(chosen, dtype=torch.long)
    return new._replace(
        embeddings=new.embeddings[:, at],
        rows=new.rows[:, at],
        mask=None if new.mask is None else new.mask[:, at],
        prompt=sum(i < new.prompt for i in chosen),
    )


def row(new: Control, i: int) -> Control:
    """Those of one sequence of the batch."""
    return Control(*(x if isinstance(x, int) or x is None else x[i : i + 1] for x in new))


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 219_797_204),
        ({"depth": 2}, 404_354_772),
        ({"bottleneck_ratio": 1}, 474_252_288),
        ({"bottleneck_ratio": 4}, 99_236_352),
        ({"cross_attention": False}, 211_406_548),
        ({"time": False}, 209_733_632),
    ],
    ids=str,
)
def test_parameter_counts_are_the_published_ones(changes, count):
    assert sum(p.numel() for p in meta(**changes).parameters()) == count


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    shapes = {"ln_f.weight": (2048,)}
    linears = {
        "proj_in": (2048, 4096),
        "new_token_proj_in": (2048, 4096),
        "proj_out": (4096, 2048),
        "time_embedder.mlp.0": (724, 256),
        "time_embedder.mlp.2": (2048, 724),
        "adaLN_modulation": (4096, 2048),
    }
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    for block in ("blocks.0.cross_attn", "blocks.0.self_attn"):
        shapes |= {f"{block}.{name}.weight": (2048, 2048) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"{block}.{name}.weight": (12288, 2048) for name in ("ff_proj", "up_proj")}
        shapes |= {f"{block}.{name}.weight": (2048,) for name in ("attn_norm", "ff_norm")}
        shapes[f"{block}.ff_out.weight"] = (2048, 12288)
    ours = {name: tuple(value.shape) for name, value in meta().state_dict().items()}
    assert len(ours) == 31
    assert ours == shapes


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"bottleneck_ratio": 1}, {"proj_in", "new_token_proj_in", "proj_out"}),
        ({"cross_attention": False}, {"new_token_proj_in"}),
        ({"time": False}, {"time_embedder", "adaLN_modulation"}),
        ({"prompt": False}, set()),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_ablations_lack_the_names_that_they_do_not_use(changes, absent):
    every, ours = ({name.split(".")[0] for name in meta(**c).state_dict()} for c in ({}, changes))
    assert every - ours == absent
    assert ours <= every


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bottleneck_ratio": 3}, r"shortcut\.bottleneck_ratio=3 must divide .* 4096 channels"),
        ({"num_heads": 7}, r"shortcut\.num_heads=7 must divide the inner width 2048"),
        ({"num_heads": 2048}, r"shortcut\.num_heads=2048 makes heads of 1 channels; .* even"),
        ({"bottleneck_ratio": 128}, r"shortcut\.num_heads=32 makes heads of 1 channels"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_by_name(changes, words):
    with pytest.raises(UserError, match=words):
        meta(**changes)


def test_fresh_blocks_are_drawn_by_the_rule_of_the_base():
    """Normal of std 1 / sqrt(fan-in), cut at 3 std, no factor for depth (docs/originals/dimoo.md, Shortcut network)."""
    net = DiMOOShortcut(256, depth=2, num_heads=4, mlp_channels=384)
    for name, weight in net.blocks.named_parameters():
        scaled = weight.detach() * weight.shape[-1] ** 0.5
        if "norm" in name:
            assert (weight == 1).all()
        else:
            assert scaled.std().item() == pytest.approx(0.987, abs=0.03), name  # of a normal cut at 3
            assert scaled.abs().max() <= 3.001, name
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.calibrate(torch.full((1, 9, 256), 0.01))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@every_variant
def test_padding_has_no_influence(case, changes):
    features, new, ratio = case
    net, keys, rows = make(**changes), [5, 3, 2], [7, 11, 9]
    key_mask, row_mask = (torch.arange(n) < torch.tensor(x)[:, None] for n, x in ((5, keys), (11, rows)))
    padded = new._replace(
        embeddings=new.embeddings.where(key_mask[..., None], 1e3), rows=new.rows.where(key_mask, 10), mask=key_mask
    )
    got = net(features.where(row_mask[..., None], 1e3), padded._replace(row_mask=row_mask), ratio)
    for i, (k, t) in enumerate(zip(keys, rows, strict=True)):
        alone = net(features[i : i + 1, :t], entries(row(new, i), *range(k)), ratio[i : i + 1])
        torch.testing.assert_close(got[i : i + 1, :t], alone, **CLOSE)


def test_padding_has_no_influence_in_bfloat16(case):
    """Where attention on CPUs goes another way; the last row has no new token."""
    features, new, ratio = case
    net, features = make().bfloat16(), features.bfloat16()
    new = new._replace(embeddings=new.embeddings.bfloat16())
    mask = torch.arange(5) < torch.tensor([3, 5, 0])[:, None]
    padded = new._replace(embeddings=new.embeddings.where(mask[..., None], 50.0), mask=mask)
    added = net(features, padded, ratio) - features
    for i, k in enumerate((3, 5, 0)):
        alone = net(features, entries(new, *range(k)), ratio)[i] - features[i]
        assert (added[i] - alone).norm() < 0.02 * alone.norm()


@pytest.mark.parametrize("changes", VARIANTS[:3], ids=str)
def test_no_new_tokens_add_nothing(case, changes):
    """As a first attention whose output projection is zero; `mask` says the same as no entries."""
    features, new, ratio = case
    net, without = make(**changes), make(**changes)
    for block in without.blocks:
        torch.nn.init.zeros_(block.cross_attn.attn_out.weight)
    nothing = without(features, new, ratio)
    torch.testing.assert_close(net(features, entries(new), ratio), nothing, **CLOSE)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]).bool()
    got = net(features, new._replace(mask=mask), ratio)
    torch.testing.assert_close(got[1], nothing[1], **CLOSE)
    alone = net(features[:1], entries(row(new, 0), 0, 1, 3), ratio[:1])
    torch.testing.assert_close(got[:1], alone, **CLOSE)
    assert not torch.allclose(got[0], nothing[0], atol=0.01)


def test_a_kernel_is_never_asked_for_without_keys(case, monkeypatch):
    """What kernels give then, and its gradients, is not the same on every device."""
    features, new, ratio = case
    counts = []

    def watched(q, k, v, **options):
        counts.append(k.shape[2])
        return scaled_dot_product_attention(q, k, v, **options)

    monkeypatch.setattr("migm.bases.attention.scaled_dot_product_attention", watched)
    make()(features, entries(new), ratio)
    assert counts == [11]


@every_variant
@pytest.mark.parametrize("keys", ["none", "one row has none"])
def test_gradients_are_finite_and_those_of_every_row_alone(case, changes, keys):
    features, new, ratio = case
    net = make(**changes)
    if keys == "none":
        new = entries(new)
        alone = [(slice(i, i + 1), row(new, i)) for i in range(3)]
    else:
        new = new._replace(mask=torch.tensor([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]).bool())
        chosen = [(0, 1, 2, 3), (), (2, 3, 4)]
        alone = [(slice(i, i + 1), entries(row(new, i), *c)._replace(mask=None)) for i, c in enumerate(chosen)]

    def gradients(calls):
        net.zero_grad()
        for rows, control in calls:
            net(features[rows], control, ratio[rows]).square().sum().backward()
        return {name: weight.grad.clone() for name, weight in net.named_parameters()}

    wanted = gradients(alone)
    for name, gradient in gradients([(slice(None), new)]).items():
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-8)


def test_the_prompt_switch_drops_the_entries_of_the_prompt(case):
    features, new, ratio = case
    with_prompt, without = make(), make(prompt=False)
    assert with_prompt.state_dict().keys() == without.state_dict().keys()
    got = without(features, new._replace(mask=torch.ones(3, 5, dtype=torch.bool)), ratio)
    torch.testing.assert_close(got, with_prompt(features, entries(new, 2, 3, 4), ratio), **CLOSE)
    assert not torch.allclose(got, with_prompt(features, new, ratio), atol=1e-3)
    only = without(features, entries(new, 0, 1), ratio)  # nothing is left
    torch.testing.assert_close(only, with_prompt(features, entries(new), ratio), **CLOSE)


def test_new_tokens_are_told_apart_by_their_rows_not_by_their_order(case):
    features, new, ratio = case
    net = make()
    before = net(features, new, ratio)
    torch.testing.assert_close(net(features, entries(new, 4, 2, 0, 3, 1), ratio), before, **CLOSE)
    assert not torch.allclose(net(features, new._replace(rows=new.rows.flip(1)), ratio), before, atol=1e-3)


def test_without_cross_attention_new_tokens_are_ignored(case):
    features, new, ratio = case
    net = make(cross_attention=False)
    assert torch.equal(net(features, entries(new), ratio), net(features, new, ratio))


@pytest.mark.parametrize("time", [True, False])
def test_the_mask_ratio_matters_exactly_when_time_is_on(case, time):
    features, new, ratio = case
    net = make(time=time)
    assert torch.equal(net(features, new, ratio / 2), net(features, new, ratio)) is not time


def test_dropout_while_sampling_is_refused():
    with pytest.raises(UserError, match=r"accelerator\.predictor\.dropout=0\.1, but a DiMOOShortcut has none"):
        Shortcut(module=make(), dropout=0.1)
