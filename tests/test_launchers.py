"""A training in two processes by each launcher, from its collecting to its report."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from test_commands import Outcome, arguments
from tiny_parts import ROOT, feature_net, reference_for

from migm.evaluation.results import read

TWO = ["trainer.max_steps=4", "trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "~callbacks.progress"]
SUBMITIT = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
TORCHRUN = ["torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]


def run(*line: str) -> Outcome:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "MIGM_PATIENCE": "5"}
    started = subprocess.Popen([sys.executable, "-m", *line], cwd=ROOT, env=env, stdout=PIPE, stderr=PIPE, text=True)
    out, err = started.communicate(timeout=900)
    return started.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning", "submitit"])
def test_two_processes_collect_train_measure_and_report(tmp_path, launcher):
    if launcher == "submitit":
        pytest.importorskip("submitit")
    assets = tmp_path / "assets"
    reference_for(feature_net(assets / "cifarnet.safetensors"), assets / "cifarnet_train50k.safetensors")
    before, behind = {"torchrun": (TORCHRUN, []), "submitit": ([], SUBMITIT)}.get(launcher, ([], []))
    code, _, err = run(*before, "migm.train", *behind, *arguments(tmp_path, assets, *TWO))
    assert code == 0, err
    folder = tmp_path / "tiny_shortcut"
    assert (folder / "report" / "index.html").exists()
    quality = [r for r in read(folder / "results.jsonl") if "seed_set" in r]
    assert len(quality) == 4 * 2  # each point and metric once
    assert not list(folder.glob("unfinished*"))
    manifest = next((tmp_path / "trajectories").rglob("manifest.jsonl"))
    assert len(manifest.read_text().splitlines()) == 1 + 3
    assert not list(manifest.parent.glob("[0-9]*.json"))


@pytest.mark.slow
def test_other_processes_than_the_trainer_asks_for_are_refused(tmp_path):
    code, _, err = run(
        *TORCHRUN, "migm.train", *arguments(tmp_path, Path("none"), "trainer.max_steps=4", "evaluate=false")
    )
    assert code != 0
    assert "error: rank 0: 2 processes were started, but trainer.devices=1" in err
