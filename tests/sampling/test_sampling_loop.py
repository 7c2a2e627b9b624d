"""The loop's laws, for vanilla sampling and for accelerated sampling alike."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_parts import Apart

from migm.bases.base import image_rows
from migm.runtime.errors import UserError
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant, Ramp
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor, Increments
from migm.sampling.select import Confidence, Random

COUNTS = [1, 2, 3, 3, 4, 3]
MASK = 24


@pytest.fixture(params=["vanilla", "reuse", "shortcut"])
def accelerator(request, make_accelerator):
    return make_accelerator(request.param)


def test_revealed_tokens_never_change_and_counts_follow_the_schedule(run, accelerator):
    tokens, records = run(accelerator, labels=(3, 7, 0))
    before, left = torch.full((3, 16), MASK), 16
    for record, count in zip(records, COUNTS, strict=True):
        seen = before != MASK
        assert torch.equal(record.tokens[seen], before[seen])
        assert ((before == MASK).sum(1) == left).all()
        assert torch.equal(record.mask_ratio, torch.full((3,), left / 16))
        new = (record.tokens != MASK) & ~seen
        assert torch.equal(record.new_positions, new.nonzero()[:, 1].view(3, count))
        before, left = record.tokens, left - count
    assert left == 0
    assert torch.equal(tokens, before)
    assert tokens.min() >= 0
    assert tokens.max() < MASK


def test_records_say_what_happened(run, accelerator):
    _, records = run(accelerator)
    assert [record.index for record in records] == list(range(6))
    assert {record.num_steps for record in records} == {6}
    assert all(len(r.features) == 1 and r.features[0].shape == (4, 17, 48) for r in records)
    assert all([branch.condition.tolist() for branch in r.branches] == [[[3], [7], [10], [10]]] for r in records)


@pytest.mark.parametrize("name", ["vanilla", "reuse"])
@pytest.mark.parametrize("on", ["features", "logits"])
def test_halves_in_two_branches_of_different_length_change_no_token(run, tiny_base, make_accelerator, name, on):
    labels = (3, 8)  # sequences of 20 and 17 rows, and of 17 unconditional ones
    tokens, records = run(make_accelerator(name), labels, guidance=Ramp(2.0, on))
    found, apart = run(make_accelerator(name), labels, base=Apart(tiny_base), guidance=Ramp(2.0, on))
    assert torch.equal(found, tokens)
    for ours, theirs in zip(apart, records, strict=True):
        assert [f.shape for f in ours.features] == [(2, 20, 48), (2, 17, 48)]
        halves = [image_rows(f, branch) for f, branch in zip(ours.features, ours.branches, strict=True)]
        torch.testing.assert_close(torch.cat(halves), image_rows(theirs.features[0], theirs.branches[0]))


def test_a_shortcut_advances_two_branches_each_by_itself(run, tiny_base, make_accelerator, make_shortcut):
    base, shortcut = Apart(tiny_base), make_shortcut()
    _, records = run(make_accelerator("shortcut", 1), base=base)
    for last, now in itertools.pairwise(records):
        for branch, before, after in zip(now.branches, last.features, now.features, strict=True):
            new = base.control(last.tokens.gather(1, last.new_positions), last.new_positions, branch)
            torch.testing.assert_close(after, shortcut(before, new, now.mask_ratio))


def test_two_generations_in_a_row_are_equal(run, accelerator):
    first, _ = run(accelerator)
    run(accelerator, labels=(5, 5, 5), seed=9)  # whatever came between must leave nothing behind
    assert torch.equal(run(accelerator)[0], first)
    assert not torch.equal(run(accelerator, seed=1)[0], first)


def test_an_image_does_not_depend_on_its_batch(run, accelerator):
    together, _ = run(accelerator, labels=(3, 7, 1), images=(0, 1, 40))
    for i, (label, image) in enumerate([(3, 0), (7, 1), (1, 40)]):
        alone, _ = run(accelerator, labels=(label,), images=(image,))
        assert torch.equal(alone[0], together[i])
    turned, _ = run(accelerator, labels=(1, 3, 7), images=(40, 0, 1))
    assert torch.equal(turned, together[[2, 0, 1]])
    assert len(together.unique(dim=0)) == 3


def test_interleaved_generations_do_not_disturb_each_other(run, accelerator):
    outer, inner = run(accelerator)[0], run(accelerator, labels=(2,), seed=4)[0]
    nested = []
    # A whole second generation with the same accelerator runs inside every step of the first.
    meddler = SimpleNamespace(on_step=lambda _: nested.append(run(accelerator, labels=(2,), seed=4)[0]))
    assert torch.equal(run(accelerator, observers=[meddler])[0], outer)
    assert len(nested) == 6
    assert all(torch.equal(tokens, inner) for tokens in nested)


def test_global_random_states_are_neither_read_nor_changed(run, accelerator):
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, _ = run(accelerator)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(1)
    assert torch.equal(run(accelerator)[0], first)


def test_labels_and_guidance_reach_the_tokens(run, accelerator):
    plain, _ = run(accelerator)
    assert not torch.equal(run(accelerator, labels=(4, 8))[0], plain)
    assert not torch.equal(run(accelerator, guidance=Constant(9.0))[0], plain)


def test_no_guidance_equals_guidance_of_scale_zero(run, accelerator):
    without, records = run(accelerator, guidance=None)
    assert records[0].features[0].shape == (2, 17, 48)  # one branch, half the cost
    assert torch.equal(without, run(accelerator, guidance=Constant(0.0))[0])
    assert torch.equal(without, run(accelerator, guidance=Ramp(0.0))[0])


class Ones:
    """One token per step: a schedule need only have `counts`."""

    def counts(self, num_tokens, num_steps):
        return [1] * num_steps


@pytest.mark.parametrize(
    ("num_steps", "schedule"), [(1, Increments()), (2, CosineFloor()), (16, CosineFloor()), (16, Ones())]
)
@pytest.mark.parametrize("parts", [{}, {"draw": GumbelMax(), "select": Random()}])
def test_any_number_of_steps_reveals_everything(run, make_accelerator, num_steps, schedule, parts):
    accelerator = make_accelerator("shortcut", 1)
    tokens, records = run(accelerator, num_steps=num_steps, num_full_steps=1, schedule=schedule, **parts)
    assert len(records) == num_steps
    assert tokens.max() < MASK


def test_a_schedule_that_cannot_be_met_is_refused_before_the_first_step(run, make_accelerator):
    with pytest.raises(ValueError, match=r"sampling\.num_steps=17"):
        run(make_accelerator("vanilla"), num_steps=17)
    with pytest.raises(ValueError, match=r"sampling\.num_steps=16"):
        run(make_accelerator("vanilla"), num_steps=16)


def test_a_step_that_reveals_nothing_changes_no_token_but_runs(run, accelerator):
    counts = CosineFloor().counts(16, 16)
    assert counts.count(0) == 3
    tokens, records = run(accelerator, num_steps=16, schedule=CosineFloor())
    assert [r.new_positions.shape for r in records] == [(2, count) for count in counts]
    for before, now in itertools.pairwise(records):
        if not now.new_positions.numel():
            assert torch.equal(now.tokens, before.tokens)
    assert all(r.features[0].isfinite().all() for r in records)
    assert tokens.max() < MASK


class InFours:
    """Scores that tie in groups of four, the last positions first."""

    rule = "cutoff"

    def __call__(self, log_prob, noise, step, num_steps, positions):
        return (positions // 4).double()


def test_ties_reveal_more_than_planned_and_later_steps_make_up_for_it(run, accelerator):
    tokens, records = run(accelerator, labels=(3,), select=InFours())
    # The plan leaves 15, 13, 10 and 7 masked; the original takes what ties with the last, and always something.
    assert [r.new_positions[0].tolist() for r in records] == [list(range(n, n + 4)) for n in (12, 8, 4, 0)]
    assert [r.mask_ratio.item() for r in records] == [1, 0.75, 0.5, 0.25]
    assert tokens.max() < MASK


class Once(InFours):
    """Two tokens tie in the first step, none later."""

    def __call__(self, log_prob, noise, step, num_steps, positions):
        return positions.clamp(max=14 if step == 0 else 99).double()


def test_the_plan_is_met_again_after_a_tie(run, make_accelerator):
    _, records = run(make_accelerator("vanilla"), labels=(3,), select=Once())
    assert [r.new_positions.shape[1] for r in records] == [2, 1, 3, 3, 4, 3]


def test_without_ties_a_cutoff_is_a_count(run, accelerator):
    wanted, _ = run(accelerator, labels=(3,), select=Confidence(4.5))
    assert torch.equal(run(accelerator, labels=(3,), select=Confidence(4.5, rule="cutoff"))[0], wanted)


def test_a_cutoff_takes_one_image_at_a_time(run, make_accelerator):
    with pytest.raises(UserError, match=r"sampling\.select\.rule=cutoff.*one image"):
        run(make_accelerator("vanilla"), labels=(3, 7), select=Confidence(4.5, rule="cutoff"))


def test_a_sampler_keys_the_noise_by_seed_and_image(run, tiny_base, make_sampling, make_accelerator):
    wanted, _ = run(make_accelerator("vanilla"), images=(6, 2), seed=3)
    labels, images = torch.tensor([3, 7]), torch.tensor([6, 2])
    sampler = Sampler(tiny_base, make_sampling(), make_accelerator("vanilla"))
    assert torch.equal(sampler.tokens(labels, sampler.noise(3, images)), wanted)


def test_filling_in_keeps_what_is_given_and_samples_the_rest(tiny_base, make_sampling, make_accelerator):
    given = torch.randint(0, 24, (2, 16), generator=torch.Generator().manual_seed(0))
    initial = given.clone()
    initial[0, 4:9] = MASK
    initial[1, [0, 3, 6, 9, 12]] = MASK
    hidden = initial == MASK
    sampler, steps = Sampler(tiny_base, make_sampling(), make_accelerator("shortcut")), []
    watch = SimpleNamespace(on_step=steps.append)
    tokens = sampler.tokens(torch.tensor([3, 7]), sampler.noise(0, torch.arange(2)), [watch], initial)
    assert torch.equal(tokens[~hidden], given[~hidden])
    assert [s.new_positions.shape[1] for s in steps] == [1, 2, 2]  # 1, 2, 3, ... of a whole image, until 5 are done
    assert torch.equal(steps[0].mask_ratio, torch.full((2,), 5 / 16))
    everything = [initial] + [s.tokens for s in steps]
    assert all(((a == MASK) >= (b == MASK)).all() for a, b in itertools.pairwise(everything))


def test_filling_in_everything_is_sampling(tiny_base, make_sampling, make_accelerator):
    sampler = Sampler(tiny_base, make_sampling(), make_accelerator("vanilla"))
    asked = (torch.tensor([3]), sampler.noise(0, torch.arange(1)))
    assert torch.equal(sampler.tokens(*asked, initial=torch.full((1, 16), MASK)), sampler.tokens(*asked))


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        (torch.full((1, 15), MASK), "must be (1, 16)"),
        (torch.full((1, 16), 25), "ids from 0 to 24"),
        (torch.full((1, 16), -1), "ids from 0 to 24"),
        (torch.tensor([[MASK] * 16, [MASK] * 15 + [0]]), "between 15 and 16 masked tokens"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(tiny_base, make_sampling, make_accelerator, initial, words):
    sampler = Sampler(tiny_base, make_sampling(), make_accelerator("vanilla"))
    labels, noise = torch.zeros(len(initial), dtype=torch.long), sampler.noise(0, torch.arange(len(initial)))
    with pytest.raises(ValueError, match=re.escape(words)):
        sampler.tokens(labels, noise, initial=initial)
