"""Placements of every policy: as many full steps as said, at most N - 1, in the policy's own keys."""

from dataclasses import replace

import pytest

from migm.accelerators.refresh import Always, Groups, Interval, Table, Uniform, WarmupInterval
from migm.tuning.full_steps import placements, table

POLICIES = [Uniform(4), Interval(4, 3), WarmupInterval(0.3, 5), Table([0]), Groups(4, 2)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("num_steps", [4, 16, 32])
def test_each_placement_has_its_full_steps_when_built(policy, num_steps):
    found = list(placements(policy, num_steps, first=2, warp=1.5))
    counts = [placement.full_steps for placement in found]
    assert counts == sorted(set(counts))
    assert found
    assert max(counts) < num_steps
    for placement in found:
        changes = {key.removeprefix("policy."): value for key, value in placement.changes.items()}
        if placement.num_full_steps is not None:
            changes["num_full_steps"] = placement.num_full_steps
        assert sum(replace(policy, **changes).plan(num_steps)) == placement.full_steps


def test_a_policy_that_nothing_moves_has_its_own_full_steps():
    assert [placement.full_steps for placement in placements(Always(), 8)] == [8]


def test_a_table_begins_full_and_a_warp_brings_steps_forward():
    assert table(16, 4, 1, 1.0) == [0, 4, 8, 12]
    assert table(16, 6, 3, 1.0)[:3] == [0, 1, 2]
    assert sum(table(32, 8, 1, 2.0)) < sum(table(32, 8, 1, 1.0)) < sum(table(32, 8, 1, 0.6))


@pytest.mark.parametrize("warp", [0.3, 1.0, 3.0])
def test_a_table_is_one_that_the_policy_takes(warp):
    for num_steps in (2, 5, 16):
        for first in (1, 2, 4):
            for full in range(1, num_steps):
                steps = table(num_steps, full, first, warp)
                assert len(steps) == full
                assert sum(Table(steps).plan(num_steps)) == full
