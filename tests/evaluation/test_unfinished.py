"""A point that was stopped goes on where it was, to exactly the value it would have had."""

import hashlib
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import composed

from migm.bases.inputs import Classes
from migm.config.building import build, load
from migm.config.points import points
from migm.config.roots import EvaluateConfig
from migm.evaluation.evalset import EvalSet
from migm.evaluation.results import read
from migm.evaluation.study import study
from migm.evaluation.unfinished import DIGEST, STALE, Part, Unfinished
from migm.metrics.metric import Batch


class Stopped(Exception):
    """Stands for a kill."""


def measure(output: Path, assets: Path, monkeypatch: Any, stop: int | None = None, *more: str) -> list[int]:
    """Measure two points in 4 batches each, kept after every one -> first images; stop in the batch of a number."""
    chosen = ["+experiment=tiny_shortcut", f"paths.output_dir={output}", f"paths.assets={assets}", "device=cpu"]
    chosen += [
        "metric=[fd_cifarnet,class_agreement]",
        "evalset.num_images=35",
        "~points.shortcut",
        "points.vanilla=[2]",
    ]
    cfg = composed("evaluate", *chosen, "cost=false", *more)
    config = load(cfg, EvaluateConfig)
    done, seen = study(points(cfg, config), config, build(config.base)), []
    batches = EvalSet.batches

    def watched(self: EvalSet, first: int = 0, last: int | None = None) -> Any:
        for images, inputs in batches(self, first, last):
            if len(seen) == stop:
                raise Stopped
            seen.append(int(images[0]))
            yield images, inputs

    with monkeypatch.context() as patch:
        patch.setattr("migm.evaluation.unfinished.EVERY", 0.0)
        patch.setattr("migm.evaluation.unfinished.COST", 1e9)
        patch.setattr(EvalSet, "batches", watched)
        if stop is None:
            done.measure_quality()
        else:
            with pytest.raises(Stopped):
                done.measure_quality()
    return seen


def values(output: Path) -> list[tuple[Any, ...]]:
    return [(r["metric"], r["num_full_steps"], r["value"]) for r in read(output / "tiny_shortcut" / "results.jsonl")]


def kept(output: Path) -> list[Path]:
    return sorted((output / "tiny_shortcut").glob("unfinished*"))


@pytest.fixture(scope="module")
def whole(assets, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        assert measure(output, assets, patch) == 2 * [0, 10, 20, 30]
    assert not kept(output)
    return output


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_stopped_point_goes_on_from_the_last_batch_that_was_kept(whole, assets, tmp_path, monkeypatch, stop):
    begun = measure(tmp_path, assets, monkeypatch, stop)
    assert len(kept(tmp_path)) == 1
    rest = measure(tmp_path, assets, monkeypatch)
    assert begun + rest == 2 * [0, 10, 20, 30]
    assert values(tmp_path) == values(whole)
    assert not kept(tmp_path)
    for image in (whole / "tiny_shortcut" / "images").iterdir():
        assert (tmp_path / "tiny_shortcut" / "images" / image.name).read_bytes() == image.read_bytes()


@pytest.mark.parametrize("change", ["evalset.seed_sets=[2]", "evalset.batch_size=5", "metric=[class_agreement]"])
def test_what_was_kept_of_something_else_is_not_used(assets, tmp_path, monkeypatch, change):
    measure(tmp_path, assets, monkeypatch, 3)
    assert measure(tmp_path, assets, monkeypatch, None, change)[0] == 0
    [left] = kept(tmp_path)
    os.utime(left, (0, time.time() - STALE - 10))
    assert measure(tmp_path, assets, monkeypatch, None, change) == []
    assert not kept(tmp_path)


@pytest.mark.parametrize("place", [3, DIGEST + 200, -40])
def test_a_damaged_file_is_not_used(whole, assets, tmp_path, monkeypatch, place):
    measure(tmp_path, assets, monkeypatch, 3)
    path = kept(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert measure(tmp_path, assets, monkeypatch) == 2 * [0, 10, 20, 30]
    assert values(tmp_path) == values(whole)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"key": "a", "part": {"next": Path("x")}}, tmp_path / "plain.pt")
    content = (tmp_path / "plain.pt").read_bytes()
    unfinished = Unfinished(tmp_path, rank=0)
    unfinished.path("a").write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(Exception, match="Weights only"):
        unfinished.load("a")


def test_commands_that_measure_other_points_of_a_study_leave_each_other_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("migm.evaluation.unfinished.EVERY", 0.0)
    one, other = Unfinished(tmp_path, rank=0), Unfinished(tmp_path, rank=0)
    one.save_when_due("a", Part(1), [])
    other.save_when_due("b", Part(2), [])
    kept = [unfinished.load(key) for unfinished, key in ((one, "a"), (other, "b"), (one, "c"))]
    assert kept == [Part(1), Part(2), None]
    other.clear("b")
    assert one.load("a") == Part(1)
    assert other.load("b") is None
    other.clear_stale()
    assert one.load("a") == Part(1)


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Slow:
        def state(self) -> dict[str, Any]:
            now[0] += 10  # seconds
            return {}

    unfinished, saved = Unfinished(tmp_path, rank=0), []
    while now[0] < 1000:
        now[0] += 1
        before = now[0]
        unfinished.save_when_due("a", Part(1), [Slow()])  # type: ignore[list-item]
        saved += [before] * (now[0] > before)
    assert len(saved) == 5
    assert min(b - a for a, b in itertools.pairwise(saved)) >= 200


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_images", [2, 35, 40])
def test_shares_are_consecutive_and_together_everything(processes, num_images):
    evalset = EvalSet(num_images, Classes(10), [0], batch_size=10)
    shares = [evalset.share(rank, processes) for rank in range(processes)]
    batches = [images.tolist() for share in shares for images, _ in evalset.batches(share.start, share.stop)]
    assert batches == [images.tolist() for images, _ in evalset.batches()]
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_metrics_say_all_they_have_seen_and_take_it_in_before_the_rest(whole, assets, tmp_path):
    chosen = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", f"paths.assets={assets}", "device=cpu"]
    config = load(composed("evaluate", *chosen, "metric=[fd_cifarnet,class_agreement]"), EvaluateConfig)
    images = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for node in config.metric.values():
        metric, other = build(node), build(node)
        for part in images.split(10):
            metric.update(Batch(part, torch.arange(10)))
        for part in images[10:].split(10):
            other.update(Batch(part, torch.arange(10)))
        state = build(node)
        state.update(Batch(images[:10], torch.arange(10)))
        other.put_before(state.state())
        assert other.compute().item() == pytest.approx(metric.compute().item(), rel=1e-9)
