"""The Python door: `import migm` does what the commands do, and leaves nothing behind."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from tiny_parts import ROOT, naming, smaller_block

import migm
from migm.config.building import conf_path
from migm.config.roots import TrainConfig
from migm.door.configs import config_of
from migm.runtime.errors import UserError
from migm.sampling.loop import Sampling

LITTLE = {"data.num_val_images": 4, "data.batch_size": 8}


@pytest.fixture(scope="module")
def base():
    return migm.load_base("cifar10", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny():
    return migm.load_base("tiny", device="cpu")


def test_the_import_is_light():
    code = "import sys, migm; dir(migm); assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="load_bse"):
        migm.load_bse  # noqa: B018


def test_the_block_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Timing batches of 100 takes minutes: the tests of evaluation do it, and that of the wheel runs the whole block.
    monkeypatch.setattr("migm.evaluation.study.latency", lambda samplers, *_: [1.0] * len(samplers))
    scope: dict[str, object] = {}
    exec(compile(smaller_block(), "README.md", "exec"), scope)
    assert (tmp_path / "run" / "shortcut.safetensors").exists()
    images = scope["images"]
    assert len(images) == 8  # type: ignore[arg-type]
    assert images.record["accelerator"] == "shortcut"  # type: ignore[attr-defined]


def test_a_base_by_name_is_that_of_the_commands(base, tiny):
    with initialize_config_dir(conf_path(), version_base="1.3"):
        cfg = compose("evaluate", ["base=tiny", "sampling=tiny", "device=cpu"])
    from migm.config.building import build, load
    from migm.config.roots import EvaluateConfig

    assert tiny.fingerprint() == build(load(cfg, EvaluateConfig).base).fingerprint()
    assert base.spec.num_tokens == 64
    assert migm.load_base("tiny", transformer__depth=1).spec.num_layers == 1


def test_a_base_comes_with_what_its_shortcut_experiment_chooses():
    config = config_of(TrainConfig, "cifar10")
    assert (config.name, config.trainer["max_steps"], config.evalset["num_images"]) == ("cifar10_shortcut", 4000, 1000)
    assert config_of(TrainConfig, "dimoo_tiny").evalset["inputs"]["_target_"].endswith("Prompts")
    assert config_of(TrainConfig, "maskgit_256").base["transformer"]["num_tokens"] == 256


def test_images_are_those_of_the_command(base, tmp_path, call_main):
    import migm.generate

    images = migm.Sampler(base, num_steps=4)(labels=[3, 7], seeds=[0, 5], batch_size=1)
    folder = tmp_path / "kept"
    options = ["accelerator=vanilla", "labels=[3,7]", "seeds=[0,5]", f"folder={folder}", f"output={tmp_path}/grid.png"]
    chosen = ["device=cpu", "base.dtype=float32", "sampling.num_steps=4", "batch_size=1"]
    code, out, err = call_main(migm.generate.main, *options, *chosen)
    assert code == 0, out + err
    kept = [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    assert all((np.array(made) == other).all() for made, other in zip(images, kept, strict=True))
    images.save(tmp_path / "same.png")
    assert (np.array(Image.open(tmp_path / "same.png")) == np.array(Image.open(tmp_path / "grid.png"))).all()
    assert images.record["labels"] == [3, 7]
    assert images.record["seeds"] == [0, 5]
    with Image.open(BytesIO(images._repr_png_())) as shown:
        assert shown.size == Image.open(tmp_path / "grid.png").size


def test_nothing_global_is_set(base):
    torch.manual_seed(3)
    wanted, threads = torch.rand(2), torch.get_num_threads()
    torch.manual_seed(3)
    migm.load_base("tiny")
    migm.Sampler(base, 2)(labels=[1])
    assert torch.equal(torch.rand(2), wanted)
    assert torch.get_num_threads() == threads
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(conf_path(), version_base="1.3"):  # inside somebody's Hydra application
        hydra = GlobalHydra.instance().hydra
        migm.Sampler(base, 2)
        assert GlobalHydra.instance().hydra is hydra


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda base: migm.load_base("cifr10"), ["base=cifr10", "cifar10"]),
        (lambda base: migm.load_base("cifar10", wights="x"), ["base.wights", "weights"]),
        (lambda base: migm.Sampler(base, 2, 4, "reuse"), ["sampling.num_full_steps=4", "sampling.num_steps=2"]),
        (lambda base: migm.Sampler(base, accelerator="reus"), ["accelerator=reus", "reuse"]),
        (lambda base: migm.Sampler(base, sampling="cifr"), ["sampling=cifr", "cifar10"]),
        (lambda base: migm.Sampler(base, overrides={"sampling.num_step": 2}), ["sampling.num_step", "num_steps"]),
        (lambda base: migm.Sampler(base, 2)(labels=[12]), ["labels=[12]", "0 to 9"]),
        (lambda base: migm.Sampler(base, 2)(prompts=["a cat"]), ["prompts=", "classes"]),
        (lambda base: migm.Sampler(base, 2)(), ["labels=None", "prompts=None"]),
        (lambda base: migm.Sampler(base, 2)(labels=[]), ["labels=[]", "nothing to draw"]),
        (lambda base: migm.compare([]), ["samplers=[]"]),
        (lambda base: migm.compare(2 * [migm.Sampler(base, 2)]), ["vanilla 2", "variant="]),
        (lambda base: migm.compare([migm.Sampler(base, 2)], ["fid"]), ["metric=fid", "fid_val50k"]),
        (lambda base: migm.compare([migm.Sampler(base, 2)], evalset="cifar"), ["evalset=cifar", "cifar10"]),
    ],
)
def test_what_cannot_be_is_refused_in_the_line_of_the_commands(base, call, words):
    with pytest.raises(UserError, match=naming(*words)):
        call(base)


def test_a_front_chooses_by_speed_and_by_quality_and_says_so(base, tmp_path, capsys):
    fast = migm.Sampler(base, speed=4)
    assert "speed=4: reuse N=16 B=3" in " ".join(capsys.readouterr().out.split())
    assert (fast.label, migm.Sampler(base, quality=1.0).accelerator.name) == ("reuse 16,3", "foca")
    images = fast(labels=[3])
    assert images.record["chosen"].startswith("speed=4: reuse N=16 B=3")
    images.save(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.info["chosen"] == images.record["chosen"]
    assert images[0].tobytes() == migm.Sampler(base, 16, 3, "reuse")(labels=[3])[0].tobytes()
    own = migm.Sampler(base, accelerator="auto", overrides={"sampling.guidance.guidance_scale": 3})
    assert own.sampling.guidance is not None
    assert own.sampling.guidance.guidance_scale == 3
    assert "guidance_scale=3 is not the sampler that was measured" in own.chosen["chosen"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"speed": 4, "num_steps": 8}, ["sampling.num_steps=8", "speed=4"]),
        ({"speed": 4, "accelerator": "foca"}, ["accelerator=foca", "speed=4"]),
        ({"speed": 4, "sampling": Sampling}, ["sampling", "object"]),
        ({"front": "x.json"}, ["front=x.json", "speed="]),
        ({"quality": 3}, ["quality=3", "best quality"]),
        ({"speed": -1}, ["speed=-1", "above 0"]),
    ],
)
def test_what_a_front_cannot_choose_is_refused(base, asked, words):
    with pytest.raises(UserError, match=naming(*words)):
        migm.Sampler(base, **asked)


def test_a_missing_file_is_named(base):
    with pytest.raises(FileNotFoundError, match=naming("nowhere.safetensors")):
        migm.load_shortcut("nowhere.safetensors", base)


def test_comparing_goes_on_where_it_stopped(base, tmp_path, capsys):
    samplers = [migm.Sampler(base, 3), migm.Sampler(base, 3, 1, "reuse")]
    few = {"evalset.batch_size": 5}
    first = migm.compare(samplers, ["class_agreement"], 10, cost=False, folder=tmp_path, overrides=few)
    assert [row.label for row in first.rows] == ["vanilla 3", "reuse 3,1"]
    assert "class_agreement_10" in repr(first)
    lines = (tmp_path / "results.jsonl").read_text()
    again = migm.compare(samplers, ["class_agreement"], 10, cost=False, folder=tmp_path, overrides=few)
    assert again.records == first.records
    assert (tmp_path / "results.jsonl").read_text() == lines


class Mine:
    """A base of one's own: another object with the methods of tier 1."""

    def __init__(self, inner):
        self._inner = inner
        self.spec, self.device, self.dtype = inner.spec, inner.device, inner.dtype
        for name in ("review", "encode", "branch", "features", "head", "control", "decode", "tokenize"):
            setattr(self, name, getattr(inner, name))

    def fingerprint(self):
        return "mine"

    def decoder_fingerprint(self):
        return "mine too"


