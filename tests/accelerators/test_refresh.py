"""Refresh policies: which steps the base computes."""

from itertools import pairwise

import pytest

from migm.accelerators.refresh import Always, Uniform


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
