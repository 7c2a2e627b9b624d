"""Jobs take turns, warmed up beside what is timed, and nothing begins after the budget."""

import itertools

import pytest
import torch

from migm.benchmarks import timing
from migm.benchmarks.timing import Budget, Job, Timed, in_turns
from migm.evaluation import cost

CPU = torch.device("cpu")


def noting(calls, name, warm_ups=1):
    return Job(lambda: calls.append(name), warm_ups)


def test_every_job_is_warmed_up_as_often_as_it_needs_then_they_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "MOST_CALLS", 1)
    calls = []
    timed = in_turns({"a": noting(calls, "a"), "b": noting(calls, "b", 2)}, 3, CPU, Budget())
    assert "".join(calls) == "abb" + 3 * "ab"
    assert {name: len(each.rounds) for name, each in timed.items()} == {"a": 3, "b": 3}


def test_a_short_job_is_called_often_in_a_turn_and_a_long_one_once(monkeypatch):
    taken = {"short": 0.01, "long": 1.0}
    calls = []
    for name in ("seconds_of", "settled_seconds"):
        monkeypatch.setattr(timing, name, lambda call, _: call())
    jobs = {name: Job(lambda name=name: (calls.append(name), taken[name])[1]) for name in taken}
    in_turns(jobs, 1, CPU, Budget())
    assert [calls.count(name) - 1 for name in taken] == [5, 1]


def test_warm_up_is_told_apart_from_what_is_timed(monkeypatch):
    seconds = iter([9.0, 7.0, 2.0, 4.0, 3.0])
    for name in ("seconds_of", "settled_seconds"):
        monkeypatch.setattr(timing, name, lambda call, _: next(seconds))
    timed = in_turns({"a": Job(lambda: None, 2)}, 3, CPU, Budget())["a"]
    assert timed == Timed((2.0, 4.0, 3.0), 9.0, 16.0)
    assert timed.seconds == 3.0


def test_speed_ups_are_those_of_each_round():
    own, other = Timed((1.0, 10.0, 2.0), 0, 0), Timed((3.0, 30.0, 6.0), 0, 0)
    assert own.times(other) == 3


def test_what_would_begin_after_the_budget_is_left_out_and_what_began_gets_one_round(monkeypatch):
    monkeypatch.setattr(timing, "MOST_CALLS", 1)
    now = iter([0.0, 1.0, 6.0, *[11.0] * 9])  # the start, then a look before each job and each round
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(now))
    calls = []
    timed = in_turns({name: noting(calls, name) for name in "abc"}, 5, CPU, Budget(10))
    assert "".join(calls) == "ab" + "ab"
    assert {name: len(each.rounds) for name, each in timed.items()} == {"a": 1, "b": 1}


def test_calls_that_compile_count_as_warm_up_and_are_never_timed(monkeypatch):
    monkeypatch.setattr(timing, "MOST_CALLS", 3)
    seconds, compiling = iter([9.0, 8.0, 1.0, 7.0, 2.0, 2.0, 2.0]), iter([True, True, False, True, False, False, False])
    compiled = 0

    def call():
        nonlocal compiled
        compiled += next(compiling)

    def seconds_of(call, _):
        call()
        return next(seconds)

    for module in (timing, cost):
        monkeypatch.setattr(module, "num_compiled", lambda: compiled)
        monkeypatch.setattr(module, "seconds_of", seconds_of)
    monkeypatch.setattr(timing, "TURN_SECONDS", 6.0)
    timed = in_turns({"a": Job(call)}, 1, CPU, Budget())["a"]
    assert timed == Timed((2.0,), 9.0, 18.0)


def test_what_compiles_at_every_call_has_no_time(monkeypatch):
    count = itertools.count()
    monkeypatch.setattr(cost, "num_compiled", lambda: next(count))
    with pytest.raises(RuntimeError, match="compiled something anew"):
        cost.settled_seconds(lambda: None, CPU)


def test_what_torch_compiles_is_counted():
    def double(x):
        return 2 * x

    before = cost.num_compiled()
    run = torch.compile(double, backend="eager", dynamic=False)
    run(torch.ones(3))
    run(torch.ones(3))
    assert cost.num_compiled() == before + 1
    run(torch.ones(3, 3))
    assert cost.num_compiled() == before + 2
