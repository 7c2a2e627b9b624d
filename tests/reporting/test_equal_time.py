"""Comparisons at equal time on curves whose values are known."""

import pytest

from migm.reporting.equal_time import compare, interpolate
from migm.reporting.summary import Row, Summary


def row(name: str, steps: int, full: int, seconds: float, *values: float) -> Row:
    return Row(name, steps, full, seconds, float(full), {"fd": list(values)})


VANILLA = [row("vanilla", 2, 2, 0.01, 20.0, 22.0), row("vanilla", 8, 8, 0.04, 10.0, 10.0)]


def test_the_curve_is_linear_in_log_time_and_goes_on_from_its_dearest_point():
    assert interpolate(VANILLA, "fd", -1, 0.02) == pytest.approx((15.5, 0.5 * 2**0.5))
    assert interpolate(VANILLA, "fd", -1, 0.01) == (21.0, pytest.approx(2**0.5))
    assert interpolate(VANILLA, "fd", -1, 0.04) == (10.0, 0.0)
    assert interpolate(VANILLA, "fd", -1, 0.05) == (10.0, 0.0)
    assert interpolate(VANILLA, "fd", -1, 0.005) is None
    assert interpolate([], "fd", -1, 0.02) is None


def test_points_that_are_dearer_and_worse_do_not_count():
    """Else a method would win against another's bad settings."""
    bad = row("vanilla", 4, 4, 0.02, 30.0, 30.0)
    assert interpolate([*VANILLA, bad], "fd", -1, 0.02) == pytest.approx((15.5, 0.5 * 2**0.5))
    assert interpolate([*VANILLA, bad], "fd", 1, 0.03)[0] == 30.0


def test_gains_are_positive_where_the_method_is_better_and_in_deviations():
    better = row("shortcut", 16, 2, 0.04, 8.0, 9.0)
    summary = Summary([*VANILLA, better], {"fd": False}, {})
    _, ((*_, on_vanilla, on_reuse),) = compare(summary, "fd", "shortcut", ["vanilla", "reuse"])
    assert on_vanilla == f"+1.500 = {1.5 / 0.5**0.5:+.1f} deviations"
    assert on_reuse == "no point as cheap"
    upwards = Summary(summary.rows, {"fd": True}, {})
    assert compare(upwards, "fd", "shortcut", ["vanilla"])[1][0][-1].startswith("-12.500")  # 8.5 against 21