def test_a_base_of_ones_own_samples_and_trains(tiny, tmp_path):
    mine = Mine(tiny)
    vanilla = migm.Sampler(mine, num_steps=4)  # type: ignore[arg-type]
    assert isinstance(vanilla.sampling, Sampling)
    assert vanilla.sampling.guidance is None
    assert len(vanilla(labels=[1, 2])) == 2
    small = {**LITTLE, "shortcut.num_heads": 2, "sampling.num_steps": 4, "sampling.num_full_steps": 2}
    shortcut = migm.train_shortcut(mine, 24, 4, tmp_path / "run", small)  # type: ignore[arg-type]
    header = json.loads((tmp_path / "run" / "trajectories" / "manifest.jsonl").read_text().splitlines()[0])
    assert header["sampling"] == vanilla.sampling.identity  # what it samples by is what it was trained on
    fast = migm.Sampler(mine, 4, 2, shortcut)  # type: ignore[arg-type]
    assert fast.label == "shortcut 4,2"
    assert fast(labels=[1]).record["base"] == "mine"
    with pytest.raises(UserError, match="trained for base mine"):
        migm.load_shortcut(tmp_path / "run" / "shortcut.safetensors", tiny)


def test_a_base_of_ones_own_has_no_front_but_a_file(tiny):
    own = copy.copy(tiny)
    del own.config_name
    with pytest.raises(UserError, match=naming("front=None", "migm.tune")):
        migm.Sampler(own, speed=2)
    file = Path(conf_path()).parent / "migm" / "assets" / "front.json"
    with pytest.raises(UserError, match=naming(f"front={file}", "holds for the base cifar10")):
        migm.Sampler(own, speed=2, front=file)


