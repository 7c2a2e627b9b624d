"""The MMaDA experiment, shrunk, by the real commands: from collecting to a report, images, in-painting, bench."""

import csv
import json

import numpy as np
import pytest
from mmada_parts import TASK_MARKERS, task_base, write_checkpoint
from PIL import Image
from safetensors import safe_open
from test_commands import MAINS

SMALL = [
    "base.random_weights=true",
    "base.transformer.d_model=32",
    "base.transformer.n_heads=2",
    "base.transformer.n_layers=2",
    "base.transformer.mlp_hidden_size=48",
    "base.transformer.embedding_size=80",
    "base.tokenizer.encoder={channels: 32, factors: [1,1,2], blocks: [2,1,1]}",
    "base.tokenizer.decoder={channels: 32, factors: [1,1,1], blocks: [1,2,1]}",
    "base.tokenizer.bits=5",
    "base.vocab_size=32",
    "base.code_offset=40",
    *(f"base.markers.{name}={number}" for name, number in TASK_MARKERS.items()),
    "base.height=32",
    "base.width=32",
    "sampling.num_steps=8",
    "sampling.num_full_steps=3",
    "base.dtype=float32",
    "sampling.draw.dtype=float32",
    "sampling.select.dtype=float32",
    "data.num_images=36",
    "data.num_val_images=4",
    "data.shard_images=16",
    "data.collect_batch_size=9",
    "data.batch_size=16",
    "evalset.num_images=4",
    "evalset.batch_size=2",
    "points={vanilla: [8], reuse: [[8,3]], shortcut: [[8,3]]}",
    "trainer.max_steps=4",
    "trainer.precision=32-true",
    "device=cpu",
]
LEARNING = ["optimizer=muon", "lr_schedule=trapezoid", "lr_schedule.warmup_steps=10", "callbacks.ema.decay=0.9"]


def arguments(folder, *more):
    return ["+experiment=mmada_shortcut", f"paths.output_dir={folder}", *SMALL, *more]


def called(call_main, command, args):
    code, out, err = call_main(MAINS[command], *args)
    assert code == 0, out + err
    return out


