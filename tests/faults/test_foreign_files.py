"""Nothing that this program did not make is ever removed, replaced or filled up; what it made goes on working."""

import importlib
import json
import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_parts import ROOT, composed, naming, synthetic, tiny
from torch import Tensor

import migm.collect
import migm.install_scorers
import migm.metrics.scorers.install
from migm.accelerators.calibration import FORMAT
from migm.config.building import build, load
from migm.config.roots import GenerateConfig
from migm.evaluation.unfinished import STALE, Unfinished
from migm.human_eval.pairs import Pair, export
from migm.metrics.reference import Reference
from migm.metrics.scorers import install
from migm.reporting.write import write_report
from migm.runtime.errors import UserError
from migm.runtime.files import refuse_other_format, replacing, write_tensors
from migm.runtime.owned import only, own, refuse_filled, refuse_foreign
from migm.sampling.gallery import Gallery, Grid
from migm.sampling.generation import refuse
from migm.training.checkpoints import CheckpointFiles, Checkpoints
from migm.training.run import Training
from migm.trajectories.remote import Remote, publish
from migm.trajectories.store import Store
from migm.trajectories.unlisted import Unlisted

HEADER = {"base": "x", "storage": "features", "copies": 2, "num_steps": 4, "seed": 0}
IMAGE = torch.zeros(3, 4, 4, dtype=torch.uint8)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def mine(tmp_path) -> Path:
    """A folder of somebody's, with names that this program might use too."""
    folder = tmp_path / "mine"
    (folder / "lib").mkdir(parents=True)
    for name in ("thesis.txt", "model.safetensors", "half.tmp", "lib/notes.py", "2024.json", "table.csv", "lock"):
        (folder / name).write_text(f"mine: {name}")
    return folder


@pytest.fixture
def untouched(mine) -> Any:
    """The folder is at the end as it was."""
    before = files(mine)
    yield mine
    assert files(mine) == before


# The mechanism.


def test_a_folder_is_ours_if_it_was_new_or_empty_and_stays_so(tmp_path):
    new = tmp_path / "a" / "b"
    refuse_foreign(new, "images", "folder")
    assert not new.exists()
    own(new, "images", "folder")
    (new / "notes.txt").write_text("by hand, later")
    own(new, "images", "folder")
    with pytest.raises(UserError, match=naming(f"folder={new}", "notes.txt", "new or an empty")):
        own(new, "report", "folder")  # ours, but for something else
    with pytest.raises(UserError, match=naming("notes.txt")):
        refuse_filled(new, "export_to")


def test_what_systems_put_into_a_folder_does_not_fill_it(tmp_path):
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini"):
        (tmp_path / name).touch()
    refuse_filled(tmp_path, "export_to")
    own(tmp_path, "images", "folder")
    assert only(tmp_path, "nothing")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").touch()
    for refused in (lambda folder: own(folder, "images", "folder"), lambda folder: refuse_filled(folder, "folder")):
        with pytest.raises(UserError, match=naming(f"folder={tmp_path / 'a'}", "is a file")):
            refused(tmp_path / "a")


# Every folder and file that a command writes.


def test_scorers_are_not_installed_over_a_folder_of_others(untouched, monkeypatch):
    monkeypatch.setattr(venv, "create", lambda *_, **__: pytest.fail("made"))
    with pytest.raises(UserError, match=naming(f"folder={untouched}", "new or an empty")):
        install.install(untouched)
    with pytest.raises(UserError, match=naming(f"metric.*.scorers={untouched}")) as refused:
        install.python_of(untouched)
    assert "scorers.install" not in str(refused.value)


