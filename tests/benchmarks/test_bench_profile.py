"""A profile counts operators, launches and host waits of a step and of a run."""

import json
import warnings

import pytest
import torch

import migm.bench
from migm.benchmarks.profile import cuda_waits, profiled
from migm.benchmarks.timing import Job


def test_operators_launches_and_waits_of_a_call():
    a = torch.eye(64)

    def job():
        b = a @ a
        c = b @ a
        return float(c[0, 0]), int(c.sum())

    row = profiled(Job(job), torch.device("cpu"))
    assert row["host_waits"] == 2
    calls = {each["name"]: each["calls"] for each in row["operators"]}
    assert calls["aten::mm"] == 2
    assert row["launches"] >= 4
    assert row["device_ms"] >= sum(each["ms"] for each in row["operators"]) > 0
    assert [each["ms"] for each in row["operators"]] == sorted((e["ms"] for e in row["operators"]), reverse=True)


def test_waits_on_cuda_are_torchs_own_warnings(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def job():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)

    assert cuda_waits(job) == 3
    assert modes == ["warn", 0]
    with pytest.raises(ZeroDivisionError):
        cuda_waits(lambda: 1 / 0)
    assert modes == ["warn", 0, "warn", 0]


def test_the_command_profiles_steps_and_the_run_of_the_shortcut(tmp_path, call_main):
    args = ["+experiment=tiny_shortcut", "device=cpu", "batch_sizes=[2]", f"paths.output_dir={tmp_path}"]
    code, out, err = call_main(migm.bench.main, *args, "part=profile")
    assert code == 0, out + err
    rows = [json.loads(line) for line in (tmp_path / "tiny_shortcut" / "bench.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == ["full", "cheap", "tail", "shortcut 6,2"]
    assert {row["kind"] for row in rows} == {"profile"}
    by_part = {row["part"]: row for row in rows}
    assert by_part["shortcut 6,2"]["launches"] > 2 * by_part["full"]["launches"]
    assert [row["host_waits"] for row in rows] == [0] * 4
    assert "launches" in out
    assert "aten::addmm" in out
