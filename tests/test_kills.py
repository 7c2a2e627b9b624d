"""Killed at random moments and started again, collect, train and evaluate end as if never killed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import ROOT, feature_net, reference_for

from migm.evaluation.results import identity, read

pytestmark = pytest.mark.slow  # one kill of each kind is in test_commands.py and test_checkpoints.py

SEED = int(os.environ.get("MIGM_TEST_SEED", "0"))
TIMINGS = ("time", "seconds", "run", "commit")  # of a record, and the value of seconds_per_image/...
STORE = "store"


def tortured(folder: Path, kills: int, steps: int) -> dict[str, Any]:
    """Kill every command so often; returns what `killing.torture` found of each."""
    assets = folder / "assets"
    reference_for(feature_net(assets / "cifarnet.safetensors"), assets / "cifarnet_train50k.safetensors")
    shared = ["+experiment=tiny_shortcut", f"paths.assets={assets}", "device=cpu", "paths.output_dir=unset"]
    shared += ["data.num_images=24", "data.shard_images=2"]
    store = f"data.folder={folder / 'collect-whole' / STORE}"
    training = [f"trainer.max_steps={steps}", f"callbacks.checkpoint.every_n_train_steps={steps // 8}"]
    commands = {
        "collect": ["data.folder=${paths.output_dir}/" + STORE],
        "train": [store, "collect=false", "evaluate=false", "shortcut.dropout=0.1", *training],
        "evaluate": ["~points.shortcut", "metric=[fd_cifarnet,class_agreement]"],
    }
    asked = {"folder": str(folder), "kills": kills, "seed": SEED}
    asked["commands"] = {name: [*shared, *more] for name, more in commands.items()}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(ROOT / "tests" / "killing.py"), json.dumps(asked)]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"MIGM_TEST_SEED={SEED}: {done.stderr[-4000:]}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict[str, Any]:
    return tortured(tmp_path_factory.mktemp("killed"), 20, 120)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compare(found: dict[str, Any], of: Callable[[Path], Any]) -> None:
    """Every life ended with what the run had that nothing killed."""
    wanted = of(Path(found["whole"]))
    for life in found["lives"]:
        assert of(Path(life)) == wanted, f"MIGM_TEST_SEED={SEED}, {life}, killed after {found['moments']}"


def test_shards_and_manifest_are_byte_identical_and_no_listed_shard_is_lost(killed):
    compare(killed["collect"], contents)  # nothing else is left either
    assert killed["collect"]["lost"] == []
    assert len(contents(Path(killed["collect"]["whole"]))) == 13


def test_weights_are_byte_identical_and_checkpoints_equal(killed):
    compare(killed["train"], lambda folder: (folder / "tiny_shortcut" / "shortcut.safetensors").read_bytes())

    def state(folder: Path) -> dict[str, Any]:
        path = folder / "tiny_shortcut" / "checkpoints" / "resume.ckpt"
        saved = torch.load(path, map_location="cpu", weights_only=True)
        parts = ("global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states")
        return {name: repr(leaf) for part in parts for name, leaf in leaves(saved[part], part)}

    compare(killed["train"], state)


def leaves(node: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [leaf for key, value in items for leaf in leaves(value, f"{path}/{key}")]
    return [(path, node.tolist() if isinstance(node, torch.Tensor) else node)]


def test_results_are_equal_but_for_timings_and_no_point_is_measured_twice(killed):
    def measured(folder: Path) -> list[dict[str, Any]]:
        records = read(folder / "tiny_shortcut" / "results.jsonl")
        assert len({identity(record) for record in records}) == len(records)
        for record in records:
            timed = record["metric"].startswith("seconds_per_image/")
            for key in (*TIMINGS, *["value"] * timed):
                record.pop(key, None)
        return records

    compare(killed["evaluate"], measured)
    compare(killed["evaluate"], lambda folder: contents(folder / "tiny_shortcut" / "images"))


def test_every_kill_happened_while_the_command_worked(killed):
    counts = {len(found["moments"]) for found in killed.values()}
    assert counts in ({2}, {20})
    for found in killed.values():
        assert all(0 <= moment <= found["span"] for moment in found["moments"])
