"""results.jsonl survives kills."""

import json

import pytest
from tiny_parts import naming

from migm.evaluation.results import IDENTITY, Results, read
from migm.runtime.errors import UserError

RECORD = {
    "metric": "fd_cifarnet_1000",
    "accelerator": "shortcut",
    "num_steps": 16,
    "num_full_steps": 4,
    "seed_set": 1,
    "base": "b",
    "predictor": "p",
    "sampling": "s",
    "reference": "r",
    "value": 3.5,
    "time": "2026-01-01T00:00:00",
}


def test_what_was_appended_is_read(tmp_path):
    results = Results(tmp_path / "deep" / "results.jsonl")
    results.append(RECORD)
    results.append({**RECORD, "seed_set": 2})
    again = Results(results.path)
    assert again.records == results.records == [RECORD, {**RECORD, "seed_set": 2}]


@pytest.mark.parametrize("key", IDENTITY)
def test_each_identity_key_makes_another_measurement(tmp_path, key):
    results = Results(tmp_path / "results.jsonl")
    results.append(RECORD)
    assert results.has({**RECORD, "value": -1, "time": "later"})
    assert not results.has({**RECORD, key: "other"})
    assert not Results(results.path).has({**RECORD, key: "other"})


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_cut_off_last_line_is_dropped_and_appending_goes_on(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    line = json.dumps(RECORD) + "\n"
    path.write_text(line + json.dumps({**RECORD, "seed_set": 2})[:cut])
    results = Results(path)
    assert results.records == [RECORD]
    results.append({**RECORD, "seed_set": 3})
    assert [r["seed_set"] for r in read(path)] == [1, 3]


def test_a_damaged_line_in_the_middle_is_refused_by_file_and_number(tmp_path):
    path = tmp_path / "results.jsonl"
    line = json.dumps(RECORD) + "\n"
    path.write_text(line + line[:30] + "\n" + line)
    with pytest.raises(UserError, match=naming("results.jsonl", "line 2")):
        read(path)
    assert path.read_text() == line + line[:30] + "\n" + line


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=naming("results=", "none.jsonl")):
        read(tmp_path / "none.jsonl")
