"""Laws that hold between accelerators (docs/originals/methods.md, Laws 8 to 11)."""

from itertools import pairwise

import pytest
import torch
from tiny_parts import moment

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.transformer import PackedAttention
from migm.runtime.errors import UserError
from migm.shortcuts.checkpoint import save_shortcut


class Counting:
    """A base that counts how often its backbone runs."""

    def __init__(self, base):
        self.base, self.calls = base, 0

    def __getattr__(self, name):
        return getattr(self.base, name)

    def features(self, *args):
        self.calls += 1
        return self.base.features(*args)


def zeroed(shortcut):
    shortcut.proj_out.weight.zero_()
    shortcut.proj_out.bias.zero_()
    return shortcut


@pytest.mark.parametrize("name", ["reuse", "shortcut"])
def test_full_steps_everywhere_equal_vanilla_bit_for_bit(run, make_accelerator, name):
    vanilla, vanilla_records = run(make_accelerator("vanilla"))
    tokens, records = run(make_accelerator(name, 6))
    assert torch.equal(tokens, vanilla)
    for ours, theirs in zip(records, vanilla_records, strict=True):
        assert ours.is_full
        assert torch.equal(ours.features[0], theirs.features[0])


@pytest.mark.parametrize("name", ["reuse", "shortcut"])
@pytest.mark.parametrize("num_full_steps", [1, 2, 4])
def test_the_base_runs_at_exactly_b_steps(run, make_accelerator, tiny_base, name, num_full_steps):
    base = Counting(tiny_base)
    _, records = run(make_accelerator(name, num_full_steps), base=base)
    assert base.calls == num_full_steps
    assert [r.index for r in records if r.is_full] == Uniform(num_full_steps).steps(6)
    assert records[0].is_full


@pytest.mark.parametrize("name", ["reuse", "shortcut"])
def test_the_first_full_steps_features_are_vanillas_and_the_next_ones_are_not(run, make_accelerator, name):
    _, vanilla = run(make_accelerator("vanilla"))
    _, records = run(make_accelerator(name, 1))
    assert torch.equal(records[0].features[0], vanilla[0].features[0])
    assert not torch.allclose(records[1].features[0], vanilla[1].features[0])


def test_reuse_repeats_the_last_full_steps_features(run, make_accelerator):
    _, records = run(make_accelerator("reuse", 2))
    for record, source in zip(records, [0, 0, 0, 3, 3, 3], strict=True):
        assert torch.equal(record.features[0], records[source].features[0])
    assert not torch.allclose(records[0].features[0], records[3].features[0])


@pytest.mark.parametrize("num_full_steps", [1, 2, 3])
def test_a_shortcut_that_adds_nothing_equals_reuse(run, make_accelerator, make_shortcut, num_full_steps):
    shortcut = Accelerator(Uniform(num_full_steps), Shortcut(module=zeroed(make_shortcut())))
    tokens, records = run(shortcut)
    wanted, wanted_records = run(make_accelerator("reuse", num_full_steps))
    assert torch.equal(tokens, wanted)
    assert all(torch.equal(a.features[0], b.features[0]) for a, b in zip(records, wanted_records, strict=True))


def test_a_random_shortcut_differs_from_reuse(run, make_accelerator):
    assert not torch.equal(run(make_accelerator("shortcut", 1))[0], run(make_accelerator("reuse", 1))[0])


@pytest.fixture
def advance(tiny_base, make_shortcut):
    """tokens, new positions -> features predicted after one full step on an image of masks."""
    (branch,) = tiny_base.encode(torch.tensor([3]), guided=True)
    features = tiny_base.features(torch.full((1, 16), 24), branch, moment(torch.ones(1)))

    def predict(tokens, positions, ratio=0.75):
        forecast = Shortcut(module=make_shortcut()).start(tiny_base, branch)
        forecast.update(0, features)
        return forecast.predict(1, tokens, torch.tensor([positions]), moment(torch.tensor([ratio])))

    return predict