def test_scorers_of_another_version_are_made_anew_and_nothing_else_goes(tmp_path, monkeypatch):
    def create(folder: Path, **options: Any) -> None:
        assert not options.get("clear")
        assert not (folder / "bin").exists()
        (folder / "bin").mkdir(parents=True)
        for name in ("pyvenv.cfg", "bin/python"):
            (folder / name).touch()

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    folder = tmp_path / "scorers"
    assert install.install(folder) == folder / "bin" / "python"
    (folder / "notes.txt").write_text("mine")
    (folder / "complete").write_text("of another torch")
    install.install(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    os.remove(folder / ".migm-scorers")  # as an earlier version left it
    (folder / "complete").write_text("of another torch")
    assert install.install(folder) == folder / "bin" / "python"


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--hlep", 2)])
def test_options_of_the_installer_are_no_folders(call_main, monkeypatch, tmp_path, option, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(venv, "create", lambda *_, **__: pytest.fail("made"))
    found, out, err = call_main(migm.install_scorers.main, option)
    assert found == code
    assert "usage: python -m migm.install_scorers" in out + err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def published(tmp_path) -> tuple[Store, str]:
    """Four shards of one size, and where they are published."""
    store = Store(tmp_path / "store", HEADER)
    for first in range(0, 8, 2):
        store.append(synthetic([first, first + 1]))
    address = f"file://{tmp_path}/there"
    list(publish(store, address))
    return store, address


def test_a_cache_is_no_folder_of_others(published, untouched):
    with pytest.raises(UserError, match=naming(f"data.cache={untouched}", "new or an empty")):
        Store(published[1], None, Remote(published[1], untouched, 1)).open(0)


@pytest.mark.parametrize("marked", [True, False])
def test_room_in_a_cache_is_made_by_shards_alone(published, tmp_path, marked):
    (store, address), cache = published, tmp_path / "cache"
    limit = 2 * max(shard["bytes"] for shard in store.shards)
    for index in (0, 1):
        Store(address, None, Remote(address, cache, limit)).open(index)
    if marked:
        for name in ("model.safetensors", "half.tmp"):
            (cache / name).write_text("mine")
    else:
        os.remove(cache / ".migm-shards")  # as an earlier version left it
    for index in (2, 3):
        Store(address, None, Remote(address, cache, limit)).open(index)
    shards = {f"{store.shards[i]['sha256']}.safetensors" for i in (2, 3)}
    assert set(files(cache)) - {"lock", ".migm-shards"} == shards | (
        {"model.safetensors", "half.tmp"} if marked else set()
    )


def test_trajectories_go_into_no_folder_of_others(untouched):
    with pytest.raises(UserError, match=naming(f"data.folder={untouched}")):
        Store(untouched, HEADER)


def test_notes_of_others_beside_a_store_stay(tmp_path):
    store = Store(tmp_path / "store", HEADER)
    store.append(synthetic([0]))
    for name in ("2024.json", "000007.json"):
        (store.folder / name).write_text("{}")
    Unlisted(Store(store.folder, HEADER), 3, 1).missing()
    assert sorted(path.name for path in store.folder.glob("*.json")) == ["2024.json"]


def test_an_export_is_refused_before_anything_is_collected(call_main, untouched, tmp_path):
    shared = ["+experiment=tiny_shortcut", "device=cpu", f"paths.output_dir={tmp_path / 'out'}"]
    code, _, err = call_main(migm.collect.main, *shared, f"export_to={untouched}")
    assert code == 2
    assert f"export_to={untouched} holds 2024.json already; choose an empty folder" in err
    assert not (tmp_path / "out" / "trajectories").exists()


def reported(folder: Path) -> None:
    about = {"base": "b", "sampling": "s", "device": "d", "torch": "2", "migm": "0", "commit": "c", "predictor": ""}
    point = {**about, "accelerator": "vanilla", "num_steps": 4, "num_full_steps": 4, "higher_is_better": False}
    lines = [{**point, "metric": "ffe", "value": 4.0}]
    lines.append({**point, "metric": "fd_cifarnet_9", "value": 2.0, "seed_set": 0, "reference": "r"})
    path = folder.parent / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([path], folder)


def exported(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder.parent / "a.png")
    export([Pair("1", "a dog", folder.parent / "a.png", folder.parent / "a.png", "method")], folder, "?", "")


def saved(folder: Path) -> None:
    Checkpoints(folder)
    CheckpointFiles(2).save_checkpoint({"a": 1}, folder / "resume.ckpt")


WRITERS: dict[str, Callable[[Path], object]] = {
    "folder=": lambda folder: Gallery(folder, [3], {}).add(0, 1, IMAGE, {}),
    "folder=.": exported,
    "folder=..": reported,
    "callbacks.checkpoint.dirpath=": saved,
    "pretrain.folder=": lambda folder: recipe(folder=folder).run([], None),  # type: ignore[arg-type]
}


def recipe(**changes: Any) -> Any:
    epochs = {f"{name}_epochs": 1 for name in ("perceptual", "features", "tokenizer", "base", "text_base")}
    node = {"_target_": "migm.pretraining.stages.Recipe", "cifar10": "x", "seed": 0, "assets": "none", **epochs}
    return build({**node, **{key: str(value) for key, value in changes.items()}})


@pytest.mark.parametrize("key", WRITERS)
def test_a_folder_of_others_is_refused_in_a_line(untouched, key):
    (untouched / "2024.json").unlink()  # which a gallery refuses for itself
    before = files(untouched)
    with pytest.raises(UserError, match=naming(f"{key.strip('.')}{untouched}", "half.tmp", "new or an empty")):
        WRITERS[key](untouched)
    assert files(untouched) == before
    (untouched / "2024.json").write_text("mine: 2024.json")


@pytest.mark.parametrize("key", WRITERS)
def test_a_folder_that_was_begun_is_filled_further_with_notes_in_it_and_without_its_mark(tmp_path, key):
    folder = tmp_path / "new"
    WRITERS[key](folder)
    (folder / "notes.txt").write_text("mine")
    WRITERS[key](folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    for mark in folder.glob(".migm-*"):
        mark.unlink()
    WRITERS[key](folder)


def test_figures_of_analyses_go_into_no_folder_of_others(call_main, untouched, tmp_path):
    shared = ["+experiment=tiny_shortcut", "device=cpu", f"paths.output_dir={tmp_path / 'out'}"]
    code, _, err = call_main(importlib.import_module("migm.analyse").main, *shared, f"folder={untouched}")
    assert code == 2
    assert f"folder={untouched} holds 2024.json, and migm did not begin this folder" in err


def test_assets_of_others_are_not_trained_over(untouched, tmp_path):
    with pytest.raises(UserError, match=naming(f"paths.assets={untouched}")):
        recipe(folder=tmp_path / "new", assets=untouched).run([], None)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_temporary_name_that_somebody_uses_is_left_alone(tmp_path, kind):
    taken, target = tmp_path / "a.txt.tmp", tmp_path / "b"
    target.mkdir()
    (target / "a.txt").write_text("mine")
    if kind == "file":
        taken.write_text("mine")
    elif kind == "folder":
        taken.mkdir()
        (taken / "precious.txt").write_text("mine")
    else:
        taken.symlink_to(target)
    before = files(tmp_path)
    for text in ("new", "newer"):
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text(text)
    assert files(tmp_path) == {**before, "a.txt": b"newer"}


def one_image(folder: Path) -> None:
    Gallery(folder, [3], {}).add(0, 1, IMAGE, {})


def one_reference(folder: Path) -> None:
    Reference({"mu": torch.zeros(2, dtype=torch.float64)}).save(folder / "a.npz")


@pytest.mark.parametrize(("write", "name"), [(one_image, "00000_1_3.png.tmp"), (one_reference, "a.npz.tmp")])
def test_no_writer_has_a_temporary_name_of_its_own(tmp_path, write, name):
    (tmp_path / name).write_text("mine")
    write(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_only_stale_files_of_its_own_are_forgotten(tmp_path):
    unfinished = Unfinished(tmp_path, rank=0)
    names = ["unfinished-novel.pt", "unfinished-deadbeef.pt", unfinished.path("a").name]
    for name in names:
        (tmp_path / name).write_text("old")
        os.utime(tmp_path / name, (0, (tmp_path / name).stat().st_mtime - STALE - 10))
    unfinished.clear_stale()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[:2])


def test_a_picture_of_others_is_not_replaced_by_a_grid(tmp_path):
    photo, grid = tmp_path / "holiday.png", tmp_path / "grid.png"
    Image.new("RGB", (8, 8), "red").save(photo)
    made = Grid(1, [0], 16)
    made.add(0, 0, IMAGE)
    made.save(grid)
    cfg = composed("generate", "+experiment=tiny_shortcut", f"output={photo}")
    with pytest.raises(UserError, match=naming(f"output={photo} is there, and not a grid")):
        refuse(load(cfg, GenerateConfig))
    cfg.output = str(grid)
    refuse(load(cfg, GenerateConfig))


def test_tensors_of_others_are_not_replaced(tmp_path):
    tensors: dict[str, Tensor] = {"a": torch.zeros(2)}
    ours, theirs, text = (tmp_path / f"{name}.safetensors" for name in ("ours", "theirs", "text"))
    write_tensors(tensors, ours, {"format": FORMAT})
    write_tensors(tensors, theirs, {"format": "pt"})
    text.write_text("mine")
    for path in (ours, tmp_path / "none.safetensors"):
        refuse_other_format(path, FORMAT, "output=")
    for path in (theirs, text):
        with pytest.raises(UserError, match=naming(f"output={path}", FORMAT)):
            refuse_other_format(path, FORMAT, "output=")


def test_a_training_replaces_no_file_of_others(tmp_path):
    config, folder = tiny(tmp_path), tmp_path / "tiny_shortcut"
    base = build(config.base)
    folder.mkdir()
    for name, content in {"shortcut.safetensors": "mine", "config.yaml": "port: 80\n"}.items():
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=naming(f"name=tiny_shortcut: {folder / name} is there")):
            Training(config, base)
        assert (folder / name).read_text() == content
        (folder / name).unlink()


# What is asked for help does nothing else.

# `migm` itself and the old names of commands, which only start these, are tested in test_wheel.py.
STARTED = [path for path in sorted((ROOT / "migm").rglob("*.py")) if 'if __name__ == "__main__"' in path.read_text()]
STARTED = [path for path in STARTED if path.name != "__main__.py" and "    run_renamed(" not in path.read_text()]


def answers_help(call_main: Callable[..., Any], path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    code, out, err = call_main(importlib.import_module(module).main, "--help")
    assert code == 0, err
    assert "help" in out
    assert not list(Path.cwd().iterdir())


@pytest.fixture
def elsewhere(monkeypatch, tmp_path) -> None:
    """An empty folder, where nothing may be started."""
    monkeypatch.chdir(tmp_path)
    for name in ("MIGM_OUTPUT", "MIGM_EVALUATION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))


def test_every_command_takes_its_options_from_a_library_that_answers_help(call_main, elsewhere):
    for path in STARTED:
        text = path.read_text()
        assert "@hydra.main(" in text or "ArgumentParser(" in text, path
        if "ArgumentParser(" in text:
            answers_help(call_main, path)


@pytest.mark.slow
@pytest.mark.parametrize("path", STARTED, ids=lambda path: path.relative_to(ROOT / "migm").as_posix())
def test_every_command_answers_help_and_does_nothing(call_main, elsewhere, path):
    answers_help(call_main, path)
