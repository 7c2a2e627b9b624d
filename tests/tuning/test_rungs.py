"""Plans for a budget: they fit, use it, drop rungs that do not pay, and say what is needed."""

import re
from dataclasses import replace

import pytest

from migm.runtime.errors import UserError
from migm.tuning.rungs import RESERVE, Demand, Rates, counts_of, planned

WANTED = Demand([0.15, 0.33, 1.0], [100, 300, 1000], 3, 2, 1000, 3, rounds=7, batch=100)
RATES = Rates(vanilla=0.02, extra=0.002, candidate=0.2)


@pytest.mark.parametrize("minutes", [8, 20, 60, 600])
def test_a_plan_fits_and_uses_the_time(minutes):
    plan = planned(WANTED, RATES, 60 * minutes, spent=10)
    taken = plan.search_seconds + plan.verify_seconds
    assert taken <= (60 * minutes - 10) * (1 - RESERVE)
    assert taken > 0.8 * (60 * minutes - 10)
    assert plan.candidates == counts_of(plan.candidates[0], len(plan.candidates), WANTED.keep)


def test_more_time_gives_more_candidates_rungs_and_images_until_what_is_wanted():
    plans = [planned(WANTED, RATES, 60 * minutes) for minutes in (3, 6, 20, 60)]
    assert [len(plan.candidates) for plan in plans] == sorted(len(plan.candidates) for plan in plans)
    assert [plan.verify_images for plan in plans] == sorted(plan.verify_images for plan in plans)
    assert plans[0].candidates[0] < plans[-1].candidates[0]
    assert len(plans[0].candidates) < len(plans[-1].candidates) == 3
    assert plans[-1].verify_images == WANTED.verify_images


def test_one_in_keep_goes_on_and_at_least_one():
    assert counts_of(27, 3, 3) == [27, 9, 3]
    assert counts_of(2, 3, 3) == [2, 1, 1]


def test_too_short_a_budget_says_how_much_is_needed_and_that_much_suffices():
    with pytest.raises(UserError, match=r"budget=0\.1 minutes is too short") as refused:
        planned(WANTED, RATES, 6, spent=2)
    needed = float(re.search(r"need budget=([\d.]+)", str(refused.value))[1])
    assert planned(WANTED, RATES, 60 * needed, spent=2).candidates[0] >= 2
    with pytest.raises(UserError):
        planned(WANTED, RATES, 60 * needed * 0.8, spent=2)


def test_a_slower_machine_gets_a_smaller_plan():
    slow = replace(RATES, vanilla=0.06, extra=0.006)
    assert planned(WANTED, slow, 3600).candidates[0] < planned(WANTED, RATES, 3600).candidates[0]
