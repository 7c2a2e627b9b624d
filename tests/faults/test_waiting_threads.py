"""OpenMP's threads wait briefly where a command starts, and `bench part=waiting` measures what that is worth."""

import json
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

import migm
import migm.bench
from migm.benchmarks import waiting
from migm.config.building import conf_path, load
from migm.config.roots import BenchConfig

SPOKEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture
def unset(monkeypatch):
    for name in SPOKEN:
        monkeypatch.delenv(name, raising=False)


def spins(first_argument: str, **env: str) -> str:
    """GOMP_SPINCOUNT after `import migm` in a new process whose first argument is so."""
    text = f"import sys; sys.argv = [{first_argument!r}]; import migm, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if name not in SPOKEN}
    done = subprocess.run(
        [sys.executable, "-c", text], env={**clean, **env}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_command_sets_it_before_torch_is_loaded():
    assert spins("-m") == migm.SPINS


def test_what_the_user_set_counts():
    assert spins("-m", GOMP_SPINCOUNT="7") == "7"
    assert spins("-m", OMP_WAIT_POLICY="ACTIVE") == "None"


def test_importing_the_package_from_python_sets_nothing():
    assert spins("notebook.py") == "None"


def test_nothing_is_set_when_it_would_come_too_late(unset):
    migm.wait_briefly()  # torch is loaded here
    assert "GOMP_SPINCOUNT" not in os.environ


def test_each_setting_is_measured_alone_and_beside_a_job(unset, monkeypatch, tmp_path, call_main):
    started, busy = [], []

    def in_process(job, *arguments):
        started.append({name: os.environ[name] for name in waiting.NAMES if name in os.environ})
        return 0.001, 0.002

    class Busy:
        def __init__(self, line):
            self.state = ["started"]
            busy.append(self.state)

        def kill(self):
            self.state.append("killed")

        def wait(self):
            self.state.append("ended")

    monkeypatch.setattr(waiting, "in_process", in_process)
    monkeypatch.setattr(waiting, "Popen", Busy)
    args = ["+experiment=tiny_shortcut", "device=cpu", f"paths.output_dir={tmp_path}", "part=waiting"]
    code, out, err = call_main(migm.bench.main, *args, "waiting.rounds=2", "waiting.steps=1")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "tiny_shortcut" / "bench.jsonl").read_text().splitlines()]
    chosen = [*waiting.SETTINGS.values(), {}]  # the last with one thread
    assert started == 4 * chosen
    assert [(row["round"], row["other_jobs"]) for row in rows[:: len(chosen)]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all((row["train_ms"], row["full_ms"]) == (1.0, 2.0) for row in rows)
    assert busy == 2 * len(chosen) * [["started", "killed", "ended"]]
    assert "passive" in out
    assert not set(SPOKEN) & os.environ.keys()


def test_a_process_times_real_steps():
    with initialize_config_dir(conf_path(), version_base="1.3"):
        config = load(compose("bench", ["+experiment=tiny_shortcut", "device=cpu"]), BenchConfig)
    assert all(seconds > 0 for seconds in waiting.step_seconds(config, 1, 2))
