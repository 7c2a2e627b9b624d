"""bench part=train: a row for each kind of store, with the FLOPs of forward and backward."""

import json

import pytest

import migm.bench


def test_steps_from_both_kinds_of_stores_are_timed(tmp_path, call_main):
    args = ["+experiment=tiny_shortcut", "device=cpu", f"paths.output_dir={tmp_path}", "part=train", "repeats=2"]
    args += ["data.batch_size=4", "compare=[{}, {shortcut.depth: 2}]", "resume=true"]
    code, out, err = call_main(migm.bench.main, *args)
    assert code == 0, out + err
    output = tmp_path / "tiny_shortcut" / "bench.jsonl"
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["kind"], row["part"]) for row in rows] == [("train", "features"), ("train", "tokens")] * 2
    for row in rows:
        assert row["batch_size"] == 4
        assert row["samples_per_s"] == pytest.approx(1e3 / row["ms_per_sample"])
        assert 0 < row["of_floor"] < 1
        assert row["repeats"] == 2
    features, tokens, deep = rows[:3]
    assert features["base_gflop"] == 0 < tokens["base_gflop"]
    assert tokens["gflop"] - tokens["base_gflop"] == pytest.approx(features["gflop"])
    assert deep["gflop"] > features["gflop"]
    assert "training steps" in out
    code, out, err = call_main(migm.bench.main, *args)
    assert code == 0, out + err
    assert len(output.read_text().splitlines()) == 4