def records(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_shrunk_experiment_collects_trains_measures_reports_and_paints(tmp_path, call_main, assets):
    scored = [f"paths.assets={assets}", "metric=[fd_cifarnet]"]
    scored += ["evalset.reference=${paths.assets}/cifarnet_train50k.safetensors"]
    (tmp_path / "prompts.txt").write_text("a red truck\ntwo boats on a river\na cat\nan old ship in a storm\n")
    args = arguments(tmp_path, *scored, f"paths.prompts={tmp_path / 'prompts.txt'}")
    called(call_main, "train", [*args, "cost=counted"])  # collects first, reports last
    folder = tmp_path / "mmada_shortcut"
    found = {(r["metric"], r["accelerator"], r["num_full_steps"]) for r in records(folder)}
    points = [("vanilla", 8), ("reuse", 3), ("shortcut", 3)]
    assert {(name, *point) for name in ("fd_cifarnet_4", "ffe") for point in points} <= found
    assert (folder / "report" / "index.html").is_file()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray(np.uint8(255 * (np.arange(32) < 16))[:, None].repeat(32, 1)).save(tmp_path / "mask.png")
    long = f"prompt={' '.join(['cat'] * 600)}"
    painting = [f"image={tmp_path / 'photo.png'}", f"mask={tmp_path / 'mask.png'}", "seeds=[0,1]"]
    out = called(call_main, "generate", [*args, "accelerator=shortcut", long, *painting])
    assert "reads 510 ids of a text (base.max_text_len=512) and leaves out the last 90 of the prompt" in " ".join(
        out.split()
    )
    assert (folder / "images.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("attend", [False, True])
def test_a_shortcut_that_was_trained_for_200_steps_predicts_masked_rows_better_than_reuse(tmp_path, call_main, attend):
    learned = ["data/storage=features", "objective=mse", *LEARNING, "trainer.max_steps=200", "evaluate=false"]
    args = arguments(tmp_path, *learned, f"base.attend_padding={attend}", "base.max_text_len=12")
    called(call_main, "train", args)
    with (tmp_path / "mmada_shortcut" / "train" / "version_0" / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["val/feature_mse"]][-1]
    assert float(last["val/feature_mse"]) < 0.8 * float(last["val/reuse_mse"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "objective", "more"),
    [
        ("tokens", "mse_all_rows", []),
        ("features", "rollout", ["base.attend_padding=true", "base.max_text_len=12"]),
        ("online", "mse_kl", ["base.one_pass=true", "sampling=mmada_linear"]),
    ],
)
def test_every_storage_and_both_ways_of_padding_run_from_collecting_to_evaluation(
    tmp_path, call_main, storage, objective, more
):
    args = arguments(tmp_path, f"data/storage={storage}", f"objective={objective}", *more)
    for command in ("collect", "train"):
        called(call_main, command, args)
    with safe_open(tmp_path / "mmada_shortcut" / "shortcut.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["channels"] == 32
    found = {(r["accelerator"], r["num_full_steps"]) for r in records(tmp_path / "mmada_shortcut")}
    assert found == {("vanilla", 8), ("reuse", 3), ("shortcut", 3)}


@pytest.mark.slow
@pytest.mark.parametrize("attend", [False, True])
def test_the_shrunk_experiment_is_benched(tmp_path, call_main, attend):
    points = "points={vanilla: [8], ml_cache_w0: [8], recap: [[8,3]], taylorseer_module: [8], shortcut: [[8,3]]}"
    args = arguments(
        tmp_path, "repeats=1", "batch_sizes=[1]", points, f"base.attend_padding={attend}", "base.max_text_len=127"
    )
    called(call_main, "bench", args)
    rows = [json.loads(line) for line in (tmp_path / "mmada_shortcut" / "bench.jsonl").read_text().splitlines()]
    by_part = {(row["kind"], row["part"]): row for row in rows}
    # Two halves of 90 ids and 3, or of 128 both, and 8 x 8 codes between two markers (docs/originals/mmada.md, Cost).
    halves = [words + 66 for words in ((128, 128) if attend else (90, 3))]
    full = sum(2 * t * 2 * (4 * 32 * 32 + 3 * 32 * 48) + 4 * t * t * 32 * 2 for t in halves)
    assert by_part["step", "full"]["gflop"] * 1e9 == pytest.approx(full)
    assert by_part["step", "cheap"]["gflop"] < by_part["step", "full"]["gflop"]
    assert by_part["memory", "full"]["features_bytes"] == 4 * 32 * sum(halves)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["labels=[3]"], ["labels=[3]", "prompts"]),
        (["sampling.select.anneal=compound"], ["sampling.select.anneal=compound", "compounding"]),
        (["base.random_weights=false", "base.weights=nowhere"], ["base.weights=nowhere/config.json", "no such file"]),
    ],
)
def test_generate_refuses_what_cannot_be_in_one_line(tmp_path, call_main, more, words):
    asked = [] if more[0].startswith("labels") else ["prompt=a cat"]
    code, _, err = call_main(MAINS["generate"], *arguments(tmp_path, *asked, *more))
    assert code == 2
    line = " ".join(err.split())
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def test_generate_draws_with_a_checkpoint_in_the_published_layout(tmp_path, call_main):
    tmp_path.joinpath("published").mkdir()
    files = write_checkpoint(tmp_path / "published", task_base(dtype="float32"))
    paths = [f"base.{key}={value}" for key, value in files.items() if key != "random_weights"]
    sizes = ["d_model=48", "n_heads=4", "mlp_hidden_size=64", "rope_theta=10000.0"]
    small = ["base.height=16", "base.width=16", "base.tokenizer.norm_groups=8", "base.max_text_len=12"]
    levels = [f"base.tokenizer.{part}.channels=8" for part in ("encoder", "decoder")]
    factors = ["base.tokenizer.encoder.factors=[1,2,1]", "base.tokenizer.decoder.factors=[1,1,2]"]
    given = [*(f"base.transformer.{size}" for size in sizes), *small, *levels, *factors, *paths]
    out = called(
        call_main,
        "generate",
        arguments(tmp_path, *given, "base.random_weights=false", "prompt=a red zebra", "seeds=[0]"),
    )
    assert "leaves out zebra" in " ".join(out.split())
    assert (tmp_path / "mmada_shortcut" / "images.png").is_file()
