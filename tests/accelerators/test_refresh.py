"""Refresh policies: which steps the base computes."""

import math
import re
from itertools import pairwise

import pytest

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.recap import Target
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.refresh import Always, Groups, Interval, Table, Uniform, WarmupInterval
from migm.accelerators.teacache import Accumulate
from migm.runtime.errors import UserError


def full_steps(policy, num_steps):
    return [i for i, full in enumerate(policy.plan(num_steps)) if full]


def test_the_default_rule_is_the_one_of_the_published_tables():
    assert Uniform(7).steps(15) == Uniform(7, "reference").steps(15) == [0, 2, 4, 6, 9, 11, 13]


@pytest.mark.parametrize("rule", ["paper", "reference"])
def test_a_plan_has_exactly_b_full_steps_and_begins_with_one(rule):
    for num_steps in range(1, 65):
        for b in range(1, num_steps + 1):
            plan = Uniform(b, rule).plan(num_steps)
            assert len(plan) == num_steps
            assert sum(plan) == b
            assert plan[0]
            gaps = [j - i for i, j in pairwise(Uniform(b, rule).steps(num_steps))]
            assert max(gaps, default=1) <= -(-num_steps // b) + 1  # spread evenly, whatever the rounding


def test_always_is_always():
    assert Always().plan(5) == [True] * 5


@pytest.mark.parametrize("rule", ["paper", "reference"])
@pytest.mark.parametrize("num_full_steps", [-1, 0, 7])
def test_a_budget_outside_1_to_n_is_refused_by_name(rule, num_full_steps):
    with pytest.raises(ValueError, match=rf"sampling\.num_full_steps={num_full_steps} .*sampling\.num_steps=6"):
        Uniform(num_full_steps, rule).plan(6)


@pytest.mark.parametrize(
    ("warmup_ratio", "full"),
    [(0.3, [*range(20), *range(24, 60, 5)]), (0.1, [*range(7), *range(11, 62, 5)]), (0.0, [*range(0, 61, 5)])],
)
def test_warmup_and_interval_give_the_published_full_steps(warmup_ratio, full):
    plan = WarmupInterval(warmup_ratio, 5).plan(64)
    assert [i for i, is_full in enumerate(plan) if is_full] == full
    assert sum(plan) == {0.3: 28, 0.1: 18, 0.0: 13}[warmup_ratio]


@pytest.mark.parametrize(("warmup_ratio", "refresh_interval"), [(1.0, 5), (0.0, 1)])
def test_a_whole_warmup_or_an_interval_of_one_is_always(warmup_ratio, refresh_interval):
    assert WarmupInterval(warmup_ratio, refresh_interval).plan(9) == [True] * 9


@pytest.mark.parametrize(
    ("policy", "num_steps", "full"),
    [
        (Interval(4, 3), 64, [0, 1, *range(2, 63, 4)]),  # TaylorSeer: 0, 1, 2, 6, 10, ...
        (Interval(8, 3), 64, [0, 1, *range(2, 59, 8)]),
        (Interval(5), 64, [*range(0, 61, 5)]),  # dLLM-Cache
        (Interval(16), 64, [0, 16, 32, 48]),
        (Groups(8), 48, [*range(0, 48, 6)]),  # ReCAP, T' = 40 and 24
        (Groups(8), 32, [*range(0, 32, 4)]),
        (Groups(22, u=12), 32, [*range(12), *range(12, 32, 2)]),  # its MaskGIT table: 22 + 10
        (Groups(5, u=2), 12, [0, 1, 2, 5, 8]),  # 7 local steps do not divide by 3 groups: the last is longer
        (Groups(6), 6, [*range(6)]),
        (Table([0, 3, 4, 9]), 10, [0, 3, 4, 9]),
    ],
)
def test_the_published_full_steps(policy, num_steps, full):
    assert full_steps(policy, num_steps) == full
    assert len(policy.plan(num_steps)) == num_steps


def test_full_steps_are_as_many_as_the_published_latencies_fit():
    counts = [sum(policy.plan(64)) for policy in (Interval(4, 3), Interval(8, 3), Interval(5), Interval(16))]
    assert counts == [18, 10, 13, 4]


@pytest.mark.parametrize("u", range(4))
def test_groups_have_exactly_t_full_steps_and_differ_by_one_local_step_at_most(u):
    for num_full_steps in range(u + 1, 9):
        for num_steps in range(num_full_steps, 40):
            full = full_steps(Groups(num_full_steps, u), num_steps)
            assert len(full) == num_full_steps
            assert full[: u + 1] == [*range(u + 1)]
            lengths = [j - i for i, j in pairwise([*full[u:], num_steps])]
            assert max(lengths) - min(lengths) <= 1
            assert lengths[-1] == max(lengths)


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_one_more_full_step_in_front_moves_all_later_ones(interval):
    assert Interval(interval, 4).plan(20)[1:] == Interval(interval, 3).plan(19)
    assert Interval(1, 1).plan(7) == Interval(3, 7).plan(7) == [True] * 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table([1, 2]), "accelerator.policy.steps=[1, 2] must ascend from 0, each once"),
        (lambda: Table([0, 4, 4]), "accelerator.policy.steps=[0, 4, 4] must ascend from 0, each once"),
        (lambda: Table([0, 6]).plan(6), "accelerator.policy.steps=[0, 6] goes beyond the last step 5"),
        (lambda: Groups(3, u=-1), "accelerator.policy.u=-1 must be from 0 to sampling.num_full_steps=3"),
        (lambda: Groups(3, u=4), "accelerator.policy.u=4 must be from 0 to sampling.num_full_steps=3"),
        (lambda: Groups(3, u=3).plan(5), "accelerator.policy.u=3 leaves no group for the 2 local steps"),
        (lambda: Groups(7).plan(6), "sampling.num_full_steps=7 must be between 1 and sampling.num_steps=6"),
        (lambda: Accelerator(Accumulate(1)), "accelerator.predictor is missing: Accumulate leaves steps to one"),
        (lambda: Accelerator(Accumulate(1), Target()), "accelerator.predictor Target ranks at a full step"),
    ],
)
def test_impossible_policies_are_refused_by_their_key(make, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("indicator", ["input", "first_block"])
@pytest.mark.parametrize(("delta", "full"), [(0.0, [*range(6)]), (math.inf, [0, 5])])
def test_the_accumulators_ends_are_vanilla_and_the_first_and_last_step_alone(run, indicator, delta, full):
    _, records = run(Accelerator(Accumulate(delta, indicator), Reuse(), "teacache"), labels=(3, 7, 1))
    assert [record.index for record in records if record.is_full] == full


@pytest.mark.parametrize(("coefficients", "delta", "full"), [([0.25], 0.5, [0, 2, 4, 5]), ([0.25], 0.51, [0, 3, 5])])
def test_the_sum_starts_again_after_a_full_step_and_reaching_delta_is_enough(run, coefficients, delta, full):
    """A constant polynomial expects the same change at every step, whatever the indicator says."""
    _, records = run(Accelerator(Accumulate(delta, coefficients=coefficients), Reuse(), "teacache"))
    assert [record.index for record in records if record.is_full] == full
