"""Collect, train, evaluate, report, generate, analyse and bench of the Halton-MaskGIT experiment, shrunk."""

import json

import numpy as np
import pytest
from PIL import Image
from test_commands import MAINS

import migm.analyse
import migm.plan
from migm.benchmarks.steps import STEPS

SMALL = [
    "base.random_weights=true",
    "base.transformer.num_tokens=16",
    "base.transformer.vocab_size=32",
    "base.transformer.num_classes=10",
    "base.transformer.channels=32",
    "base.transformer.depth=2",
    "base.transformer.num_heads=3",
    "base.transformer.mlp_channels=64",
    "base.tokenizer.ch=4",
    "base.tokenizer.ch_mult=[1,1,2]",
    "base.tokenizer.num_res_blocks=1",
    "base.tokenizer.z_channels=8",
    "base.tokenizer.n_embed=32",
    "base.tokenizer.norm_groups=2",
    "base.dtype=float32",
    "shortcut.num_heads=2",
    "sampling.num_steps=8",
    "sampling.num_full_steps=3",
    "data.num_images=6",
    "data.num_val_images=2",
    "data.shard_images=4",
    "data.collect_batch_size=3",
    "data.batch_size=16",
    "evalset=tiny",
    "evalset.num_images=4",
    "evalset.batch_size=2",
    "points.vanilla=[8]",
    "points.reuse=[[8,3]]",
    "points.shortcut=[[8,3]]",
    "trainer.max_steps=4",
    "trainer.precision=32-true",
    "device=cpu",
]


def arguments(folder, *more):
    return ["+experiment=halton_shortcut", f"paths.output_dir={folder}", *SMALL, *more]


@pytest.mark.parametrize("storage", ["features", pytest.param("tokens", marks=pytest.mark.slow)])
def test_the_shrunk_experiment_runs_from_collecting_to_evaluation(tmp_path, call_main, storage):
    args = arguments(tmp_path, f"data/storage={storage}")
    for command in ("collect", "train"):
        code, out, err = call_main(MAINS[command], *args)
        assert code == 0, out + err
    records = [json.loads(line) for line in (tmp_path / "halton_shortcut" / "results.jsonl").read_text().splitlines()]
    found = {(r["metric"], r["accelerator"], r["num_steps"], r["num_full_steps"]) for r in records}
    points = [("vanilla", 8, 8), ("reuse", 8, 3), ("shortcut", 8, 3)]
    costs = ("seconds_per_image/batch2_amortised", "peak_bytes/batch2_amortised", "ffe", "cache_bytes_per_image")
    assert found == {(m, *p) for m in costs for p in points}
    assert all("order=Halton()" in record["sampling"] for record in records)


def test_images_are_generated_and_painted_anew_where_the_mask_is_white(tmp_path, call_main):
    folder = tmp_path / "images"
    args = arguments(tmp_path, "accelerator=reuse", "labels=[3]", "seeds=[0,1]", "sampling.order.roll=true")
    code, out, err = call_main(MAINS["generate"], *args, f"folder={folder}")
    assert code == 0, out + err
    assert "memory: transformer" in out
    photo = sorted(folder.rglob("*.png"))[0]
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    painted = [f"image={photo}", f"mask={tmp_path / 'mask.png'}", f"folder={tmp_path / 'painted'}"]
    code, out, err = call_main(MAINS["generate"], *args, *painted, f"output={tmp_path / 'painted.png'}")
    assert code == 0, out + err
    assert len(list((tmp_path / "painted").rglob("*.png"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["ml_cache", "dllm_cache", "taylorseer_module"])
def test_methods_that_work_on_layers_run_through_the_command(tmp_path, call_main, accelerator):
    args = arguments(tmp_path, f"accelerator={accelerator}", "labels=[3]", "seeds=[0]")
    code, out, err = call_main(MAINS["generate"], *args)
    assert code == 0, out + err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("accelerator=recap", "sampling.order=Halton: accelerator=recap ranks the positions itself"),
        ("prompt=x", "prompts=['x']: this base draws classes"),
        ("base.random_weights=false base.weights=none.pth", "base.weights=none.pth: no such file"),
        ("sampling.num_steps=17", "sampling.num_steps=17 must be between 1 and the 16 tokens"),
    ],
)
def test_what_cannot_be_ends_the_command_in_one_line(tmp_path, call_main, override, words):
    labels = [] if "prompt" in override else ["labels=[3]"]
    code, out, err = call_main(MAINS["generate"], *arguments(tmp_path, *labels, "seeds=[0]", *override.split()))
    assert code == 2, out + err
    assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_recap_runs_where_every_masked_position_is_offered(tmp_path, call_main):
    args = arguments(tmp_path, "accelerator=recap", "sampling/order=all_masked", "labels=[3]", "seeds=[0]")
    code, out, err = call_main(MAINS["generate"], *args, "sampling/select=confidence")
    assert code == 0, out + err


@pytest.mark.slow
def test_a_shortcut_of_200_steps_errs_less_than_reuse(tmp_path, call_main, assets):
    known = [f"paths.assets={assets}", "metric=[fd_cifarnet]", "trainer.max_steps=200", "data.num_images=64"]
    short = ["optimizer=muon", "lr_schedule=trapezoid", "callbacks=default", "~callbacks.ema", "data.batch_size=64"]
    args = arguments(tmp_path, *known, *short)
    for main, more in ((MAINS["train"], []), (MAINS["report"], []), (migm.analyse.main, ["analyses=feature_error"])):
        code, out, err = call_main(main, *args, *more)
        assert code == 0, out + err
    folder = tmp_path / "halton_shortcut"
    assert (folder / "report" / "index.html").is_file()
    found = json.loads((folder / "analyses" / "feature_error.json").read_text())["mean_over_cheap_steps"]
    assert found["shortcut 8,3"] < found["reuse 8,3"]


@pytest.mark.slow
def test_the_shrunk_experiment_is_planned_and_benched(tmp_path, call_main):
    code, out, err = call_main(migm.plan.main, *arguments(tmp_path))
    assert code == 0, out + err
    assert "memory: transformer" in out
    code, out, err = call_main(MAINS["bench"], *arguments(tmp_path, "repeats=1", "batch_sizes=[1]"))
    assert code == 0, out + err
    rows = [json.loads(line) for line in (tmp_path / "halton_shortcut" / "bench.jsonl").read_text().splitlines()]
    by_part = {(row["kind"], row["part"]): row for row in rows}
    assert {part for kind, part in by_part if kind == "step"} == set(STEPS)
    # Two halves of 16 codes and the register; three heads of 10; what the class says is not computed at a step.
    t, c, inner, hidden = 17, 32, 30, 64
    full = 2 * 2 * (2 * t * (4 * c * inner + 3 * c * hidden) + 4 * t * t * inner)
    assert by_part["step", "full"]["gflop"] * 1e9 == pytest.approx(full)
    assert by_part["step", "cheap"]["gflop"] < by_part["step", "full"]["gflop"]
