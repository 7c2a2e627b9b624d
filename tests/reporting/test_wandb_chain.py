"""`logger=wandb` on the whole chain: training, points and report are runs of one group, offline."""

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from offline_runs import offline_runs
from tiny_parts import ROOT, feature_net, reference_for

from migm.evaluation.results import read

pytestmark = pytest.mark.slow


def trained(folder: Path, *overrides: str) -> None:
    """One `migm.train` of three steps that logs to W&B below `folder`."""
    reference_for(feature_net(folder / "cifarnet.safetensors"), folder / "cifarnet_train50k.safetensors")
    folders = [f"paths.output_dir={folder}", f"paths.assets={folder}", "device=cpu"]
    chosen = ["logger=wandb", "metric=[fd_cifarnet]", "trainer.max_steps=3", "trainer.log_every_n_steps=1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env.pop("WANDB_API_KEY", None)
    line = [sys.executable, "-m", "migm.train", "+experiment=tiny_shortcut", *overrides, *folders, *chosen]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_trial_of_a_sweep_is_one_run_with_its_point(tmp_path):
    trained(
        tmp_path,
        "hydra.mode=MULTIRUN",
        "+sweep=ablation_rd",
        "shortcut.bottleneck_ratio=1,2",
        "shortcut.depth=1",
        "seed=0",
    )
    runs = [run for trial in sorted((tmp_path / "tiny_shortcut").glob("ablation_rd/*")) for run in offline_runs(trial)]
    assert [run["job_type"] for run in runs] == ["train", "train"]
    assert len({run["run_id"] for run in runs}) == 2
    assert {run["run_group"] for run in runs} == {"tiny_shortcut/ablation_rd"}
    assert [run["config"]["resolved"]["shortcut"]["bottleneck_ratio"] for run in runs] == [1, 2]
    for run in runs:
        assert run["config"]["point"]["method"] == "shortcut"
        keys = set(run["logged"])
        assert keys >= {"train/feature_mse", "cost/ffe", "preview/path"}
        assert any(key.startswith("quality/fd_cifarnet") for key in keys)


def test_one_command_logs_every_job_with_the_resolved_config(tmp_path):
    trained(tmp_path)
    output = tmp_path / "tiny_shortcut"
    runs = offline_runs(output)
    assert Counter(run["job_type"] for run in runs) == {"train": 1, "evaluate": 4, "report": 1}
    assert {run["run_group"] for run in runs} == {"tiny_shortcut"}
    for run in runs:
        resolved = run["config"]["resolved"]
        assert resolved["trainer"]["max_steps"] == 3
        assert resolved["logger"]["wandb"]["offline"] is True
    training = next(run for run in runs if run["job_type"] == "train")
    with next(output.glob("train/version_*/metrics.csv")).open() as file:
        losses = [row["train/feature_mse"] for row in csv.DictReader(file) if row["train/feature_mse"]]
    assert training["logged"]["train/feature_mse"] == pytest.approx(float(losses[-1]))

    points = {run["display_name"]: run["logged"] for run in runs if run["job_type"] == "evaluate"}
    assert set(points) == {"vanilla 2", "vanilla 6", "reuse 6,2", "shortcut 6,2"}
    assert all("preview/path" in logged for logged in points.values())
    for record in read(output / "results.jsonl"):
        key = ("quality/" if "seed_set" in record else "cost/") + record["metric"]
        label = f"{record['accelerator']} 6,2" if record["num_full_steps"] != record["num_steps"] else None
        logged = points[label or f"{record['accelerator']} {record['num_steps']}"]
        assert logged[key] == pytest.approx(record["value"])
    assert (output / "report" / "dashboard.json").exists()
