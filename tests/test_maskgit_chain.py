"""Collect, train and evaluate of the 512 px experiment, shrunk, through the real commands."""

import json

import pytest
from safetensors import safe_open
from test_commands import MAINS

SMALL = [
    "base.random_weights=true",
    "base.transformer.num_tokens=64",
    "base.transformer.vocab_size=32",
    "base.transformer.channels=32",
    "base.transformer.depth=2",
    "base.transformer.num_heads=2",
    "base.transformer.mlp_channels=64",
    "base.tokenizer.ddconfig.ch=32",
    "base.tokenizer.ddconfig.z_channels=32",
    "base.tokenizer.ddconfig.num_res_blocks=1",
    "base.tokenizer.n_embed=32",
    "base.tokenizer.embed_dim=32",
    "base.dtype=float32",
    "shortcut.num_heads=2",
    "data.num_images=6",
    "data.num_val_images=2",
    "data.shard_images=4",
    "data.collect_batch_size=3",
    "evalset.num_images=4",
    "evalset.batch_size=2",
    "points.vanilla=[15]",
    "points.shortcut=[[15,7]]",
    "trainer.max_steps=4",
    "trainer.precision=32-true",
    "device=cpu",
]


# Fast with "mse" in test_commands and test_halton_chain.
@pytest.mark.parametrize("objective", [pytest.param("mse", marks=pytest.mark.slow), "rollout"])
def test_the_shrunk_experiment_runs_from_collecting_to_evaluation(tmp_path, call_main, objective):
    args = ["+experiment=maskgit_shortcut", f"paths.output_dir={tmp_path}", f"objective={objective}", *SMALL]
    for command in ("collect", "train"):
        code, out, err = call_main(MAINS[command], *args)
        assert code == 0, out + err
    folder = tmp_path / "maskgit_shortcut"
    with safe_open(folder / "shortcut.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["channels"] == 32
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    found = {(r["metric"], r["accelerator"], r["num_steps"], r["num_full_steps"]) for r in records}
    points = [("vanilla", 15, 15), ("shortcut", 15, 7)]
    costs = ("seconds_per_image/batch2_amortised", "peak_bytes/batch2_amortised", "ffe", "cache_bytes_per_image")
    assert found == {(m, *p) for m in costs for p in points}
