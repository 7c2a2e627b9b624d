"""Collect, train, evaluate, generate and bench of the Lumina-DiMOO experiment, shrunk, through the real commands."""

import json

import pytest
from safetensors import safe_open
from test_commands import MAINS

from migm.benchmarks.steps import STEPS

SMALL = [
    "base.random_weights=true",
    "base.transformer.d_model=32",
    "base.transformer.n_heads=2",
    "base.transformer.n_layers=2",
    "base.transformer.mlp_hidden_size=48",
    "base.tokenizer.channels=[32,32,32]",
    "base.tokenizer.layers=1",
    "base.tokenizer.latent_channels=8",
    "base.tokenizer.num_codes=64",
    "base.vocab_size=64",
    "base.height=24",
    "base.width=32",
    "sampling.num_steps=8",
    "sampling.num_full_steps=3",
    "base.dtype=float32",
    "sampling.draw.dtype=float32",
    "sampling.select.dtype=float32",
    "data.num_images=6",
    "data.num_val_images=2",
    "data.shard_images=4",
    "data.collect_batch_size=3",
    "data.batch_size=4",
    "evalset.num_images=3",
    "evalset.batch_size=2",
    "points.vanilla=[8]",
    "points.ml_cache_w01=[8]",
    "~points.ml_cache_w0",
    "~points.recap",
    "~points.dllm_cache",
    "~points.taylorseer_module",
    "points.shortcut=[[8,3]]",
    "trainer.max_steps=4",
    "trainer.precision=32-true",
    "device=cpu",
]


def arguments(folder, *more):
    return ["+experiment=dimoo_shortcut", f"paths.output_dir={folder}", *SMALL, *more]


@pytest.mark.parametrize(
    ("storage", "objective"),
    [
        ("tokens", "mse_all_rows"),
        pytest.param("features", "rollout", marks=pytest.mark.slow),  # fast in test_halton_chain and test_maskgit_chain
        ("online", "mse_kl"),
    ],
)
def test_the_shrunk_experiment_runs_from_collecting_to_evaluation(tmp_path, call_main, storage, objective):
    args = arguments(tmp_path, f"data/storage={storage}", f"objective={objective}")
    for command in ("collect", "train"):
        code, out, err = call_main(MAINS[command], *args)
        assert code == 0, out + err
    folder = tmp_path / "dimoo_shortcut"
    with safe_open(folder / "shortcut.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["channels"] == 32
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    found = {(r["metric"], r["accelerator"], r["num_steps"], r["num_full_steps"]) for r in records}
    points = [("vanilla", 8, 8), ("ml_cache_w01", 8, 2), ("shortcut", 8, 3)]
    costs = ("seconds_per_image/batch2_amortised", "peak_bytes/batch2_amortised", "ffe", "cache_bytes_per_image")
    assert found == {(m, *p) for m in costs for p in points}


def test_the_shrunk_experiment_is_benched_with_a_prompt_of_100_tokens(tmp_path, call_main):
    code, out, err = call_main(MAINS["bench"], *arguments(tmp_path, "repeats=1", "batch_sizes=[1]"))
    assert code == 0, out + err
    rows = [json.loads(line) for line in (tmp_path / "dimoo_shortcut" / "bench.jsonl").read_text().splitlines()]
    by_part = {(row["kind"], row["part"]): row for row in rows}
    runs = {"vanilla 8", "ml_cache_w01 8,2", "shortcut 8,3"}
    assert {part for kind, part in by_part if kind == "run"} == runs
    assert {part for kind, part in by_part if kind == "step"} == set(STEPS)
    # Two halves of 100 and 14 words, 6 x 8 codes, 6 newlines and 4 markers (docs/originals/dimoo.md, Cost).
    halves = [words + 6 * 8 + 6 + 4 for words in (100, 14)]
    full = sum(2 * t * 2 * (4 * 32 * 32 + 3 * 32 * 48) + 4 * t * t * 32 * 2 for t in halves)
    assert by_part["step", "full"]["gflop"] * 1e9 == pytest.approx(full)
    assert all(row["ms_per_image"] > 0 and row["gflop"] > 0 for row in rows if row["kind"] in ("run", "step"))
    assert by_part["step", "cheap"]["gflop"] < by_part["step", "full"]["gflop"]
    new = by_part["new_length", "shortcut 8,3"]
    assert new["of_later"] == new["new_length_s"] / new["later_s"]
    assert len(set(new["words"])) == 3
    bytes_of_features = 4 * 32 * sum(halves)
    assert by_part["memory", "full"]["features_bytes"] == bytes_of_features
