"""The search for full steps finds the best of all plans, whatever the errors are."""

import itertools
import math
import random

import pytest

from migm.accelerators.placement import error_of, extended, follows, histories, place

N = 9


def random_errors(memory: int, seed: int, max_gap: int = N, num_steps: int = N) -> dict[tuple[int, ...], list[float]]:
    """Errors of every history; some are equal, so that plans can tie."""
    source = random.Random(seed)
    return {
        h: [source.choice([0.5, 1.0, source.random()]) for _ in follows(h, num_steps, max_gap)]
        for h in histories(num_steps, memory, max_gap)
    }


def totals(errors, steps, memory, num_steps=N):
    """The errors of a plan's cheap steps, one by one, written out once more; None if one was not measured."""
    found, known = [], []
    for step in range(num_steps):
        if step in steps:
            known.append(step)
            continue
        values, at = errors[tuple(known[-memory:])], step - known[-1] - 1
        if at >= len(values):
            return None
        found.append(values[at])
    return found


@pytest.mark.parametrize("total", ["sum", "max"])
@pytest.mark.parametrize(
    ("memory", "first", "max_gap"), [(1, 1, 9), (2, 1, 9), (3, 1, 9), (2, 3, 9), (1, 2, 3), (2, 1, 2)]
)
def test_no_subset_of_the_steps_is_better(memory, first, max_gap, total):
    for seed in range(3):
        errors = random_errors(memory, seed, max_gap)
        found = place(errors, N, memory, first=first, total=total)
        combine = sum if total == "sum" else max
        for b in range(1, N + 1):
            plans = [(0, *rest) for rest in itertools.combinations(range(1, N), b - 1)]
            costs = {
                plan: combine(cheap) if cheap else 0.0
                for plan in plans
                if set(range(first)) <= set(plan) and (cheap := totals(errors, plan, memory)) is not None
            }
            assert (b in found) == bool(costs)
            if costs:
                best = found[b]
                assert best.error == pytest.approx(min(costs.values()))
                assert costs[best.steps] == pytest.approx(best.error)


@pytest.mark.parametrize("memory", [1, 2, 3])
def test_the_error_of_any_plan_is_the_total_of_its_steps(memory):
    errors = random_errors(memory, 4, max_gap=4)
    for plan in [(0,), (0, 3, 8), (0, 1, 2, 5), (0, 1, 6, 7), tuple(range(N))]:
        cheap = totals(errors, plan, memory)
        for total, combine in (("sum", sum), ("max", max)):
            found = error_of(errors, plan, N, memory, total)
            if cheap is None:
                assert math.isinf(found)
            else:
                assert found == pytest.approx(combine(cheap) if cheap else 0.0)


def test_histories_are_those_that_plans_pass():
    for memory, max_gap in [(1, 9), (2, 9), (3, 3), (2, 0)]:
        passed = set()
        for b in range(N):
            for rest in itertools.combinations(range(1, N), b):
                gaps = itertools.pairwise((0, *rest))
                if all(after - before <= max_gap + 1 for before, after in gaps):
                    known = ()
                    for step in (0, *rest):
                        known = extended(known, step, memory)
                        if step < N - 1:
                            passed.add(known)
        assert histories(N, memory, max_gap) == sorted(passed)


def test_full_steps_go_where_errors_are():
    errors = {(s,): [float(t in (4, 5)) for t in range(s + 1, N)] for s in range(N - 1)}
    assert place(errors, N, 1)[3].steps == (0, 4, 5)
    assert place(errors, N, 1)[3].error == 0


def test_of_equal_maxima_the_smaller_sum_is_taken_and_again_the_same():
    errors = {(s,): [1.0 if t == 8 else 0.1 for t in range(s + 1, N)] for s in range(N - 1)}
    flat = place(errors, N, 1, total="max")
    assert flat[1].error == 1
    assert flat[2] == place(dict(reversed(errors.items())), N, 1, total="max")[2]
    assert flat[2].steps[-1] == 8
    assert place(errors, N, 1, most=2).keys() == {1, 2}


def test_a_single_step_is_full():
    assert place({}, 1, 1)[1].steps == (0,)