def test_a_predicted_step_sees_new_tokens_their_positions_and_the_mask_ratio_and_no_old_token(advance):
    tokens = torch.full((1, 16), 24)
    tokens[0, [2, 5, 9, 11]] = torch.tensor([4, 7, 1, 20])
    before = advance(tokens, [5, 9])
    new, old = tokens.clone(), tokens.clone()
    new[0, 9] = 3
    old[0, 2] = 3
    assert not torch.allclose(advance(new, [5, 9]), before, atol=1e-4)
    assert torch.equal(advance(old, [5, 9]), before)
    moved = tokens.clone()
    moved[0, [5, 9]] = 24
    moved[0, [6, 9]] = torch.tensor([7, 1])
    assert not torch.allclose(advance(moved, [6, 9]), before, atol=1e-6)
    assert not torch.allclose(advance(tokens, [5, 9], ratio=0.5), before, atol=1e-4)


def test_cheap_steps_follow_one_another_from_the_predicted_features(run, tiny_base, make_accelerator, make_shortcut):
    _, records = run(make_accelerator("shortcut", 1))
    shortcut = make_shortcut()
    for last, now in pairwise(records):
        new = tiny_base.control(last.tokens.gather(1, last.new_positions), last.new_positions, last.branches[0])
        wanted = shortcut(last.features[0], new, now.mask_ratio.repeat(2))
        torch.testing.assert_close(now.features[0], wanted)


def test_a_policy_with_cheap_steps_needs_a_predictor(run):
    with pytest.raises(ValueError, match=r"accelerator\.predictor is missing"):
        run(Accelerator(Uniform(2)))


def test_a_predictor_loads_the_shortcut_trained_for_its_base(run, tmp_path, tiny_base, make_base, make_shortcut):
    path = tmp_path / "shortcut.safetensors"
    save_shortcut(make_shortcut().float(), tiny_base.fingerprint(), path)
    predictor = Shortcut(path)
    tokens, _ = run(Accelerator(Uniform(2), predictor))
    wanted, _ = run(Accelerator(Uniform(2), Shortcut(module=make_shortcut().float().double())))
    assert torch.equal(tokens, wanted)
    assert len(predictor.fingerprint(tiny_base)) == 12
    with pytest.raises(UserError, match=r"accelerator\.predictor\.weights=.*was trained for base"):
        run(Accelerator(Uniform(2), Shortcut(path)), base=make_base(seed=1))


def test_what_was_not_learned_has_no_fingerprint(tiny_base):
    assert Accelerator(Uniform(2), Reuse(), "reuse").fingerprint(tiny_base) == ""


def test_dropout_stays_active_where_it_is_asked_for(run, make_shortcut):
    """Table 1 was measured so; without it two generations are equal, as everywhere."""
    module = make_shortcut(dropout=0.1)

    def tokens(dropout):
        predictor = Shortcut(module=module, dropout=dropout)
        return run(Accelerator(Uniform(2), predictor, "shortcut"), labels=(3, 7, 0, 1))[0]

    assert not torch.equal(tokens(0.5), tokens(0.5))
    assert torch.equal(tokens(0.0), tokens(0.0))
    assert module.training is False  # the given network is left as it was


def test_dropout_reaches_the_attention_weights(make_shortcut):
    predictor = Shortcut(module=make_shortcut(), dropout=0.25)
    parts = [m for m in predictor.module.modules() if isinstance(m, PackedAttention | torch.nn.Dropout)]
    assert {m.dropout if isinstance(m, PackedAttention) else m.p for m in parts} == {0.25}
    assert all(m.training for m in parts)


def test_a_published_shortcut_of_another_width_is_refused(tmp_path, tiny_base, make_shortcut):
    torch.save(make_shortcut(channels=96).float().state_dict(), tmp_path / "published.pth")
    with pytest.raises(UserError, match="features of 96 channels, this base has 48"):
        Shortcut(tmp_path / "published.pth", num_heads=4).fingerprint(tiny_base)
