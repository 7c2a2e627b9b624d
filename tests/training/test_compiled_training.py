"""A compiled training step has the losses and gradients of a plain one; compared in a process of its own."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_parts import collected, tiny

from migm.config.building import build
from migm.runtime import compiling
from migm.training import run
from migm.training.run import Training

SCRIPT = Path(__file__).with_name("compiled_training.py")
NAMES = ["mse", "mse_kl", "all_rows", "rollout", "guided", "guided_rollout", "from_full"]


@pytest.mark.slow  # tracing takes a minute, and compiled sampling is traced beside the fast tests
@pytest.mark.parametrize(
    ("backend", "family", "names"),
    [
        ("aot_eager", "maskgit", NAMES),
        ("aot_eager", "dimoo", NAMES),
        ("inductor", "maskgit", ["mse_kl", "guided"]),
    ],
)
def test_losses_and_gradients_are_those_of_a_plain_step(backend, family, names):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, SCRIPT, backend, family, *names]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
    assert [row["objective"] for row in rows] == [name for name in names for _ in range(2)]
    assert all(row["tensors"][0] == row["tensors"][1] > 10 for row in rows)
    assert all(row["compiled"] >= 2 for row in rows)  # the base's block, and the objective
    assert [row for row in rows if row["off"] > 1e-4] == []


def test_checkpoints_are_alike_and_a_training_goes_on_in_another_runtime(tmp_path, monkeypatch):
    """Functions are compiled, never modules; here each is wrapped as the compiler would."""
    names = []

    def fast(function):
        names.append(function.__name__)
        return functools.partial(function)

    monkeypatch.setattr(compiling, "compiled", fast)
    monkeypatch.setattr(compiling, "lacking_compiler", lambda device: "")
    monkeypatch.setattr(run, "notice", lambda fast: "")
    kept, lines = {}, ["data/storage=tokens", "lr_schedule.warmup_steps=2", "trainer.max_steps=14"]
    for value in ("true", "false"):
        config = tiny(tmp_path / value, *lines, f"runtime.compile={value}", "+trainer.max_epochs=1")
        torch.manual_seed(0)  # the weights of the tiny base
        collected(config)
        torch.manual_seed(0)
        training = Training(config, build(config.base))
        training.run(build(config.data))
        assert ({"run_block", "judged"} <= set(names)) == (value == "true")
        names.clear()
        kept[value] = torch.load(training.resume, map_location="cpu", weights_only=True)
    first, second = (kept[value]["state_dict"] for value in ("true", "false"))
    assert all(torch.equal(first[key], second[key]) for key in first.keys() | second.keys())
    config = tiny(tmp_path / "true", *lines, "runtime.compile=false")
    torch.manual_seed(0)
    again = Training(config, build(config.base))
    assert again.state["global_step"] == kept["true"]["global_step"] > 0
    assert again.run(build(config.data)) < 1e9
    assert again.trainer.global_step > again.state["global_step"]
