"""Collect, train, evaluate, report, generate, in-paint and bench aMUSEd's experiment, shrunk, by the real commands."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from test_commands import MAINS
from tiny_parts import ROOT

SMALL = [
    "base.random_weights=true",
    "base.transformer.hidden_size=32",
    "base.transformer.num_hidden_layers=2",
    "base.transformer.num_attention_heads=2",
    "base.transformer.intermediate_size=48",
    "base.transformer.block_out_channels=32",
    "base.transformer.block_num_heads=2",
    "base.transformer.num_res_blocks=1",
    "base.transformer.encoder_hidden_size=24",
    "base.transformer.cond_embed_dim=16",
    "base.transformer.micro_cond_encode_dim=8",
    "base.transformer.vocab_size=72",
    "base.transformer.codebook_size=64",
    "base.text.hidden_size=24",
    "base.text.intermediate_size=32",
    "base.text.num_hidden_layers=2",
    "base.text.num_attention_heads=2",
    "base.text.projection_dim=16",
    "base.text.vocab_size=99",
    "base.text.max_position_embeddings=12",
    "base.tokenizer.channels=[32,32,32]",
    "base.tokenizer.layers=1",
    "base.tokenizer.latent_channels=8",
    "base.tokenizer.num_codes=64",
    "base.dtype=float32",
    "device=cpu",
]
SIZES = {"256": ["base.height=16", "base.width=16"], "512": ["base.height=32", "base.width=32"]}
RUN = [
    "sampling.num_steps=6",
    "sampling.num_full_steps=2",
    "shortcut.mlp_channels=32",
    "data.num_images=6",
    "data.num_val_images=2",
    "data.shard_images=4",
    "data.collect_batch_size=3",
    "data.batch_size=4",
    "evalset.num_images=3",
    "evalset.batch_size=2",
    "points={vanilla: [6], ml_cache: [6], shortcut: [[6, 2]]}",
    "trainer.max_steps=4",
    "trainer.precision=32-true",
]
OF_A_STORE = {"256": ("features", "rollout"), "512": ("tokens", "mse")}


def arguments(folder, size, *more):
    chosen = ["+experiment=amused_shortcut", f"base=amused_{size}", f"paths.output_dir={folder}"]
    return [*chosen, *SMALL, *SIZES[size], *more]


@pytest.mark.parametrize("size", ["256", pytest.param("512", marks=pytest.mark.slow)])
def test_the_shrunk_experiment_runs_from_collecting_to_the_report(tmp_path, call_main, assets, size):
    storage, objective = OF_A_STORE[size]
    judged = [f"paths.assets={assets}", f"paths.prompts={ROOT / 'migm' / 'assets' / 'prompts.txt'}"]
    judged += ["metric=[fd_cifarnet]", f"evalset.reference={assets / 'cifarnet_train50k.safetensors'}"]
    args = arguments(tmp_path, size, *RUN, *judged, f"data/storage={storage}", f"objective={objective}")
    for command in ("collect", "train", "report"):
        code, out, err = call_main(MAINS[command], *args)
        assert code == 0, out + err
    folder = tmp_path / "amused_shortcut"
    with safe_open(folder / "shortcut.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["channels"] == 32
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    points = {(r["accelerator"], r["num_steps"], r["num_full_steps"]) for r in records}
    assert points == {("vanilla", 6, 6), ("ml_cache", 6, 2), ("shortcut", 6, 2)}
    ffe = {r["accelerator"]: r["value"] for r in records if r["metric"] == "ffe"}
    assert 2 < ffe["shortcut"] < 6
    assert 2 < ffe["ml_cache"] < ffe["vanilla"] == 6
    assert (folder / "report" / "index.html").is_file()


def picture(path, value):
    Image.fromarray(value.astype(np.uint8)).save(path)
    return path


def test_images_are_generated_and_in_painted(tmp_path, call_main):
    sampler = ["sampling.num_steps=6", "sampling.num_full_steps=2", "prompt=a red truck", "seeds=[0]"]
    generate = arguments(tmp_path, "512", *sampler, f"folder={tmp_path / 'made'}")
    code, out, err = call_main(MAINS["generate"], *generate)
    assert code == 0, out + err
    photo = picture(tmp_path / "photo.png", np.arange(32 * 32 * 3).reshape(32, 32, 3) % 255)
    hole = np.zeros((32, 32))
    hole[8:24, 8:24] = 255
    mask = picture(tmp_path / "mask.png", hole)
    inside = [f"image={photo}", f"mask={mask}", "sampling/schedule=linear_floor", "~sampling.schedule.at_least_one"]
    code, out, err = call_main(MAINS["generate"], *arguments(tmp_path, "512", *sampler, *inside))
    assert code == 0, out + err


def test_a_prompt_that_is_cut_is_said(tmp_path, call_main):
    words = " ".join(["word"] * 20)
    args = arguments(tmp_path, "256", "sampling.num_steps=6", "sampling.num_full_steps=2", "seeds=[0]")
    code, out, err = call_main(MAINS["generate"], *args, f"prompt={words}")
    assert code == 0, out + err
    assert "the prompt is cut: the text encoder reads 10 tokens" in " ".join((out + err).split())


@pytest.mark.slow
def test_a_shortcut_trained_for_200_steps_errs_less_than_reuse(tmp_path, call_main):
    longer = ["data.num_images=96", "data.num_val_images=16", "data.collect_batch_size=16", "data.shard_images=32"]
    longer += ["data.batch_size=32", "trainer.max_steps=200", "shortcut.mlp_channels=64", "evaluate=false"]
    as_usual = ["optimizer=muon", "lr_schedule=trapezoid", "callbacks=default", "~callbacks.ema"]
    code, out, err = call_main(MAINS["train"], *arguments(tmp_path, "512", *RUN, *longer, *as_usual))
    assert code == 0, out + err
    lines = (tmp_path / "amused_shortcut" / "train" / "version_0" / "metrics.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(last["val/feature_mse"]) < float(last["val/reuse_mse"])


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_shrunk_experiment_is_benched(tmp_path, call_main, size):
    code, out, err = call_main(MAINS["bench"], *arguments(tmp_path, size, *RUN, "repeats=1", "batch_sizes=[1]"))
    assert code == 0, out + err
    rows = [json.loads(line) for line in (tmp_path / "amused_shortcut" / "bench.jsonl").read_text().splitlines()]
    by_part = {(row["kind"], row["part"]): row for row in rows}
    assert by_part["step", "cheap"]["gflop"] < by_part["step", "full"]["gflop"]
    assert all(row["ms_per_image"] > 0 and row["gflop"] > 0 for row in rows if row["kind"] in ("run", "step"))
    features = {"256": 16, "512": 64}[size] * 32 * 4 * 2
    assert by_part["memory", "full"]["features_bytes"] == features
