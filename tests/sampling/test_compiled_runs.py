"""Compiled runs draw what plain runs draw; compared in a process of its own (`compiled_equality.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from base_kinds import KINDS, METHODS, STEPPED

OTHERS = [name for name in STEPPED if name not in ("maskgit", "dimoo", "mmada")]
SCRIPT = Path(__file__).with_name("compiled_equality.py")


def compared(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    ("backend", "families", "names"),
    [
        ("eager", ["maskgit"], ["shortcut"]),
        pytest.param("aot_eager", list(KINDS), ["vanilla"], marks=pytest.mark.slow),
        pytest.param("aot_eager", ["maskgit", "dimoo", "mmada"], [*METHODS, "forecast"], marks=pytest.mark.slow),
        pytest.param("aot_eager", OTHERS, ["shortcut", "ml_cache"], marks=pytest.mark.slow),
        pytest.param("inductor", ["maskgit", "dimoo", "mmada"], [*METHODS, "forecast"], marks=pytest.mark.slow),
        pytest.param("inductor", OTHERS, ["vanilla", "shortcut"], marks=pytest.mark.slow),
        pytest.param("inductor", ["dimo_maskgit", "dimo_meissonic"], ["vanilla"], marks=pytest.mark.slow),
    ],
)
def test_every_step_is_one_graph_and_draws_the_same_tokens(backend, families, names):
    """`eager` makes graphs; `aot_eager` traces them as for a device, without a C++ compiler; `inductor` compiles."""
    rows = compared(backend, "float32", ",".join(families), *names)
    assert [row["family"] for row in rows] == [f for f in families for _ in names for _ in range(2)]
    assert [row for row in rows if row["same"] < 1] == []
