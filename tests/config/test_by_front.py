"""`speed=`, `quality=` and `accelerator=auto`: what a front chooses is drawn, said, recorded, and not contradicted."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import test_commands
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from test_commands import refused
from tiny_parts import composed, naming

import migm.plan
from migm.config.building import build, load
from migm.config.by_front import find_front
from migm.config.fronts import MEASURED, Front, FrontPoint, Vanilla, choose, named, read_front, write_front
from migm.config.points import Chosen, entries, former_identities, point, points
from migm.config.roots import CollectConfig, EvaluateConfig, ReportConfig, SideBySideConfig, TrainConfig
from migm.door.sampler import by_front
from migm.runtime.errors import UserError

call = test_commands.call  # the fixture
BASE = ["+experiment=tiny_shortcut", "device=cpu"]
INTERVAL = {"accelerator.policy.interval": 2, "sampling.select.temperature": 3.0}
POINTS = [
    FrontPoint("reuse", 6, 2, 0.4, 3.0, device="a card"),
    FrontPoint("taylorseer", 6, None, 0.21, 1.5, INTERVAL, device="a card"),
    FrontPoint("vanilla", 2, None, 0.9, 3.0, device="a card"),
]


@cache
def tree() -> DictConfig:
    return composed("evaluate", *BASE)


def changed(**keys: Any) -> DictConfig:
    cfg = copy.deepcopy(tree())
    for key, value in keys.items():
        OmegaConf.update(cfg, key, str(value) if isinstance(value, Path) else value, merge=False)
    return cfg


def evaluated(**keys: Any) -> Any:
    return load(changed(**keys), EvaluateConfig)


@cache
def fingerprint() -> str:
    return build(evaluated().base).fingerprint()


@pytest.fixture
def front(tmp_path) -> Path:
    """A front of the tiny base, whose values are made up."""
    return written(tmp_path / "given.json", fingerprint(), POINTS)


def written(path: Path, base: str, points: list[FrontPoint]) -> Path:
    vanilla = Vanilla(0.2, 6, 8.0)
    write_front(Front([base], "tiny", "fd_cifarnet_9", False, 0.02, vanilla, points, {"measured": MEASURED}), path)
    return path


@pytest.fixture
def generate(call, tmp_path, front) -> Callable[..., tuple[int, str, str]]:
    def run(*overrides: str) -> tuple[int, str, str]:
        shared = [*BASE, f"paths.output_dir={tmp_path}", "labels=[1,2]", "seeds=[0]", f"front={front}"]
        code, out, err = call("generate", [*shared, "sampling.draw.inverse_temperature=0.3", *overrides])
        return code, " ".join(out.split()) + "\n", err

    return run


def drawn(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    found = sorted(folder.glob("*.json"))
    return [(json.loads(path.read_text()), path.with_suffix(".png").read_bytes()) for path in found]


def test_the_chosen_point_is_drawn_said_and_recorded(generate, tmp_path, front):
    code, out, err = generate("speed=1.4", f"folder={tmp_path}/chosen")
    assert code == 0, err
    for words in ("speed=1.4: taylorseer N=6 policy.interval=2", "0.210 (vanilla 0.200", "1.5 times", str(front)):
        assert words in out
    assert "on a card (not measured on this device" in out
    assert "sampling.draw.inverse_temperature=0.3 is not the sampler that was measured" in out
    by_hand = ["accelerator=taylorseer", "accelerator.policy.interval=2", "sampling.select.temperature=3"]
    code, out, err = generate(*by_hand, f"folder={tmp_path}/by_hand", f"output={tmp_path}/by_hand.png")
    assert code == 0, err
    assert "speed" not in out
    chosen, like = drawn(tmp_path / "chosen"), drawn(tmp_path / "by_hand")
    assert [image for _, image in chosen] == [image for _, image in like]
    for key in ("accelerator", "settings", "sampling", "num_steps"):
        assert [entry[key] for entry, _ in chosen] == [entry[key] for entry, _ in like]
    assert not any("chosen" in entry for entry, _ in like)
    (first, _), (second, _) = chosen
    assert first["chosen"] == second["chosen"]
    assert first["chosen"].startswith("speed=1.4: taylorseer N=6")
    assert str(tmp_path) not in first["chosen"]
    with Image.open(tmp_path / "tiny_shortcut" / "images.png") as grid:
        assert grid.info["chosen"] == first["chosen"]


def test_refusals_come_before_any_work_and_a_front_of_another_base_before_an_image(generate, tmp_path, front):
    before = sorted(tmp_path.rglob("*"))
    refused(generate("speed=3", "accelerator=foca"), "accelerator=foca", "speed=3", "reuse N=6 B=2")
    assert sorted(tmp_path.rglob("*")) == before
    written(front, "0123456789ab", POINTS)
    refused(generate("speed=3"), f"front={front}", "0123456789ab", f"this base is {fingerprint()}", "migm.tune")
    assert not list(tmp_path.rglob("*.png"))


def asked_for(path: Path, given: dict[str, Any], **keys: Any) -> Chosen:
    return point(evaluated(**{"front": path, **keys}), list(given.items()))


@pytest.mark.parametrize(
    ("keys", "given", "words"),
    [
        ({"speed": 9}, {}, ["speed=9", "at most 3 times", "reuse N=6 B=2"]),
        ({"speed": 2, "quality": 0.9}, {}, ["speed=2 quality=0.9", "so fast", "0.400", "so good", "1.5 times"]),
        ({"quality": 2}, {}, ["quality=2", "best quality", "vanilla"]),
        ({"speed": 0}, {}, ["speed=0", "above 0"]),
        ({"quality": "good"}, {}, ["quality=good", "a number"]),
        ({"speed": 3}, {"sampling.num_steps": 4}, ["sampling.num_steps=4", "speed=3"]),
        ({"speed": 3}, {"sampling.num_full_steps": 3}, ["sampling.num_full_steps=3", "speed=3"]),
        ({"speed": 3}, {"accelerator.predictor.of": "residual"}, ["accelerator.predictor.of=residual", "speed=3"]),
        ({"speed": 1.5}, {"sampling.select.temperature": 9}, ["sampling.select.temperature=9", "speed=1.5"]),
        ({"speed": 3, "front": "nowhere.json"}, {}, ["front=nowhere.json", "migm.tune"]),
        ({"speed": 3, "front": None}, {}, ["speed=3", "no front of this base", "migm.tune"]),
    ],
)
def test_what_cannot_be_or_contradicts_is_refused_in_one_line(front, keys, given, words):
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)) as refusal:
        asked_for(front, given, **keys)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "given",
    [{"accelerator": "reuse"}, {"accelerator": "auto"}, {"sampling.num_steps": 6, "sampling.num_full_steps": 2}],
)
def test_what_agrees_with_the_choice_may_be_said_too(front, given):
    chosen = asked_for(front, {**given, "seed": 3, "base.dtype": "float32"}, speed=3)
    assert (chosen.accelerator.name, chosen.sampling.num_steps, chosen.sampling.num_full_steps) == ("reuse", 6, 2)
    assert chosen.decision is not None
    assert chosen.decision.also == ""


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (replace(POINTS[1], changes={"accelerator.policy.intervall": 2}), ["intervall", "did you mean interval?"]),
        (replace(POINTS[1], changes={"accelerator.policy.interval": "two"}), ["accelerator.policy.interval=two"]),
        (replace(POINTS[1], changes={"sampling.select.temprature": 2}), ["temprature", "did you mean temperature?"]),
        (replace(POINTS[0], accelerator="reused"), ["reused", "did you mean reuse?"]),
        (replace(POINTS[1], num_full_steps=2), ["B is 2", "its policy sets"]),
        (replace(POINTS[0], accelerator="auto"), ["accelerator=auto", "name an accelerator"]),
    ],
)
def test_a_point_that_cannot_be_built_is_refused_naming_the_file(front, made, words):
    written(front, "any", [made])
    with pytest.raises(UserError, match=naming(*words)) as refusal:
        asked_for(front, {}, speed=1.5)
    assert made.accelerator == "auto" or f"front={front}" in str(refusal.value)


def test_evaluate_measures_the_one_point_or_those_of_points(call, tmp_path, assets, front):
    few = ["evalset.num_images=8", "evalset.batch_size=8", "evalset.seed_sets=[1]", "cost=false", f"front={front}"]
    shared = [*test_commands.arguments(tmp_path, assets), "metric=[fd_cifarnet]", *few]
    code, _, err = call("evaluate", [*shared, "speed=3"])
    assert code == 0, err
    listed = "points={reuse: [[6,2]], auto: [{speed: 3}, {quality: 0.9}, {}]}"
    code, out, err = call("evaluate", [*shared, listed])
    assert code == 0, err
    records = [json.loads(line) for line in (tmp_path / "tiny_shortcut" / "results.jsonl").read_text().splitlines()]
    assert [record["accelerator"] for record in records] == ["reuse", "taylorseer"]  # the experiment's are left out
    assert records[0]["chosen"].startswith("speed=3: reuse N=6 B=2")
    assert records[1]["chosen"].startswith("points.auto={quality: 0.9} and points.auto={}: taylorseer")
    assert "Confidence(temperature=3)" in records[1]["sampling"]
    assert "points.auto={speed: 3}: reuse" in " ".join(out.split())


def test_points_that_are_named_twice_are_one_and_keep_the_decision(front):
    listed = {"reuse": [[6, 2], [6, 3]], "auto": [{"speed": 3}, {"quality": 0.4}]}
    cfg = changed(points=listed, front=front)
    config = load(cfg, EvaluateConfig)
    chosen = points(cfg, config)
    assert [(c.accelerator.name, c.sampling.num_full_steps) for c in chosen] == [("reuse", 2), ("reuse", 3)]
    assert chosen[0].decision is not None
    assert chosen[0].decision.asked == "points.auto={speed: 3} and points.auto={quality: 0.4}"
    assert len(former_identities(cfg, config, chosen)) == 3


@pytest.mark.parametrize("entry", [3, [6, 2], {"speed": "fast"}, {"num_steps": 6}, {"speed": -1}])
def test_another_entry_of_points_auto_is_refused(front, entry):
    cfg = changed(points={"auto": [entry]}, front=front)
    with pytest.raises(UserError, match=naming("points.auto")):
        entries(cfg, load(cfg, EvaluateConfig))


@pytest.mark.parametrize("root", [TrainConfig, CollectConfig, SideBySideConfig, ReportConfig])
def test_a_command_that_no_budget_can_choose_for_refuses_it(root):
    assert not root.draws_by_one
    with pytest.raises(UserError, match=naming("speed=3", "points.auto=[{speed: 3}]")):
        load(composed("report", *BASE, "speed=3"), ReportConfig)


def test_accelerator_auto_without_a_budget_takes_what_is_no_worse(front):
    cfg = composed("evaluate", *BASE, "accelerator=auto", f"front={front}")
    chosen = point(load(cfg, EvaluateConfig))
    assert chosen.decision is not None
    assert (chosen.accelerator.name, chosen.decision.asked) == ("taylorseer", "accelerator=auto")


def test_a_file_beside_the_front_is_named_from_its_folder(front):
    changes = {"accelerator.predictor.weights": "./own.safetensors"}
    written(front, "any", [FrontPoint("shortcut", 6, 2, 0.1, 3.0, changes)])
    assert asked_for(front, {}, speed=3).accelerator.predictor.weights == str(front.parent / "own.safetensors")


def test_the_front_tuned_here_comes_before_the_bundled_one_and_the_paper_last(tmp_path, front):
    config = composed("evaluate", "base=cifar10_deep", "name=own", f"paths.output_dir={tmp_path}")
    own = load(config, EvaluateConfig)
    path, origin = find_front(own) or (None, "")
    assert (path and path.parent.name, origin) == ("cifar10_deep", "bundled with the base")
    (tmp_path / "own").mkdir()
    front.rename(tmp_path / "own" / "front.json")
    assert find_front(own) == (tmp_path / "own" / "front.json", "tuned here")
    found = {
        weights: find_front(replace(own, name="other", base={"weights": weights}))
        for weights in ("hf://Alpha-VLLM/Lumina-DiMOO", "hf://someone/else", str(tmp_path))
    }
    assert [each and each[0].name for each in found.values()] == ["dimoo.json", None, None]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["+experiment=dimoo_shortcut", "speed=4.5"], ["from the paper, not measured here", "released_dimoo 64,11"]),
    ],
)
def test_shipped_fronts_answer_at_once(call_main, asked, words):
    code, out, err = call_main(migm.plan.main, *asked)
    assert code == 0, err
    for word in words:
        assert word in " ".join(out.split())


@pytest.mark.parametrize(
    ("name", "speed", "share", "chosen"),
    [
        ("cifar10_deep/front", 3, None, "taylorseer N=32"),
        ("cifar10_deep/front", 5, None, "taylorseer N=16"),
        ("cifar10_deep/front", None, None, "taylorseer N=32"),
        ("fronts/maskgit_512", None, 1, "shortcut_released N=32 B=8"),
        ("fronts/dimoo", 5.5, None, "shortcut_released_dimoo N=64 B=9"),
        ("cifar10_deep/front", None, 2, "quality=2 .* 1.05"),
        ("fronts/dimoo", None, 0.9, "choose by speed"),
    ],
)
def test_what_shipped_fronts_choose(name, speed, share, chosen):
    front = read_front(Path(migm.plan.__file__).parent / "assets" / f"{name}.json")
    if share in (None, 1):
        assert named(choose(front, speed, share)) == chosen
    else:
        with pytest.raises(UserError, match=chosen):
            choose(front, speed, share)


def test_a_part_that_is_an_object_is_refused_beside_a_budget():
    with pytest.raises(UserError, match=naming("accelerator", "is an object here")):
        by_front(None, {"front": None}, {"accelerator": object()}, {})  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_deep_base_draws_by_its_front_in_a_fresh_clone(call, tmp_path):
    few = ["labels=[1]", "seeds=[0]", f"paths.output_dir={tmp_path}", "device=cpu"]
    code, out, err = call("generate", ["+experiment=cifar10_deep", "speed=3", *few])
    assert code == 0, err
    assert "speed=3: taylorseer N=32: fd_cifarnet_5000 0.250" in " ".join(out.split())
    with Image.open(tmp_path / "cifar10_deep" / "images.png") as picture:
        assert picture.size == (96, 96)
