"""What is wrong with results files is said by file and line, and nothing of it counts."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import naming

from migm.reporting.audit import audit
from migm.reporting.write import write_report
from migm.runtime.errors import UserError

RECORD: dict[str, Any] = {
    "metric": "fd_1000",
    "accelerator": "vanilla",
    "num_steps": 16,
    "num_full_steps": 16,
    "settings": "s",
    "base": "b",
    "predictor": "p",
    "sampling": "s",
    "inputs": "10 classes",
    "reference": "r",
    "decoder": "d",
    "seed_set": 1,
    "higher_is_better": False,
    "value": 3.0,
    "device": "cpu",
    "torch": "2",
    "migm": "0",
    "commit": "c",
}
SECONDS = {"metric": "seconds_per_image/batch1_amortised", "seed_set": None, "value": 0.5, "run": "first"}


def written(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def values(studies) -> list[list[float]]:
    return [[record["value"] for record in study.records] for study in studies]


def test_a_good_file_has_no_problem(tmp_path):
    path = written(tmp_path / "a.jsonl", RECORD, {**RECORD, "seed_set": 2, "value": 4.0})
    studies, problems = audit([path])
    assert (values(studies), problems) == ([[3.0, 4.0]], [])
    assert [str(line) for line in studies[0].lines] == [f"{path}, line 1", f"{path}, line 2"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{half", "not JSON"),
        ("", "not JSON"),
        ("[1]", "not a JSON object"),
        ({k: v for k, v in RECORD.items() if k not in ("base", "sampling")}, "lacks base, sampling"),
        ({k: v for k, v in RECORD.items() if k != "higher_is_better"}, "lacks higher_is_better"),
        ({**RECORD, "value": float("nan")}, "value=nan"),
        ({**RECORD, "value": "3"}, "value=3"),
        ({**RECORD, "value": None}, "value=None"),
        ({**RECORD, "value": True}, "value=True"),
        ({**RECORD, "reference": None}, "no reference"),
        ({k: v for k, v in RECORD.items() if k != "reference"}, "no reference"),
    ],
)
def test_a_damaged_line_is_named_and_the_others_count(tmp_path, line, words):
    path = written(tmp_path / "a.jsonl", RECORD, line, {**RECORD, "seed_set": 2})
    studies, problems = audit([path])
    assert values(studies) == [[3.0, 3.0]]
    ((kind, where, text),) = [(p.kind, p.where, p.text) for p in problems]
    assert (kind, where) == ("damaged", f"{path}, line 2")
    assert words in text


def test_costs_need_no_reference(tmp_path):
    cost = {k: v for k, v in {**RECORD, **SECONDS}.items() if k not in ("reference", "seed_set")}
    assert audit([written(tmp_path / "a.jsonl", cost)])[1] == []


def test_a_cut_off_last_line_is_named(tmp_path):
    path = written(tmp_path / "a.jsonl", RECORD)
    path.write_text(path.read_text() + json.dumps(RECORD)[:30])
    studies, (problem,) = audit([path])
    assert values(studies) == [[3.0]]
    assert (problem.kind, problem.where) == ("cut off", f"{path}, line 2")


@pytest.mark.parametrize("turned", [False, True])
def test_of_duplicates_the_latest_counts_whatever_the_order_of_files(tmp_path, turned):
    first = written(tmp_path / "a.jsonl", {**RECORD, "time": "2026-01-02"}, {**RECORD, "seed_set": 2})
    second = written(tmp_path / "b.jsonl", {**RECORD, "seed_set": 3}, {**RECORD, "value": 5.0, "time": "2026-01-03"})
    studies, (problem,) = audit([second, first] if turned else [first, second])
    assert sorted(values(studies)[0]) == [3.0, 3.0, 5.0]
    assert (problem.kind, problem.where) == ("duplicate", f"{first}, line 1")
    for words in (f"{second}, line 2", "1 of 1 values differ", "fd_1000 of vanilla 16: 3 became 5"):
        assert words in problem.text


def test_duplicates_of_the_same_value_count_once_and_are_named(tmp_path):
    path = written(tmp_path / "a.jsonl", RECORD, RECORD, RECORD)
    studies, (problem,) = audit([path])
    assert values(studies) == [[3.0]]
    assert problem.where == f"{path}, lines 1-2"
    assert "0 of 2 values differ" in problem.text


def test_a_file_given_twice_is_read_once(tmp_path):
    path = written(tmp_path / "a.jsonl", RECORD)
    studies, (problem,) = audit([path, tmp_path / "." / "a.jsonl"])
    assert values(studies) == [[3.0]]
    assert "given twice" in problem.text


@pytest.mark.parametrize("key", ["predictor", "settings", "reference", "decoder"])
def test_other_versions_of_a_method_or_metric_are_named_and_left_out(tmp_path, key):
    """Their mean with the others would be a number of nothing."""
    old = {**RECORD, key: "old"}
    path = written(tmp_path / "a.jsonl", old, {**old, "seed_set": 2}, {**RECORD, "value": 5.0})
    studies, (problem,) = audit([path])
    assert values(studies) == [[5.0]]
    assert (problem.kind, problem.where) == ("mixed versions", f"{path}, lines 1-2")
    assert "not counted" in problem.text


@pytest.mark.parametrize("key", ["torch", "migm", "commit"])
def test_other_versions_of_the_code_are_named_with_the_lines_of_each(tmp_path, key):
    path = written(tmp_path / "a.jsonl", RECORD, {**RECORD, key: "other", "seed_set": 2})
    studies, (problem,) = audit([path])
    assert values(studies) == [[3.0, 3.0]]
    assert (problem.kind, problem.where) == ("mixed versions", str(path))
    for words in (f"2 values of {key}", f"{RECORD[key]}: {path}, line 1", f"other: {path}, line 2"):
        assert words in problem.text


def test_times_of_different_protocols_are_runs_of_their_own(tmp_path):
    one = {key: value for key, value in {**RECORD, **SECONDS}.items() if key != "seed_set"}
    other = {**one, "metric": "seconds_per_image/batch1_wall", "run": "second"}
    assert audit([written(tmp_path / "a.jsonl", one, other)])[1] == []


@pytest.mark.parametrize("key", ["device", "run"])
def test_times_of_several_devices_or_runs_are_pointed_out(tmp_path, key):
    cost = {**RECORD, **SECONDS}
    del cost["seed_set"]
    path = written(tmp_path / "a.jsonl", {**RECORD, key: "ignored"}, cost, {**cost, "num_steps": 8, key: "other"})
    _, (problem,) = audit([path])
    assert f"2 values of {key}, times compare within one alone" in problem.text
    assert "ignored" not in problem.text


@pytest.mark.parametrize("key", ["base", "sampling", "inputs"])
def test_what_does_not_compare_makes_another_study(tmp_path, key):
    path = written(tmp_path / "a.jsonl", RECORD, {**RECORD, key: "other", "value": 9.0})
    studies, problems = audit([path])
    assert (values(studies), problems) == ([[3.0], [9.0]], [])


def test_the_report_shows_the_studies_apart_and_every_problem(tmp_path, capsys):
    good = written(tmp_path / "a.jsonl", RECORD, {**RECORD, "base": "other", "value": 9.0}, "{half", RECORD)
    page = write_report([good], tmp_path / "report")
    problems = (tmp_path / "report" / "problems.txt").read_text().splitlines()
    assert len(problems) == 2
    shown, printed = page.read_text(encoding="utf-8"), capsys.readouterr().out
    for problem in problems:
        assert json.dumps(problem)[1:-1] in shown
        assert problem in printed
    tables = [(tmp_path / "report" / number / "table.md").read_text() for number in ("1", "2")]
    assert ["3.00" in table for table in tables] == [True, False]
    assert ["9.00" in table for table in tables] == [False, True]


def test_a_study_without_the_baseline_is_left_out_and_named(tmp_path):
    other = {**RECORD, "base": "other", "num_steps": 8, "num_full_steps": 8}
    path = written(tmp_path / "a.jsonl", RECORD, other)
    write_report([path], tmp_path / "report", "vanilla 16")
    (problem,) = (tmp_path / "report" / "problems.txt").read_text().splitlines()
    for words in ("missing reference", f"{path}, line 2", "baseline=vanilla 16", "vanilla 8"):
        assert words in problem
    assert "vanilla 8" not in (tmp_path / "report" / "table.md").read_text()


def test_a_file_without_any_record_is_refused_by_its_lines(tmp_path):
    path = written(tmp_path / "a.jsonl", "{half", {"value": 3})
    with pytest.raises(UserError, match=naming("no records", f"{path}, line 1", f"{path}, line 2")):
        write_report([path], tmp_path / "report")
    assert not (tmp_path / "report").exists()
