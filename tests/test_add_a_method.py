"""The worked example of docs/add_a_method.md, in a copy of the package: it says what is true."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from tiny_parts import ROOT

from migm.evaluation.results import read

TEXT = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    """Package and configs without weights, and the files that the page shows."""
    for folder in ("migm", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shown = re.findall(r"^`([\w/.]+)`\n```\w+\n(.*?)^```", TEXT, re.M | re.S)
    assert [name.split("/")[0] for name, _ in shown] == ["migm", "conf"]
    for name, text in shown:
        assert not (ROOT / name).exists()
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.slow
def test_the_example_runs_as_it_is_shown(copy):
    (line,) = re.findall(r"^python .*(?:\n    .*)?$", TEXT, re.M)
    quiet = ["evalset.num_images=4", "evalset.batch_size=2", "device=cpu"]
    done = subprocess.run(
        [sys.executable, *shlex.split(line.replace("\\\n", " "))[1:], *quiet],
        cwd=copy,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {
        (r["accelerator"], r["num_full_steps"], r["variant"]): r["value"]
        for r in read(copy / "outputs" / "tiny_shortcut" / "results.jsonl")
        if r["metric"] == "ffe"
    }
    assert {("vanilla", 6, ""), ("average", 2, ""), ("average", 3, "weight=1.0")} < set(found)
    assert found["vanilla", 6, ""] == 6
    assert 2 < found["average", 2, ""] < 3 < found["average", 3, "weight=1.0"] < 4


def test_it_is_under_a_page():
    assert len(TEXT.splitlines()) < 70
