"""Every command of every study's script is one that this version accepts, even where it would run for days."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_config import ROOTS
from tiny_parts import ROOT

from migm.config.building import conf_path, load

SCRIPTS = sorted((ROOT / "experiments").glob("*/run*.sh"))
NOTE = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def commands(tmp_path):
    """Run a script with a stand-in for python, which only notes what it was asked -> arguments of every call.

    What it would copy is not there.
    """

    def run(script):
        log, folder = tmp_path / "calls.jsonl", tmp_path / "bin"
        folder.mkdir()
        stand_ins = {
            "python": NOTE.format(python=sys.executable, log=str(log)),
            "cp": "#!/bin/sh\n",
            "mkdir": "#!/bin/sh\n",
            "sed": "#!/bin/sh\n",
        }
        for name, text in stand_ins.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{script.parent.name}/{script.name}")
def test_every_command_of_a_study_is_accepted(commands, script):
    calls = commands(script)
    assert calls
    with initialize_config_dir(conf_path(), version_base="1.3"):
        for flag, *line in calls:
            if flag != "-m":
                assert (ROOT / flag).is_file(), flag
                continue
            module, *arguments = line
            assert importlib.util.find_spec(module), module
            command = module.removeprefix("migm.")
            for trial in trials(arguments):
                load(compose(command, trial), ROOTS[command])


def trials(arguments):
    """The arguments of every trial of a multirun, or those of the one run."""
    if "-m" not in arguments:
        return [arguments]
    parsed = OverridesParser.create().parse_overrides([text for text in arguments if text != "-m"])
    return BasicSweeper.split_arguments(parsed, None)[0]
