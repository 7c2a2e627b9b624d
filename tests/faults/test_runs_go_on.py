"""A training that goes on goes on with its run in W&B; one that starts anew begins another."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from offline_runs import offline_runs
from tiny_parts import collected, tiny

import migm.reporting.trained
import migm.train
import migm.training.run
from migm.config.building import build
from migm.reporting.trained import show_trained
from migm.training.module import ShortcutModule
from migm.training.run import Training, going_on


class Killed(Exception):
    """Stands for a kill: nothing that follows in the process runs."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Any:
    """Of six steps with a checkpoint after each second one, logged offline."""
    output = tmp_path_factory.mktemp("tracked")
    steps = ["trainer.max_steps=6", "callbacks.checkpoint.every_n_train_steps=2", "trainer.log_every_n_steps=1"]
    made = tiny(output, *steps, "logger=wandb", "logger.wandb.offline=true", "metric=[none]")
    collected(made)
    return made


def run(config: Any, monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> Training:
    """A training as `migm.train` does it, or one that a kill ends before a step."""
    step = ShortcutModule.training_step

    def dying(self: ShortcutModule, batch: Any, i: int) -> Any:
        if self.global_step == dies_at:
            raise Killed
        return step(self, batch, i)

    torch.manual_seed(config.seed)  # as loading the config does: the base is random
    training = Training(config, build(config.base))
    with monkeypatch.context() as patch:
        patch.setattr(ShortcutModule, "training_step", dying)
        try:
            training.run(build(config.data))
        except Killed:
            training.close()
    return training


def ids(folder: Path) -> list[str]:
    """Those of the offline runs, in the order of their beginning."""
    paths = sorted(folder.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_ctime_ns)
    return [path.name.split("-")[3] for path in paths]  # a number follows where two began in one second


def test_what_is_trained_further_is_one_run_and_what_starts_anew_another(config, monkeypatch):
    run(config, monkeypatch, dies_at=3)
    folder = Path(config.paths["output_dir"]) / config.name
    (first,) = ids(folder)
    run(config, monkeypatch)
    assert ids(folder) == [first, first]
    before, after = offline_runs(folder)
    assert before["run_id"] == after["run_id"] == first
    assert after["logged"]["trainer/global_step"] == 5
    shutil.rmtree(folder / "checkpoints")
    run(config, monkeypatch, dies_at=1)
    *_, anew = ids(folder)
    assert anew != first


def test_a_trial_that_was_trained_before_is_measured_in_its_run(config, monkeypatch, tmp_path):
    """Also when a start in between logged elsewhere."""
    for module in (migm.training.run, migm.reporting.trained):
        monkeypatch.setattr(module, "in_sweep", lambda: True)
    config.paths["output_dir"] = config.logger["wandb"]["save_dir"] = str(tmp_path)
    config.callbacks["checkpoint"]["dirpath"] = str(tmp_path / config.name / "checkpoints")
    training = run(config, monkeypatch, dies_at=5)
    logger, config.logger = config.logger, {}
    run(config, monkeypatch)
    config.logger = logger
    (first,) = ids(tmp_path)
    again = run(config, monkeypatch)
    assert training.followed == []
    assert again.followed[0].version == first
    assert ids(tmp_path) == [first]  # nothing to say yet
    monkeypatch.setattr("migm.reporting.wandb.summarise", lambda records: SimpleNamespace(rows=[]))
    measured: Any = SimpleNamespace(measured=lambda: [{}], preview=tmp_path, metrics=[])
    show_trained(config, again, measured)
    again.close()
    assert ids(tmp_path) == [first, first]
    assert offline_runs(tmp_path)[1]["config"]["resolved"]["seed"] == config.seed


def test_a_run_that_the_config_names_is_kept():
    named = {"wandb": {"id": "mine"}, "csv": {}}
    assert going_on(named, "other") == named
    assert going_on({"csv": {}}, "other") == {"csv": {}}
    assert going_on({"wandb": {"name": "x"}}, None) == {"wandb": {"name": "x"}}
    assert going_on({"wandb": {"name": "x"}}, "a")["wandb"] == {"name": "x", "id": "a", "resume": "allow"}
