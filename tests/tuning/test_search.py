"""The search without a base: halving keeps the best, a stopped one goes on as if it had not been, time is kept."""

import math
from types import SimpleNamespace

import pytest

from migm.accelerators.refresh import Always, Interval, Table, Uniform
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.tuning.journal import Journal
from migm.tuning.rungs import Rates, Rungs
from migm.tuning.search import Goal, Search
from migm.tuning.space import Method, Space

pytest.importorskip("optuna")

RATES = Rates(vanilla=1e-5, extra=1e-6, candidate=1e-4)
METHODS = [
    Method("vanilla", Always(), {}, (16,)),
    Method("reuse", Uniform(4), {}, (8, 16), 0.01),
    Method("taylorseer", Interval(4, 3), {"policy.first_enhance": [1, 2, 3]}, (8, 16, 24), 0.02),
    Method("taylorseer_table", Table([0]), {}, (16,), 0.02),
]


class Stop(Exception):
    pass


def config(**changes):
    values = {
        "seed": 0,
        "shares": [0.25, 0.5],
        "rungs": [10, 30],
        "seed_sets": [11, 12],
        "keep": 3,
        "optimiser": "tpe",
        "sampler": {"select": {"temperature": [0.5, 1.5]}},
        "first": [1, 4],
        "warp": [0.7, 2.0],
    }
    return SimpleNamespace(**{**values, **changes})


def value_of(candidate, rung=0):
    """Best near a temperature of 36 (0.9 of 40) by taylorseer; worse in rung 0 by an amount that fools nobody."""
    temperature = candidate.changes.get("sampling.select.temperature", 40.0)
    return (temperature / 40 - 0.9) ** 2 + 0.1 * (candidate.accelerator != "taylorseer") + 0.001 * rung


def search(folder, measure, settings=None, plan=(9, 3), seconds=1000.0, sign=1, lanes=None):
    chosen = settings or config()
    journal = Journal(folder / "trials.jsonl", {"shares": chosen.shares}, seconds)
    space = Space(METHODS, chosen, {"select.temperature": 40.0}, 16)
    lanes = lanes or [Goal(share, None) for share in chosen.shares]
    made = Rungs(list(plan), 10, 1.0, 0.1)
    return Search(space, lanes, made, RATES, measure, journal, chosen, sign, Plain(quiet=True))


def seen(folder, stop=math.inf):
    """A measure that notes its calls, and raises once `stop` were made."""
    calls = []

    def measure(candidate, rung):
        if len(calls) >= stop:
            raise Stop
        calls.append((candidate, rung))
        return value_of(candidate, rung)

    return measure, calls


def test_halving_keeps_the_best_of_each_lane(tmp_path):
    measure, calls = seen(tmp_path)
    made = search(tmp_path, measure)
    found = made.run(finalists=2)
    assert sum(rung == 0 for _, rung in calls) == 18
    assert sum(rung == 1 for _, rung in calls) == 6
    for lane in made.lanes:
        mine = sorted((tried for tried in made.tried if tried.lane == lane), key=lambda t: t.values[0][1])
        assert {tried.number for tried in mine[:3]} == {tried.number for tried in mine if len(tried.values) == 2}
        assert [tried.number for tried in found[lane]] == [
            tried.number for tried in made.ranked(lane) if len(tried.values) == 2
        ][:2]
        assert found[lane][0].images == 40


def test_where_higher_is_better_the_highest_go_on(tmp_path):
    found = search(tmp_path, lambda candidate, rung: -value_of(candidate), sign=-1).run(1)
    other = search(tmp_path / "other", lambda candidate, rung: value_of(candidate)).run(1)
    assert {lane: tried[0].candidate for lane, tried in found.items()} == {
        lane: tried[0].candidate for lane, tried in other.items()
    }


def test_every_candidate_fits_its_share(tmp_path):
    made = search(tmp_path, value_of, plan=(30,), settings=config(rungs=[10], seed_sets=[11]))
    made.run(1)
    assert {tried.candidate.accelerator for tried in made.tried} == {method.name for method in METHODS}
    for tried in made.tried:
        assert 0 < tried.predicted <= tried.lane.share + 1e-9
        assert tried.candidate.num_steps <= 24


def test_the_optimiser_finds_what_random_search_does_not(tmp_path):
    best = {}
    for optimiser in ("tpe", "random"):
        settings = config(optimiser=optimiser, rungs=[10], seed_sets=[11])
        made = search(tmp_path / optimiser, value_of, plan=(30,), settings=settings)
        made.run(1)
        late = [value_of(tried.candidate) for tried in made.tried[-20:]]
        best[optimiser] = sum(late) / len(late)
    assert best["tpe"] < 0.7 * best["random"]


@pytest.mark.parametrize("stop", [0, 1, 7, 17, 18, 20])
def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been(tmp_path, stop):
    measure, calls = seen(tmp_path)
    whole = search(tmp_path / "whole", measure).run(2)
    first, before = seen(tmp_path, stop)
    with pytest.raises(Stop):
        search(tmp_path / "stopped", first).run(2)
    second, after = seen(tmp_path)
    found = search(tmp_path / "stopped", second).run(2)
    assert before + after == calls  # nothing twice, nothing left out
    assert found == whole


def test_a_short_time_ends_a_rung_early_and_leaves_the_later_ones_theirs(tmp_path):
    made = search(tmp_path, value_of)
    clock = made.journal.clock

    def slow(candidate, rung):
        clock.start -= 100  # each takes 100 seconds
        return value_of(candidate, rung)

    made.measure = slow
    found = made.run(2)
    assert len(made.tried) < 18
    assert found
    assert list(made.journal.of("cut"))
    again = search(tmp_path, lambda *_: pytest.fail("measured again"))
    assert again.run(2) == found


def test_a_share_that_nothing_fits_is_left_out(tmp_path):
    settings = config(shares=[0.01, 0.5])
    found = search(tmp_path, value_of, settings=settings).run(1)
    assert [lane.share for lane in found] == [0.5]


def test_each_method_has_as_many_candidates_where_lanes_are_by_method(tmp_path):
    lanes = [Goal(0.5, method.name) for method in METHODS]
    made = search(tmp_path, value_of, lanes=lanes, plan=(4, 2))
    found = made.run(1)
    assert {lane.method: tried[0].candidate.accelerator for lane, tried in found.items()} == {
        method.name: method.name for method in METHODS
    }
    assert all(sum(tried.lane == lane for tried in made.tried) == 4 for lane in lanes)


def test_a_journal_of_other_settings_is_refused_with_the_key(tmp_path):
    search(tmp_path, value_of).run(1)
    with pytest.raises(UserError, match=r"begun with shares=\[0.25, 0.5\], not \[0.3\]; choose another name="):
        search(tmp_path, value_of, settings=config(shares=[0.3]))