def test_steps_and_overrides_of_objects_count_or_are_refused(tiny):
    rules = migm.Sampler(tiny).sampling
    assert migm.Sampler(tiny, 4, 2, "reuse", rules).label == "reuse 4,2"
    assert migm.Sampler(tiny, sampling=replace(rules, num_steps=5)).num_steps == 5
    for unused, parts in {
        "sampling.guidance": {"sampling": rules},
        "accelerator.policy": {"accelerator": migm.Sampler(tiny, 4, 2, "reuse").accelerator},
    }.items():
        with pytest.raises(UserError, match=naming(unused, "is an object here")):
            migm.Sampler(tiny, overrides={f"{unused}.x": 1}, **parts)


def test_a_training_inside_another_hydra_application(tiny, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    with initialize_config_dir(str(tmp_path / "theirs"), version_base="1.3"):
        migm.train_shortcut(tiny, 24, 2, tmp_path / "run", LITTLE)
    assert (tmp_path / "run" / "shortcut.safetensors").exists()
    assert "features_int8" in capsys.readouterr().out  # the table of our storages, not of the other application's


def test_a_training_goes_on_and_a_picture_of_others_stays(tiny, tmp_path):
    for _ in range(2):
        migm.train_shortcut(tiny, 24, 4, tmp_path / "run", LITTLE)
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=naming("photo.png", "not a grid")):
        migm.Sampler(tiny, 2, 1, "reuse")(labels=[1]).save(tmp_path / "photo.png")


def test_the_source_has_no_door_beside_these_names():
    assert set(migm.DOOR) == set(migm.__all__) - {"__version__"}
    assert {path.stem for path in (Path(migm.__file__).parent / "door").glob("*.py")} >= set(migm.DOOR.values())
