"""Training by Lightning: exact resume, and what a checkpoint holds."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_parts import collected, naming, same_tensors, tiny
from torch import Tensor

from migm.config.building import build
from migm.runtime import device
from migm.runtime.errors import UserError
from migm.shortcuts.checkpoint import load_shortcut
from migm.training.module import ShortcutModule
from migm.training.run import Training, check_resume, training_config

STEPS = 24  # of 10 batches an epoch: two whole epochs and a part


class Killed(Exception):
    """Stands for a kill: nothing that follows in the process runs."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A folder with the trajectories that all trainings here share."""
    output = tmp_path_factory.mktemp("stored")
    collected(tiny(output))
    return output


def config_for(stored: Path, output: Path, *overrides: str) -> Any:
    folder = f"data.folder={tiny(stored).data['folder']}"
    return tiny(output, folder, f"trainer.max_steps={STEPS}", "lr_schedule.warmup_steps=5", *overrides)


def run(stored: Path, output: Path, *overrides: str) -> Path:
    """One training as `migm.train` does it; returns the run's folder."""
    config = config_for(stored, output, *overrides)
    base = build(config.base)
    Training(config, base).run(build(config.data))
    return output / "tiny_shortcut"


@pytest.fixture(scope="module")
def whole(stored, tmp_path_factory) -> Path:
    """The training that nothing interrupted."""
    return run(stored, tmp_path_factory.mktemp("whole"), "callbacks.checkpoint.every_n_train_steps=100")


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "resume.ckpt", map_location="cpu", weights_only=True)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and numbers of a nested state, with their paths."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from leaves(value, f"{path}/{i}")
    elif isinstance(node, (Tensor, int, float)):
        yield path, node


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def moments() -> Iterator[Any]:
    """Every moment with and without workers; those beyond one of each kind are slow."""
    named = {
        "inside an epoch": (7, 9),
        "at a validation": (5, 5),
        "at an epoch's end": (10, 10),
        "in the next epoch": (10, 13),
        "after two checkpoints' time": (12, 23),
    }
    quick = {("inside an epoch", 0), ("at an epoch's end", 0), ("in the next epoch", 2)}
    for workers in (0, 2):
        for name, (saved, killed) in named.items():
            marks = [] if (name, workers) in quick else [pytest.mark.slow]
            yield pytest.param(saved, killed, workers, id=f"{name}, {workers} workers", marks=marks)


@pytest.mark.parametrize(("saved", "killed", "workers"), moments())
def test_a_resumed_training_equals_an_uninterrupted_one(stored, whole, tmp_path, monkeypatch, saved, killed, workers):
    every = f"callbacks.checkpoint.every_n_train_steps={saved}"
    step = ShortcutModule.training_step

    def dying(self, batch, i):
        if self.global_step == killed:
            raise Killed
        return step(self, batch, i)

    with monkeypatch.context() as patch:
        patch.setattr(ShortcutModule, "training_step", dying)
        with pytest.raises(Killed):
            run(stored, tmp_path, every, f"data.num_workers={workers}")
    assert checkpoint(tmp_path / "tiny_shortcut")["global_step"] == saved
    resumed = run(stored, tmp_path, every, f"data.num_workers={workers}")
    check_equal(resumed, whole)


def test_killed_after_its_last_checkpoint_and_resumed_it_ends_as_if_never_killed(stored, whole, tmp_path, monkeypatch):
    def dying(self):
        if self.global_step == STEPS:
            raise Killed

    every = f"callbacks.checkpoint.every_n_train_steps={STEPS}"
    with monkeypatch.context() as patch:
        patch.setattr(ShortcutModule, "on_train_epoch_end", dying)
        with pytest.raises(Killed):
            run(stored, tmp_path, every)
    assert checkpoint(tmp_path / "tiny_shortcut")["global_step"] == STEPS
    check_equal(run(stored, tmp_path, every), whole)


def test_ended_by_another_key_and_resumed_without_it_equals_an_uninterrupted_one(stored, whole, tmp_path):
    every = "callbacks.checkpoint.every_n_train_steps=100"
    ended = run(stored, tmp_path, every, "+trainer.max_epochs=1")
    assert checkpoint(ended)["global_step"] == 10
    averaged = (ended / "shortcut.safetensors").read_bytes()
    run(stored, tmp_path, every, "+trainer.max_epochs=1")  # no step is left by that key
    assert (ended / "shortcut.safetensors").read_bytes() == averaged
    check_equal(run(stored, tmp_path, every), whole)


