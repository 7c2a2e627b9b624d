"""Refresh policies: which steps the base computes."""

from itertools import pairwise

import pytest

from migm.accelerators.refresh import Always, Uniform, WarmupInterval
from migm.runtime import UserError


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


def test_an_unknown_rule_is_refused_by_name():
    with pytest.raises(ValueError, match=r"accelerator\.policy\.rule=even.*paper, reference"):
        Uniform(2, "even")


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
    ("settings", "message"),
    [
        ((-0.1, 5), r"accelerator\.policy\.warmup_ratio=-0\.1 must be from 0 to 1"),
        ((1.1, 5), r"accelerator\.policy\.warmup_ratio=1\.1 must be from 0 to 1"),
        ((0.3, 0), r"accelerator\.policy\.refresh_interval=0 must be at least 1"),
    ],
)
def test_impossible_warmups_and_intervals_are_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        WarmupInterval(*settings)
