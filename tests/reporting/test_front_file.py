"""A front file in the report: a table, its points in the page, only beside results of its base and metric."""

import json
from dataclasses import replace

import pytest
from test_report_files import ABOUT, records

from migm.config.fronts import MEASURED, Front, FrontPoint, Vanilla
from migm.reporting.front_file import beside
from migm.reporting.summary import summarise
from migm.reporting.write import write_report

POINTS = [FrontPoint("taylorseer", 16, None, 0.5, 4.0), FrontPoint("reuse", 16, 4, 0.6, 2.0)]
FRONT = Front(
    [ABOUT["base"], "other"],
    "cifar10",
    "fd_cifarnet_1000",
    False,
    None,
    Vanilla(0.55, 16, 99.0),
    POINTS,
    {"measured": MEASURED, "device": "a card"},
)


def test_times_are_vanillas_here_over_the_speed_ups():
    summary = summarise(records())
    vanilla = next(row for row in summary.rows if row.label == "vanilla 16")
    file = beside(FRONT, summary)
    assert file is not None
    assert vanilla.seconds is not None
    assert [each.ms for each in file.points] == pytest.approx([250 * vanilla.seconds, 500 * vanilla.seconds])
    assert [each.best for each in file.points] == [True, False]
    assert file.label == "front file (a card, shares of vanilla 16 here)"
    assert len(file.table()[1]) == 2
    assert [row[0] for row in file.table(best=True)[1]] == ["taylorseer N=16"]


def test_without_vanillas_time_here_they_are_those_of_the_front():
    file = beside(replace(FRONT, vanilla=Vanilla(0.55, 99, 80.0)), summarise(records()))
    assert file is not None
    assert [each.ms for each in file.points] == [20, 40]
    assert file.label == "front file (a card)"
    assert beside(replace(FRONT, vanilla=Vanilla(0.55, 99)), summarise(records())) is None


@pytest.mark.parametrize("other", [{"metric": "fd_cifarnet_5000"}, {"base": ["other"]}])
def test_a_front_of_another_metric_or_base_is_left_out(other):
    assert beside(replace(FRONT, **other), summarise(records())) is None


def test_the_report_holds_its_points(tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(record) + "\n" for record in records()))
    page = write_report([results], tmp_path / "report", front=FRONT)
    assert "taylorseer N=16" in page.with_name("front_file.md").read_text()
    text = page.read_text(encoding="utf-8")
    assert "front file (a card, shares of vanilla 16 here)" in text
    write_report([results], tmp_path / "without")
    assert not (tmp_path / "without" / "front_file.md").exists()
    drawn = [(tmp_path / name / "fd_cifarnet_1000_by_time.png").read_bytes() for name in ("report", "without")]
    assert drawn[0] != drawn[1]
