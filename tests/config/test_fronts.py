"""Front files: what is written is read again, what is wrong is refused in one line, and who is chosen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import ROOT, naming

from migm.config.fronts import (
    MEASURED,
    PAPER,
    Front,
    FrontPoint,
    Vanilla,
    candidates,
    choose,
    quality,
    read_front,
    refuse_other_base,
    write_front,
)
from migm.runtime.errors import UserError

ASSETS = ROOT / "migm" / "assets"


def point(value: float, speed: float, name: str = "reuse", **more: Any) -> FrontPoint:
    return FrontPoint(name, 16, None, value, speed, **more)


POINTS = [
    point(0.30, 4.0, changes={"accelerator.policy.interval": 5, "sampling.select.temperature": 20.5}),
    point(0.21, 2.98, n=500, seed_sets=[1, 2], standard_error=0.01, device="a card", source="study"),
    point(0.26, 2.0, "foca"),  # beaten
    point(0.19, 1.5, "taylorseer"),
]
FRONT = Front(["abc", "def"], "cifar10", "fd_5", False, 0.02, Vanilla(0.2, 16, 5.0), POINTS, {"measured": MEASURED})
UP = replace(
    FRONT,
    higher_is_better=True,
    vanilla=Vanilla(0.9, 16),
    points=[point(0.5, 4.0), point(0.85, 2.98), point(0.7, 2.0), point(0.95, 1.5)],
)


@pytest.fixture
def path(tmp_path) -> Path:
    write_front(FRONT, tmp_path / "front.json")
    return tmp_path / "front.json"


def test_what_is_written_is_read_again_with_a_line_per_point(path):
    assert read_front(path) == FRONT
    text = path.read_text()
    assert [json.loads(line.strip(" ,"))["value"] for line in text.splitlines() if "speed" in line] == [
        each.value for each in POINTS
    ]
    assert [each.name for each in path.parent.iterdir()] == ["front.json"]


def test_keys_that_may_be_left_out_have_their_defaults(path):
    content = json.loads(path.read_text())
    content["points"] = [
        {key: p[key] for key in ("accelerator", "num_steps", "num_full_steps", "value", "speed")}
        for p in content["points"]
    ]
    path.write_text(json.dumps(content))
    assert read_front(path).points[1] == point(0.21, 2.98)


def set_in(content: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in key.split("/")]
    node: Any = content
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "migm-front/2", ["migm-front/1", "migm-front/2"]),
        ("format", ..., ["migm-front/1", "no format"]),
        ("metric", ..., ["metric", "is missing"]),
        ("points/1/speed", ..., ["points[1].speed", "is missing"]),
        ("points/1/sped", 3, ["points[1].sped", "is unknown", "speed"]),
        ("vanilla/value", "high", ["vanilla.value=high", "a number"]),
        ("vanilla", 3, ["vanilla=3", "group of keys"]),
        ("points", {}, ["points={}", "list"]),
        ("points", [], ["points is empty"]),
        ("points/0", 3, ["points[0]", "group of keys"]),
        ("points/0/speed", 0, ["points[0].speed=0", "above 0"]),
        ("points/0/speed", True, ["points[0].speed=true", "a number"]),
        ("points/0/num_steps", 1.5, ["points[0].num_steps=1.5", "whole number"]),
        ("points/0/num_full_steps", 17, ["points[0]", "num_full_steps=17", "num_steps=16"]),
        ("points/0/accelerator", "../x", ["points[0].accelerator=../x", "letters"]),
        ("points/0/source", 3, ["points[0].source=3", "a text"]),
        ("points/0/value", float("nan"), ["NaN"]),
        ("vanilla/ms", float("inf"), ["Infinity"]),
        ("resolution", -1, ["resolution=-1", "at least 0"]),
        ("points/0/changes", {"base.weights": "x"}, ["points[0].changes", "base.weights"]),
        ("points/0/changes", {"sampling.num_steps": 3}, ["points[0].changes", "sampling.num_steps"]),
        ("points/0/changes", {"accelerator._target_": "os.system"}, ["points[0].changes", "accelerator._target_"]),
        ("points/0/changes", {"accelerator.x": {"_target_": "os.system"}}, ["points[0].changes.accelerator.x"]),
        ("points/0/changes", {"accelerator.x": "${oc.env:HOME}"}, ["points[0].changes", "may not refer"]),
        ("about", {}, ["about.measured=None", MEASURED, PAPER]),
        ("about/measured", PAPER, ["base=['abc', 'def']", "no fingerprints"]),
        ("base", [], ["base=[]", "fingerprint"]),
        ("base", "abc", ["base=abc", "a list"]),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(path, key, value, words):
    content = json.loads(path.read_text())
    set_in(content, key, value)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=naming(f"front={path}", *words)) as refused:
        read_front(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"format": "migm-front/1"', "[" * 100_000])
def test_what_is_no_front_file_is_refused_in_one_line(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=naming(f"front={path}")) as refused:
        read_front(path)
    assert len(str(refused.value)) < 300


def test_a_missing_file_and_another_base_are_refused(path):
    with pytest.raises(FileNotFoundError, match=naming("front=", "nowhere.json", "migm.tune")):
        read_front(path.with_name("nowhere.json"))
    refuse_other_base(FRONT, path, "def")
    with pytest.raises(UserError, match=naming(f"front={path}", "cifar10", "abc, def", "this base is 123")):
        refuse_other_base(FRONT, path, "123")


def test_nothing_wrong_is_written(tmp_path):
    with pytest.raises(UserError, match="NaN"):
        write_front(replace(FRONT, vanilla=Vanilla(float("nan"), 16)), tmp_path / "front.json")
    assert list(tmp_path.iterdir()) == []


def test_quality_is_a_share_of_vanillas_in_the_metrics_direction():
    assert quality(FRONT, 0.4) == 0.5
    assert quality(FRONT, 0.1) == 2  # better than vanilla
    assert quality(FRONT, -0.01) == float("inf")  # an unbiased distance may be below 0
    assert quality(UP, 0.45) == 0.5
    assert quality(UP, 1.8) == 2
    with pytest.raises(UserError, match=naming("fd_5", "-0.1")):
        quality(replace(FRONT, vanilla=Vanilla(-0.1, 16)), 0.3)


def test_points_that_others_beat_are_no_candidates():
    assert [each.value for each in candidates(FRONT)] == [0.30, 0.21, 0.19]
    assert [each.value for each in candidates(UP)] == [0.5, 0.85, 0.95]
    better = replace(FRONT, vanilla=Vanilla(0.1, 16))
    assert [each.accelerator for each in candidates(better)][-1] == "vanilla"


@pytest.mark.parametrize("front", [FRONT, UP])
@pytest.mark.parametrize(
    ("speed", "share", "chosen"),
    [
        (3.0, None, 1),  # 2.98 is within what times vary
        (3.02, None, 0),
        (1.2, None, 3),  # the best, not the fastest
        (2.0, None, 1),  # not the one that another beats
        (None, 0.94, 1),
        (None, 0.5, 0),  # the fastest, not the best
        (None, 1.0, 3),
        (2.5, 0.94, 1),
        (1.2, 0.94, 3),  # best value first
        (None, None, 1),
    ],
)
def test_who_is_chosen(front, speed, share, chosen):
    if front is UP and (speed, share) == (None, None):
        chosen = 3  # 0.85 is 0.05 below vanilla, the resolution is 0.02
    assert choose(front, speed, share) == front.points[chosen]


def test_without_a_resolution_nothing_worse_than_vanilla_is_as_good():
    assert choose(replace(FRONT, resolution=None)) == POINTS[3]
    assert choose(replace(FRONT, points=POINTS[:3], resolution=None)).accelerator == "vanilla"


@pytest.mark.parametrize(
    ("speed", "share", "words"),
    [
        (9.0, None, ["speed=9", "at most 4 times", "reuse N=16", "policy.interval=5"]),
        (None, 2.0, ["quality=2", "best", "taylorseer", "0.190", "1.05"]),
        (4.0, 0.9, ["speed=4 quality=0.9", "so fast the best is reuse", "0.300", "so good the fastest", "2.98"]),
    ],
)
def test_what_cannot_be_reached_is_refused_with_what_can(speed, share, words):
    with pytest.raises(UserError, match=naming(*words)):
        choose(FRONT, speed, share)


@pytest.mark.parametrize("path", sorted(ASSETS.rglob("front*.json")) + sorted((ASSETS / "fronts").glob("*.json")))
def test_a_shipped_front_is_read_and_has_a_point_beside_vanilla(path):
    front = read_front(path)
    assert [each for each in candidates(front) if each.accelerator != "vanilla"]
    assert (path.parent.name == "fronts") == front.from_paper
    assert not front.from_paper or front.name == path.stem


def test_fronts_are_shipped_for_every_measured_base():
    names = {path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*.json")}
    assert {"front.json", "cifar10_deep/front.json", "dimoo_tiny/front.json"} <= names
    assert {"fronts/maskgit_512.json", "fronts/dimoo.json"} <= names
