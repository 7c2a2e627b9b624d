"""Rows are appended as they are measured, found again only for the same settings and device, never mixed."""

import json
from types import SimpleNamespace

import pytest
import torch

import migm.bench
from migm.benchmarks.ledger import Ledger

ARGS = ["+experiment=tiny_shortcut", "device=cpu", "repeats=1", "batch_sizes=[2]"]
FEW = "points={vanilla: [2], shortcut: [[6,2]]}"


@pytest.fixture
def bench(tmp_path, call_main):
    def run(*more):
        path = tmp_path / "tiny_shortcut" / "bench.jsonl"
        code, out, err = call_main(migm.bench.main, *ARGS, f"paths.output_dir={tmp_path}", *more)
        assert code == 0, out + err
        return path, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [], out

    return run


@pytest.fixture(scope="module")
def known():
    return []


@pytest.fixture
def measured(bench, known, tmp_path):
    """A file with the rows of FEW, which are measured once for all tests, and these rows."""
    if not known:
        known.append(bench(FEW)[0].read_text())
    path = tmp_path / "tiny_shortcut" / "bench.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(known[0])
    return path, [json.loads(line) for line in known[0].splitlines()]


def test_what_is_measured_already_is_measured_again_only_without_resume(bench, measured):
    path, first = measured
    assert len({row["identity"] for row in first}) == len(first) == 2 + 5 + 3
    assert bench(FEW, "resume=true")[1] == first
    cut = [row for row in first if row["part"] not in ("tail", "shortcut 6,2")]
    path.write_text("".join(json.dumps(row) + "\n" for row in cut))
    _, again, out = bench(FEW, "resume=true")
    assert again[: len(cut)] == cut
    added = [(row["kind"], row["part"]) for row in again[len(cut) :]]
    assert added == [("run", "shortcut 6,2"), ("step", "tail"), ("memory", "shortcut 6,2")]
    assert again[len(cut)]["vanilla_from"] == "vanilla 2 times 3"  # measured again beside it
    assert "cheap step with its tail" in out  # found rows are shown
    assert len(bench(FEW)[1]) == len(again) + len(first)


@pytest.mark.parametrize("change", ["shortcut.bottleneck_ratio=4", "runtime.compile=false", "sampling.num_steps=5"])
def test_other_settings_are_other_rows(bench, measured, change):
    _, first = measured
    _, rows, _ = bench(FEW, "resume=true", change)
    assert len(rows) == 2 * len(first)
    assert len({row["identity"] for row in rows}) == len(rows)


def test_rows_of_another_device_in_the_file_are_passed_over(bench, measured):
    path, first = measured
    path.write_text("".join(json.dumps({**row, "device": "NVIDIA H200"}) + "\n" for row in first))
    _, rows, out = bench(FEW, "resume=true")
    assert len(rows) == 2 * len(first)
    assert {row["device_type"] for row in rows} == {"cpu"}
    assert "H200" not in out
    assert len(list(path.parent.glob("bench_tiny_shortcut_*.png"))) == 1


def test_what_would_begin_after_max_seconds_is_left_out_and_named(bench):
    path, rows, out = bench(FEW, "max_seconds=0.000001")
    assert rows == []
    assert not path.exists()
    for part in ("default vanilla 2, batch 2", "default shortcut 6,2, batch 2", "steps of batch 2", "memory"):
        assert any("left out" in line and part in line for line in out.splitlines()), part


def test_a_row_is_in_the_file_as_soon_as_it_is_added(tmp_path):
    ledger = Ledger(tmp_path / "bench.jsonl", torch.device("cpu"), False, "name")
    variant = SimpleNamespace(name="default", settings="", base=SimpleNamespace(fingerprint=lambda: "abc"))
    for n, part in enumerate(("full", "cheap"), 1):
        about = ledger.about(variant, "step", part, 1, 1)
        assert ledger.lacks(about)
        ledger.add(about, {"ms_per_image": 1.0})
        assert len(ledger.path.read_text().splitlines()) == n