def check_equal(run: Path, wanted: Path) -> None:
    """Two trainings ended with the same weights and the same state to go on from."""
    assert same_tensors(run / "shortcut.safetensors", wanted / "shortcut.safetensors")
    a, b = checkpoint(run), checkpoint(wanted)
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        first, second = dict(leaves(a[part])), dict(leaves(b[part]))
        assert first.keys() == second.keys()
        differing = [name for name in first if not same(first[name], second[name])]
        assert not differing, part


def test_training_again_when_done_changes_nothing(stored, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "tiny_shortcut")
    again = run(stored, tmp_path, "callbacks.checkpoint.every_n_train_steps=100")
    assert same_tensors(again / "shortcut.safetensors", whole / "shortcut.safetensors")
    assert checkpoint(again)["global_step"] == STEPS


def test_every_epoch_has_an_order_of_its_own(stored, tmp_path, monkeypatch):
    seen, step = [], ShortcutModule.training_step

    def watching(self, batch, i):
        seen.append(batch.features.double().sum((1, 2)))
        return step(self, batch, i)

    monkeypatch.setattr(ShortcutModule, "training_step", watching)
    run(stored, tmp_path)
    first, second = torch.cat(seen[:10]), torch.cat(seen[10:20])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_the_seed_shapes_the_training(stored, whole, tmp_path):
    # The base stays that of seed 0: only the order and the fresh shortcut follow data.seed and the config's seed.
    other = run(stored, tmp_path, "data.seed=1")
    assert not same_tensors(other / "shortcut.safetensors", whole / "shortcut.safetensors")


def test_a_checkpoint_holds_the_shortcut_and_nothing_of_the_base(stored, whole, tmp_path):
    saved, base = checkpoint(whole), build(config_for(stored, tmp_path).base)
    for part in ("state_dict", "current_model_state"):
        assert saved[part]
        assert all(name.startswith("shortcut.") for name in saved[part])
    tensors = [value for _, value in leaves(saved) if isinstance(value, Tensor)]
    frozen = [*base.transformer.state_dict().values(), *base.tokenizer.state_dict().values()]
    # Constant tensors (zero biases, ones of norms) occur everywhere; the random ones must not.
    telling = [t.float() for t in frozen if t.numel() > 1 and t.float().std() > 0]
    assert len(telling) > 10
    assert not [t.shape for t in tensors for f in telling if t.shape == f.shape and torch.equal(t.float(), f)]


