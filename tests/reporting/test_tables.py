"""Tables as text, differences to the baseline, hypervolumes and gains at equal time, on values worked out by hand."""

import csv
import dataclasses
import math

import pytest

from migm.reporting.summary import Row, Summary
from migm.reporting.tables import comma_separated, compare, deltas, fronts, interpolate, latex, markdown

VANILLA = [
    Row("vanilla", 2, 2, 0.001, 2.0, {"fd": [8.0, 9.0]}),
    Row("vanilla", 16, 16, 0.016, 16.0, {"fd": [1.0, 2.0]}),
]
SHORTCUT = Row("short_cut", 16, 4, 0.004, 4.5, {"fd": [3.0, 2.0]})
SUMMARY = Summary([*VANILLA, SHORTCUT], {"fd": False}, {})


def test_markdown_latex_and_csv_hold_the_same_cells():
    headings, cells = ["method", "fd_1"], [["a_b", "1 ± 2"], ["a_b", "5%"], ["c", ""]]
    assert markdown(headings, cells).splitlines()[2:] == ["| a_b | 1 ± 2 |", "| a_b | 5% |", "| c |  |"]
    assert list(csv.reader(comma_separated(headings, cells).splitlines())) == [headings, *cells]
    assert latex(headings, cells).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & fd\_1 \\",
        r"\midrule",
        r"a\_b & 1 $\pm$ 2 \\",
        r"a\_b & 5\% \\",
        r"\midrule",
        r"c &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_deltas_are_differences_with_the_deviation_of_two_measurements_and_the_speed_up():
    headings, cells = deltas(SUMMARY, VANILLA[1])
    assert headings == ["method", "N", "B", "fd - vanilla 16", "speed-up", "FFE share"]
    assert cells[1] == ["vanilla", "16", "16", "+0.000", "1.00x", "100.0%"]
    assert cells[2] == ["short_cut", "16", "4", "+1.000 ± 1.000", "4.00x", "28.1%"]  # s = sqrt(2 * 0.5)


def test_the_hypervolume_is_the_share_of_the_box_in_log_cost_and_quality():
    """The box of times is log 16 wide; the shortcut's point lies in its middle."""
    _, cells = fronts(SUMMARY)
    found = {(method, cost): (on, volume, which) for method, _, cost, on, volume, which in cells}
    # Seed set 1: qualities 8, 1, 3 give (8-3)/7/2; seed set 2: 9, 2, 2 give 1/2.
    shares = [5 / 14, 1 / 2]
    mean, deviation = sum(shares) / 2, abs(shares[0] - shares[1]) / math.sqrt(2)
    assert found["short_cut", "ms / image"] == ("1 of 1", f"{mean:.3f} ± {deviation:.3f}", "short_cut 16,4")
    assert found["vanilla", "ms / image"] == ("2 of 2", "0.000 ± 0.000", "vanilla 2, vanilla 16")
    width = math.log(16 / 4.5) / math.log(16 / 2)
    assert float(found["short_cut", "FFE"][1].split(" ")[0]) == pytest.approx(2 * mean * width, abs=6e-4)


def test_higher_values_are_better_where_the_metric_says_so():
    rows = [dataclasses.replace(row, quality={"agree": [-x for x in row.quality["fd"]]}) for row in SUMMARY.rows]
    turned = fronts(Summary(rows, {"agree": True}, {}))[1]
    assert [row[3:] for row in turned] == [row[3:] for row in fronts(SUMMARY)[1]]


def test_rows_without_a_value_or_a_cost_are_left_out():
    lacking = [Row("x", 4, 4, None, 3.0, {"fd": [1.0]}), Row("y", 4, 4, 0.1, None, {})]
    headings, cells = deltas(Summary([*SUMMARY.rows, *lacking], {"fd": False}, {}), VANILLA[1])
    assert [row[3:] for row in cells[3:]] == [["-0.500", "", "18.8%"], ["", "0.16x", ""]]
    assert len(headings) == 6
    found = fronts(Summary([*SUMMARY.rows, *lacking], {"fd": False}, {}))[1]
    names = [row[0] for row in found if row[2] == "ms / image"]
    assert names == ["vanilla", "short_cut"]


def point(name: str, steps: int, full: int, seconds: float, *values: float) -> Row:
    return Row(name, steps, full, seconds, float(full), {"fd": list(values)})


CURVE = [point("vanilla", 2, 2, 0.01, 20.0, 22.0), point("vanilla", 8, 8, 0.04, 10.0, 10.0)]


def test_the_curve_is_linear_in_log_time_and_goes_on_from_its_dearest_point():
    assert interpolate(CURVE, "fd", -1, 0.02) == pytest.approx((15.5, 0.5 * 2**0.5))
    assert interpolate(CURVE, "fd", -1, 0.01) == (21.0, pytest.approx(2**0.5))
    assert interpolate(CURVE, "fd", -1, 0.04) == (10.0, 0.0)
    assert interpolate(CURVE, "fd", -1, 0.05) == (10.0, 0.0)
    assert interpolate(CURVE, "fd", -1, 0.005) is None
    assert interpolate([], "fd", -1, 0.02) is None


def test_points_that_are_dearer_and_worse_do_not_count():
    """Else a method would win against another's bad settings."""
    bad = point("vanilla", 4, 4, 0.02, 30.0, 30.0)
    assert interpolate([*CURVE, bad], "fd", -1, 0.02) == pytest.approx((15.5, 0.5 * 2**0.5))
    assert interpolate([*CURVE, bad], "fd", 1, 0.03)[0] == 30.0


def test_gains_are_positive_where_the_method_is_better_and_in_deviations():
    better = point("shortcut", 16, 2, 0.04, 8.0, 9.0)
    summary = Summary([*CURVE, better], {"fd": False}, {})
    _, ((*_, on_vanilla, on_reuse),) = compare(summary, "fd", "shortcut", ["vanilla", "reuse"])
    assert on_vanilla == f"+1.500 = {1.5 / 0.5**0.5:+.1f} deviations"
    assert on_reuse == "no point as cheap"
    upwards = Summary(summary.rows, {"fd": True}, {})
    assert compare(upwards, "fd", "shortcut", ["vanilla"])[1][0][-1].startswith("-12.500")  # 8.5 against 21
