"""The Pareto front and the hypervolume, on random points with many ties."""

import random

import pytest

from migm.reporting.pareto import front, hypervolume


def random_points(seed: int) -> list[tuple[float, float]]:
    """Small integers, so that equal costs, qualities and points occur."""
    source = random.Random(seed)
    return [(source.randint(0, 9), source.randint(0, 9)) for _ in range(source.randint(1, 30))]


def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@pytest.mark.parametrize("seed", range(200))
def test_the_front_is_every_unbeaten_point_once_by_cost(seed):
    points = random_points(seed)
    chosen = [points[i] for i in front(*zip(*points, strict=True))]
    assert chosen == sorted({p for p in points if not any(beats(q, p) for q in points)})


@pytest.mark.parametrize("seed", range(20))
def test_the_front_of_the_front_is_the_front(seed):
    points = random_points(seed)
    chosen = [points[i] for i in front(*zip(*points, strict=True))]
    assert front(*zip(*chosen, strict=True)) == list(range(len(chosen)))


@pytest.mark.parametrize("seed", range(20))
def test_a_beaten_point_changes_nothing(seed):
    points = random_points(seed)
    chosen = [points[i] for i in front(*zip(*points, strict=True))]
    more = [*points, (chosen[0][0] + 1, chosen[0][1] + 1)]
    assert [more[i] for i in front(*zip(*more, strict=True))] == chosen


def test_no_points_have_no_front():
    assert front([], []) == []


@pytest.mark.parametrize("seed", range(50))
def test_the_hypervolume_is_the_number_of_unit_squares_that_some_point_beats(seed):
    points, worst = random_points(seed), (8, 7)
    squares = [(x, y) for x in range(worst[0]) for y in range(worst[1])]
    beaten = sum(any(cost <= x and quality <= y for cost, quality in points) for x, y in squares)
    assert hypervolume(*zip(*points, strict=True), worst) == beaten


def test_no_points_leave_no_hypervolume():
    assert hypervolume([], [], (1, 1)) == 0
