"""Compiled and captured runs on a card draw what plain ones draw."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def lines():
    """What `fast_runs.py` prints."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    script = Path(__file__).with_name("fast_runs.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def test_fast_runs_draw_the_same_tokens_in_float32(lines):
    assert len(lines) == 9
    assert [run for run in lines if run["same"] < 1] == []
