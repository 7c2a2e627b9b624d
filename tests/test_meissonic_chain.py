"""Collect, train, evaluate, report, generate, in-paint and bench on Meissonic, shrunk, through the real commands."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from test_commands import MAINS

from migm.benchmarks.steps import STEPS

SMALL = [
    "base.random_weights=true",
    "base.transformer.num_attention_heads=2",
    "base.transformer.attention_head_dim=16",
    "base.transformer.num_layers=1",
    "base.transformer.num_single_layers=2",
    "base.transformer.joint_attention_dim=24",
    "base.transformer.pooled_projection_dim=32",
    "base.transformer.axes_dims_rope=[4,6,6]",
    "base.transformer.vocab_size=70",
    "base.transformer.codebook_size=64",
    "base.text.hidden_size=24",
    "base.text.intermediate_size=48",
    "base.text.num_hidden_layers=2",
    "base.text.num_attention_heads=2",
    "base.text.projection_dim=32",
    "base.text.vocab_size=200",
    "base.text.max_position_embeddings=12",
    "base.tokenizer.channels=[32,32,32]",
    "base.tokenizer.layers=1",
    "base.tokenizer.latent_channels=8",
    "base.tokenizer.num_codes=64",
    "base.native_height=null",
    "base.height=32",
    "base.width=32",
    "base.dtype=float32",
    "sampling.num_steps=8",
    "sampling.num_full_steps=3",
    "data.num_images=6",
    "data.num_val_images=2",
    "data.shard_images=4",
    "data.collect_batch_size=3",
    "data.batch_size=4",
    "evalset.num_images=4",
    "evalset.batch_size=2",
    "shortcut.num_heads=2",
    "shortcut.mlp_channels=32",
    "trainer.max_steps=4",
    "trainer.precision=32-true",
    "device=cpu",
]
POINTS = [
    "points.vanilla=[8]",
    "points.ml_cache_w01=[8]",
    "points.shortcut=[[8,3]]",
]
FEWER = ["~points.ml_cache_w0", "~points.recap", "~points.dllm_cache", "~points.taylorseer_module"]
ALL = [
    "points.ml_cache_w0=[8]",
    "points.recap=[[8,3]]",
    "points.dllm_cache=[{num_steps:8,policy.interval:3,predictor.prompt_interval:4}]",
    "points.taylorseer_module=[8]",
]


def arguments(folder, *more):
    return ["+experiment=meissonic_shortcut", f"paths.output_dir={folder}", *SMALL, *more]


def photo(path, size=(32, 32), white=False):
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[: size[1] // 2] = 255 if white else 90
    Image.fromarray(pixels).save(path)
    return path


def test_the_shrunk_experiment_runs_from_training_to_images(tmp_path, assets, call_main):
    chain = [*POINTS, *FEWER, "metric=[fd_cifarnet]", f"paths.assets={assets}", "objective=mse_kl"]
    chain += [f"evalset.reference={assets}/cifarnet_train50k.safetensors"]
    args = arguments(tmp_path, *chain, f"paths.prompts={tmp_path / 'prompts.txt'}")
    (tmp_path / "prompts.txt").write_text(
        "a red bird\na cat\nan old grey ship in a storm on a lake at night far away\n"
    )
    code, out, err = call_main(MAINS["train"], *args)
    assert code == 0, out + err
    assert "1 of 3 prompts are cut: the text encoder reads 10 tokens" in " ".join(out.split())
    folder = tmp_path / "meissonic_shortcut"
    with safe_open(folder / "shortcut.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["channels"] == 32
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    points = {("vanilla", 8, 8), ("ml_cache_w01", 8, 2), ("shortcut", 8, 3)}
    assert {(r["accelerator"], r["num_steps"], r["num_full_steps"]) for r in records} == points
    assert {r["metric"] for r in records} > {"ffe", "cache_bytes_per_image"}
    assert (folder / "report" / "index.html").is_file()

    image = photo(tmp_path / "photo.png")
    for accelerator, more in (
        ("shortcut", []),
        ("ml_cache", [f"image={image}", f"mask={photo(tmp_path / 'mask.png', white=True)}"]),
    ):
        grid = tmp_path / f"{accelerator}.png"
        wanted = [f"accelerator={accelerator}", "prompt=a red bird", "seeds=[0,1]", f"output={grid}", *more]
        code, out, err = call_main(MAINS["generate"], *arguments(tmp_path, *wanted))
        assert code == 0, out + err
        assert grid.is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("base", "storage"), [("meissonic", "features"), ("monetico", "tokens")])
def test_a_shortcut_trained_for_200_steps_errs_less_than_reuse(tmp_path, call_main, base, storage):
    chosen = [f"base={base}", f"data={base}", f"sampling={base}", f"data/storage={storage}"]
    more = [
        "trainer.max_steps=200",
        "data.num_images=200",
        "data.num_val_images=8",
        "data.batch_size=64",
        "evaluate=false",
    ]
    more += [
        "optimizer=muon",
        "optimizer.lr=0.02",
        "lr_schedule=trapezoid",
        "callbacks=default",
        "callbacks.ema.decay=0.9",
    ]
    code, out, err = call_main(MAINS["train"], *arguments(tmp_path, *POINTS, *FEWER, *chosen, *more))
    assert code == 0, out + err
    logged = (tmp_path / "meissonic_shortcut").rglob("metrics.csv")
    rows = [line.split(",") for file in logged for line in file.read_text().splitlines()]
    errors = {name: [row[rows[0].index(name)] for row in rows[1:]] for name in rows[0] if name.startswith("val/")}
    ours, reuse = (float([x for x in errors[f"val/{name}_mse"] if x][-1]) for name in ("feature", "reuse"))
    assert ours < 0.9 * reuse


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rollout", "mse_all_rows"])
def test_every_point_of_the_experiment_runs_with_other_objectives(tmp_path, call_main, objective):
    args = arguments(tmp_path, *POINTS, *ALL, f"objective={objective}", "data/storage=online")
    code, out, err = call_main(MAINS["train"], *args)
    assert code == 0, out + err
    lines = (tmp_path / "meissonic_shortcut" / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["accelerator"] for line in lines}) == 7


@pytest.mark.slow
def test_the_shrunk_experiment_is_benched(tmp_path, call_main):
    args = arguments(tmp_path, *POINTS, *FEWER, "repeats=1", "batch_sizes=[1]")
    code, out, err = call_main(MAINS["bench"], *args)
    assert code == 0, out + err
    rows = [json.loads(line) for line in (tmp_path / "meissonic_shortcut" / "bench.jsonl").read_text().splitlines()]
    by_part = {(row["kind"], row["part"]): row for row in rows}
    assert {part for kind, part in by_part if kind == "step"} == set(STEPS)
    # 12 text rows and 4x4 image rows of 64 tokens, both halves; a double block and two single ones.
    t, c = 12 + 16, 32
    linears = t * (4 + 8 + 2 * (3 + 4 + 5)) * c * c
    attention = 3 * 2 * t * t * c
    head = 64 * (4 + 1 + 2) * c * c
    assert by_part["step", "full"]["gflop"] * 1e9 >= 2 * 2 * (linears + attention)
    assert by_part["step", "full"]["gflop"] * 1e9 < 2 * 2 * 1.6 * (linears + attention + head)
    assert by_part["step", "cheap"]["gflop"] < by_part["step", "full"]["gflop"]
    assert by_part["memory", "full"]["features_bytes"] == 4 * c * 2 * t
