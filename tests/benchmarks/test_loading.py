"""bench part=loading: one row for every form, of true counts, and nothing left on the disk."""

import json

import pytest

import migm.bench

FORMS = ["bfloat16", "int8", "tars", "tokens", "online"]


@pytest.mark.slow
def test_every_form_is_measured_and_nothing_is_left(tmp_path, call_main):
    sizes = ["num_images=16", "tar_images=5", "online_images=4", "batches=3", "base_batches=1", "cold_pairs=2"]
    args = ["+experiment=tiny_shortcut", "device=cpu", f"paths.output_dir={tmp_path}", "part=loading"]
    code, _, err = call_main(migm.bench.main, *args, *(f"loading.{size}" for size in sizes))
    assert code == 0, err
    assert {path.name for path in (tmp_path / "tiny_shortcut").iterdir() if path.name != "hydra"} == {
        "bench.jsonl",
        "loading.png",
    }
    rows = [json.loads(line) for line in (tmp_path / "tiny_shortcut" / "bench.jsonl").read_text().splitlines()]
    assert len(rows) == 13
    rates = {(row["form"], row["cache"]): row for row in rows if row["part"] == "rate"}
    assert [form for form in FORMS if any(form == key[0] for key in rates)] == FORMS
    for row in rates.values():  # both features of a pair, 17 rows of 48 channels in bfloat16
        assert row["mb_per_s"] / row["pairs_per_s"] * 1e6 == pytest.approx(2 * 17 * 48 * 2)
    steps = [row for row in rows if row["part"] == "step"]
    assert [row["form"] for row in steps] == ["bfloat16", "int8"]
    assert all(0 < row["wait_share"] < 1 and row["wait_ms"] < row["step_ms"] for row in steps)
    assert [row["form"] for row in rows if row["part"] == "cold"] == ["bfloat16", "int8", "tars"]


def test_too_few_images_are_refused(tmp_path, call_main):
    args = ["+experiment=tiny_shortcut", "device=cpu", f"paths.output_dir={tmp_path}", "part=loading"]
    code, _, err = call_main(migm.bench.main, *args, "loading.num_images=2")
    assert (code, "loading.num_images=2" in err) == (2, True)
    code, _, err = call_main(migm.bench.main, *args[:3], "part=reading")
    assert (code, "part=reading" in err) == (2, True)
