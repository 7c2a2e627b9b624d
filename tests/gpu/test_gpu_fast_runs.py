"""Compiled and captured runs on a card draw what plain ones draw, for every family of bases.

`make test-gpu` runs it; MIGM_TEST_DEVICE=cpu rehearses what compiles where there is no such device.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from base_kinds import KINDS, STEPPED

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("MIGM_TEST_DEVICE", "cuda")


@pytest.mark.parametrize("name", ["cifar10", *KINDS])
def test_fast_runs_draw_the_same_tokens_in_float32(name):
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    script = Path(__file__).with_name("fast_runs.py")
    run = subprocess.run([sys.executable, script, DEVICE, name], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    stepped = name not in KINDS or name in STEPPED
    captured = ("captured", "both") if DEVICE == "cuda" else ()
    wanted = {(m, r): 3 for m in ("vanilla", "shortcut")[: 1 + stepped] for r in ("compiled", *captured)}
    if stepped:
        wanted["ml_cache", "compiled"] = 3  # what may wait for its own results is not captured
    assert Counter((line["method"], line["runtime"]) for line in lines) == wanted
    assert [line for line in lines if line["same"] < 1] == []