def test_the_averaged_weights_are_the_ones_that_are_kept(whole):
    saved = checkpoint(whole)
    averaged, last = saved["state_dict"], saved["current_model_state"]
    with safe_open(whole / "shortcut.safetensors", "pt") as file:
        kept = {f"shortcut.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert kept.keys() == averaged.keys()
    assert all(torch.equal(kept[name], averaged[name]) for name in kept)
    assert not torch.equal(averaged["shortcut.proj_out.weight"], torch.zeros_like(last["shortcut.proj_out.weight"]))


def test_a_checkpoint_tells_its_config_and_base(stored, whole, tmp_path):
    config, told = config_for(stored, tmp_path), checkpoint(whole)["hyper_parameters"]
    assert told["base"] == build(config.base).fingerprint()
    assert told["config"]["shortcut"] == {**config.shortcut, "_target_": "MaskGITShortcut"}
    assert told["config"]["max_steps"] == STEPS


def test_a_checkpoint_of_a_version_that_kept_import_paths_goes_on_and_another_class_does_not(stored, whole, tmp_path):
    config = config_for(stored, tmp_path)
    saved, base = checkpoint(whole), build(config.base).fingerprint()
    known = saved["hyper_parameters"]["config"]
    known["shortcut"] = {**known["shortcut"], "_target_": "migm.elsewhere.MaskGITShortcut"}
    torch.save(saved, tmp_path / "earlier.ckpt")
    assert check_resume(tmp_path / "earlier.ckpt", training_config(config), base)["global_step"] == STEPS
    now = known["data"]
    assert now["storage"] == {"_target_": "Features", "name": "features", "dtype": "bfloat16"}
    values = {"storage": "features", "dtype": "bfloat16", "reuse": 1, "cache": "x", "cache_bytes": 10}
    known["data"] = {**now, **values}  # as before storages were components
    torch.save(saved, tmp_path / "values.ckpt")
    assert check_resume(tmp_path / "values.ckpt", training_config(config), base)["global_step"] == STEPS
    for changes in ({"dtype": "int8"}, {"storage": "tokens"}, {"storage": "elsewhere"}):
        known["data"] = {**now, **values, **changes}
        torch.save(saved, tmp_path / "values.ckpt")
        with pytest.raises(UserError, match=naming("values.ckpt", "another data;", "choose another name= or delete")):
            check_resume(tmp_path / "values.ckpt", training_config(config), base)
    known["data"] = now
    known["shortcut"]["_target_"] = "migm.shortcuts.maskgit.Another"
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=naming("other.ckpt", "shortcut")):
        check_resume(tmp_path / "other.ckpt", training_config(config), base)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("shortcut.depth=2", "shortcut"),
        ("optimizer.lr=1.0e-4", "optimizer"),
        ("trainer.max_steps=30", "max_steps"),
        ("data.batch_size=4", "data"),
        ("base.dtype=float32", "base"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_naming_it(stored, whole, tmp_path, override, key):
    shutil.copytree(whole, tmp_path / "tiny_shortcut")
    before = (tmp_path / "tiny_shortcut" / "checkpoints" / "resume.ckpt").read_bytes()
    with pytest.raises(UserError, match=naming("resume.ckpt", "another", key)):
        run(stored, tmp_path, override)
    assert (tmp_path / "tiny_shortcut" / "checkpoints" / "resume.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("fast", "asked", "precision"),
    [
        (True, "auto", "bf16-mixed"),
        (False, "auto", "32-true"),
        (False, "bf16-mixed", "bf16-mixed"),
        (True, 32, "32-true"),
    ],
)
def test_the_precision_is_the_machines_unless_one_is_asked_for(stored, tmp_path, monkeypatch, fast, asked, precision):
    config = config_for(stored, tmp_path, f"trainer.precision={asked}")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(device, "product_seconds", lambda dtypes: [1.0, 0.2])
    assert Training(config, build(config.base)).trainer.precision == precision


def test_the_shortcut_file_describes_itself_and_its_base(stored, whole, tmp_path):
    config, path = config_for(stored, tmp_path), whole / "shortcut.safetensors"
    base = build(config.base)
    module, fingerprint = load_shortcut(path, base.fingerprint(), "key")
    assert module.config["bottleneck_ratio"] == config.shortcut["bottleneck_ratio"]
    assert len(fingerprint) == 12
    assert not module.training
    with pytest.raises(UserError, match=naming("key=", "shortcut.safetensors", base.fingerprint())):
        load_shortcut(path, "ffffffffffff", "key")


def test_a_warm_start_begins_with_the_weights_of_a_trained_shortcut(stored, whole, tmp_path, monkeypatch):
    weights = whole / "shortcut.safetensors"
    started = []
    monkeypatch.setattr(Training, "_fit", lambda self, data: started.append(self.module.shortcut.state_dict()))
    run(stored, tmp_path / "warm", f"warm_start={weights}", "objective=guided_kl")
    config = config_for(stored, tmp_path / "warm")
    trained, _ = load_shortcut(weights, build(config.base).fingerprint(), "weights")
    assert started[0].keys() == trained.state_dict().keys()
    assert all(torch.equal(value, started[0][name]) for name, value in trained.state_dict().items())
    wide = config_for(stored, tmp_path / "wide", f"warm_start={weights}", "shortcut.depth=2")
    with pytest.raises(UserError, match=naming(f"warm_start={weights} was trained with shortcut.depth=1, not 2")):
        Training(wide, build(wide.base))
    missing = config_for(stored, tmp_path / "missing", "warm_start=nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match=naming("warm_start=nowhere.safetensors: no such file")):
        Training(missing, build(missing.base))


def test_a_training_that_began_elsewhere_is_not_gone_on_with(stored, whole, tmp_path):
    run(
        stored,
        tmp_path,
        "trainer.max_steps=2",
        "lr_schedule.warmup_steps=1",
        f"warm_start={whole / 'shortcut.safetensors'}",
    )
    cold = config_for(stored, tmp_path, "trainer.max_steps=2", "lr_schedule.warmup_steps=1")
    with pytest.raises(UserError, match="trained with another warm_start"):
        Training(cold, build(cold.base))
