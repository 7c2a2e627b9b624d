"""Compiled runs draw what plain runs draw; compared in a process of its own (`compiled_equality.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compiled_equality.py")


def compared(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def test_every_step_is_one_graph_and_draws_the_same_tokens():
    """Traced as for a device, sizes that vary included, and run operator by operator: no C++ compiler is needed."""
    rows = compared("aot_eager", "float32")
    assert {(row["family"], row["accelerator"]) for row in rows} >= {("maskgit", "shortcut"), ("dimoo", "ml_cache")}
    assert [row for row in rows if row["same"] < 1] == []


@pytest.mark.slow
def test_compiled_code_draws_the_same_tokens():
    rows = compared("inductor", "float32")
    assert len(rows) == 20
    assert [row for row in rows if row["same"] < 1] == []
