"""Nothing is made, or done in vain, before a command has looked at what it was told.

Where it cannot write it says so by the key, in one line and first; what writes nothing leaves nothing.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from test_commands import Outcome, refused
from tiny_parts import collected, composed, tiny

import migm.needs
import migm.plan
from migm.config.building import conf_path

TINY = ["+experiment=tiny_shortcut", "device=cpu"]


def never(node: Any = None, *_: Any, **__: Any) -> Any:
    """In the place of `build`; the settings of trajectories, which say where these go, are no work."""
    if isinstance(node, dict) and "shard_images" in node:
        return instantiate(node)
    raise AssertionError("something was built")


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    """An empty working directory, beside a file `tmp_path/file`, below which nobody can make a folder."""
    (tmp_path / "file").write_text("")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


@pytest.mark.parametrize("main", [migm.plan.main, migm.needs.main], ids=["plan", "needs"])
def test_what_writes_nothing_leaves_nothing_and_runs_where_nothing_can_be_written(cwd, call_main, main):
    code, out, err = call_main(main, *TINY, f"paths.output_dir={cwd.parent / 'file' / 'out'}")
    assert code == 0, err
    assert out
    assert list(cwd.iterdir()) == []


@pytest.fixture(scope="module")
def shared() -> DictConfig:
    """What all commands share for the tiny base; composing it takes longer than all the rest."""
    cfg = composed("plan", *TINY)
    OmegaConf.set_struct(cfg, False)
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("full", "cheap")])


@pytest.fixture
def call(shared, capfd) -> Callable[..., Outcome]:
    """Run a command's `main` on its config with some keys changed."""

    def run(command: str, **changes: Any) -> Outcome:
        own = OmegaConf.load(Path(conf_path()) / f"{command}.yaml")
        cfg = OmegaConf.merge(shared, OmegaConf.masked_copy(own, [key for key in own if key != "defaults"]))
        for group, name in [
            chosen for entry in own.defaults if isinstance(entry, DictConfig) for chosen in entry.items()
        ]:
            if isinstance(name, str):
                cfg[group] = OmegaConf.load(Path(conf_path()) / group / f"{name}.yaml")
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, merge=False)
        code = 0
        try:
            importlib.import_module(f"migm.{command}").main(cfg)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return run


KEYS = [
    ("generate", "output", "migm.sampling.generation.build"),
    ("train", "paths.output_dir", "migm.train.build"),
    ("evaluate", "paths.output_dir", "migm.evaluate.build"),
    ("collect", "data.folder", "migm.collect.build"),
    ("collect", "export_to", "migm.collect.build"),
    ("bench", "output", "migm.benchmarks.variants.build"),
    ("calibrate", "output", "migm.calibrate.build"),
    ("place", "place.output", "migm.analyses.placing.build"),
    ("analyse", "folder", "migm.analyses.running.build"),
    ("report", "folder", "migm.report.write_report"),
    ("side_by_side", "folder", "migm.side_by_side.run"),
    ("tune", "paths.output_dir", "migm.tuning.run.build"),
    ("ablations", "folder", "migm.ablations.write_ablations"),
    ("humaneval", "folder", "migm.humaneval.export"),
    ("pretrain", "pretrain.folder", "migm.pretrain.build"),
    ("pretrain", "paths.assets", "migm.pretrain.build"),
]


@pytest.mark.parametrize(("command", "key", "work"), KEYS, ids=[f"{command} {key}" for command, key, _ in KEYS])
def test_a_place_that_cannot_be_written_is_refused_by_its_key_before_any_work(
    cwd, call, monkeypatch, command, key, work
):
    monkeypatch.setattr(work, never)
    place = cwd.parent / "file" / "below.png"
    refused(call(command, **{key: str(place)}), f"{key}={place}", "a file is where a folder should be")
    assert [path for path in cwd.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("output", "words"),
    [("grid", ["no ending", "grid.png"]), ("a.b/grid", ["no ending"]), ("grid.txt", [".txt", "grid.png"])],
)
def test_a_grid_of_no_known_format_is_refused_before_anything_is_built(cwd, call, monkeypatch, output, words):
    monkeypatch.setattr("migm.sampling.generation.build", never)
    refused(call("generate", output=output), f"output={output}", *words)
    assert list(cwd.iterdir()) == []


def test_a_file_for_a_folder_and_a_folder_for_a_file_are_refused(cwd, call, monkeypatch):
    monkeypatch.setattr("migm.sampling.generation.build", never)
    (cwd / "x.png").mkdir()
    refused(call("generate", output="x.png"), "output=x.png", "is a folder")
    refused(call("generate", folder=str(cwd.parent / "file")), "folder=", "is a file")


def test_a_whole_store_may_lie_where_nothing_can_be_written(tmp_path, monkeypatch):
    config = tiny(tmp_path)
    collected(config)
    monkeypatch.setattr("migm.trajectories.collect.writing", never)
    torch.manual_seed(config.seed)  # the same random base
    assert len(collected(config)) == 12


def test_a_sweep_that_cannot_write_is_refused_in_one_line(cwd, call_main):
    place = cwd.parent / "file" / "out"
    refused(call_main(migm.plan.main, "-m", "seed=0,1", f"paths.output_dir={place}"), f"paths.output_dir={place}")
    assert list(cwd.iterdir()) == []
