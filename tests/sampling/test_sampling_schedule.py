"""Schedules: a published table, and the laws of every schedule."""

import pytest
import torch

from migm.sampling.schedule import CosineFloor, Increments, LinearFloor, Totals

MODES = list(Increments.curves)
SCHEDULES = [
    *(pytest.param(Increments(mode), id=mode) for mode in MODES),
    *(pytest.param(Totals(mode, zero), id=f"totals_{mode}_{zero}") for mode in MODES for zero in (False, True)),
    pytest.param(CosineFloor(), id="floor"),
    pytest.param(CosineFloor(at_least_one=True), id="floor_at_least_one"),
    pytest.param(LinearFloor(), id="linear_floor"),
]
IDLE = (CosineFloor(), Totals("root"), Totals("root", from_zero=True))  # with many steps some reveal nothing
# Tokens still masked after each of 64 steps over 4096 tokens, as Lumina-DiMOO computes them.
DIMOO_MASKED = [
    *(4094, 4091, 4084, 4076, 4065, 4051, 4035, 4017, 3996, 3973, 3947, 3919, 3889, 3856, 3821, 3784),
    *(3744, 3702, 3658, 3612, 3563, 3513, 3460, 3405, 3348, 3289, 3229, 3166, 3101, 3034, 2966, 2896),
    *(2824, 2750, 2675, 2598, 2519, 2439, 2358, 2275, 2191, 2105, 2018, 1930, 1841, 1751, 1659, 1567),
    *(1474, 1379, 1284, 1189, 1092, 995, 897, 799, 700, 601, 501, 401, 301, 200, 100, 0),
]


def test_cosine_floor_equals_the_published_table():
    left = 4096 - torch.tensor(CosineFloor().counts(4096, 64)).cumsum(0)
    assert left.tolist() == DIMOO_MASKED


def counts_or_refusal(schedule, num_tokens, num_steps):
    try:
        return schedule.counts(num_tokens, num_steps), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_tokens", [1, 16, 64, 1024])
def test_every_step_reveals_at_least_one_token_and_all_are_revealed(schedule, num_tokens):
    possible, least = 0, 0 if schedule in IDLE else 1
    if schedule == CosineFloor(at_least_one=True):
        least = int(num_tokens > 48)  # else the last token may have to wait for the last step
    for num_steps in range(1, min(num_tokens, 48) + 1):
        counts, refusal = counts_or_refusal(schedule, num_tokens, num_steps)
        if counts is None:
            assert isinstance(schedule, Increments)
            assert f"sampling.num_steps={num_steps}" in refusal
            continue
        possible += 1
        assert len(counts) == num_steps
        assert min(counts) >= least
        assert counts[-1] >= 1
        assert sum(counts) == num_tokens
        assert all(type(count) is int for count in counts)
    assert possible >= min(num_tokens, 6)


@pytest.mark.parametrize(("num_tokens", "first"), [(256, 36), (1024, 72), (2304, 107), (4096, 143)])
def test_cosine_floor_reveals_nothing_in_some_step_from_the_published_number_on(num_tokens, first):
    assert min(CosineFloor().counts(num_tokens, first - 1)) == 1
    assert min(CosineFloor().counts(num_tokens, first)) == 0


def test_at_least_one_token_a_step_changes_counts_of_many_steps_alone():
    for num_steps in (12, 15, 18, 20, 50, 71):
        assert CosineFloor(True).counts(1024, num_steps) == CosineFloor().counts(1024, num_steps)
    counts = CosineFloor(True).counts(1024, 100)
    assert min(counts) == 1
    assert counts[10:] == CosineFloor().counts(1024, 100)[10:]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [-1, 0, 17])
def test_a_number_of_steps_outside_1_to_l_is_refused(schedule, num_steps):
    with pytest.raises(ValueError, match=rf"sampling\.num_steps={num_steps} must be between 1 and the 16"):
        schedule.counts(16, num_steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_reveals_everything(schedule):
    assert schedule.counts(16, 1) == [16]


def test_totals_are_cut_off_and_at_least_one_for_each_step():
    """192 is exact at half of the steps, but the float32 is just below it (Halton-MaskGIT)."""
    totals = torch.tensor(Totals().counts(576, 32)).cumsum(0)
    assert totals[15] == 191
    assert Totals().counts(256, 8) == [20, 21, 21, 23, 25, 28, 35, 83]
    assert Totals(from_zero=True).counts(256, 12)[:3] == [1, 13, 15]
    assert Totals().counts(16, 16) == [1] * 16
