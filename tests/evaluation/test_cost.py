"""What generation costs: counted, and timed in turns."""

import time
from itertools import pairwise

import pytest
import torch
from tiny_parts import tiny

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Uniform
from migm.config import build
from migm.evaluation.cost import Point, flops, interleaved, latency, work
from migm.inputs import Classes
from migm.shortcuts.maskgit import MaskGITShortcut

CLASSES = Classes(10)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The tiny base and a function from (accelerator, N, B) to a point."""
    output = tmp_path_factory.mktemp("cost")

    def point(kind: str, n: int, b: int, **more: str) -> Point:
        overrides = [f"sampling.num_steps={n}", f"sampling.num_full_steps={b}"]
        sampling = build(tiny(output, *overrides, *(f"{k}={v}" for k, v in more.items())).sampling)
        torch.manual_seed(0)
        predictors = {"vanilla": None, "reuse": Reuse(), "shortcut": Shortcut(module=MaskGITShortcut(48, num_heads=2))}
        policy = Always() if kind == "vanilla" else Uniform(b)
        return Point(sampling, Accelerator(policy, predictors[kind], kind))

    return build(tiny(output).base), point


@pytest.mark.parametrize("n", [1, 2, 6])
def test_vanilla_costs_exactly_its_steps(parts, n):
    base, point = parts
    assert work(base, [point("vanilla", n, 1)], CLASSES)[0].ffe == n


@pytest.mark.parametrize("kind", ["reuse", "shortcut"])
def test_all_steps_full_cost_exactly_vanilla(parts, kind):
    base, point = parts
    assert work(base, [point(kind, 6, 6)], CLASSES)[0].ffe == 6


def test_counted_operations_are_those_of_the_matrix_products(parts):
    base, point = parts
    n, (t, c, hidden, depth, v) = 2, (17, 48, 96, 2, 24)
    counts = point("vanilla", n, n).sampling.schedule.counts(16, n)
    block = 4 * t * c * c + 2 * t * t * c + 2 * t * c * hidden
    full = 2 * (3 * t * c * c + depth * block)  # both guidance halves; three linear layers around the blocks
    head = sum((16 - sum(counts[:i])) * c * v for i in range(n))  # masked rows only, after guidance
    assert flops(base, point("vanilla", n, n), CLASSES) == 2 * (n * full + head)


@pytest.mark.parametrize("b", [1, 2, 3, 5])
def test_reuse_costs_its_full_steps_and_the_heads(parts, b):
    base, point = parts
    ffe = work(base, [point("reuse", 6, b)], CLASSES)[0].ffe
    assert b < ffe < b + 0.15 * (6 - b)


def test_costs_grow_by_one_full_step_each_with_b(parts):
    base, point = parts
    reuse = [flops(base, point("reuse", 6, b), CLASSES) for b in range(1, 7)]
    steps = {b - a for a, b in pairwise(reuse)}
    assert len(steps) == 1
    assert steps.pop() > 0
    shortcut = [flops(base, point("shortcut", 6, b), CLASSES) for b in range(1, 7)]
    assert shortcut == sorted(set(shortcut))
    assert all(a < b for a, b in zip(reuse[:-1], shortcut[:-1], strict=True))


def test_labels_tell_accelerator_n_and_b(parts):
    _, point = parts
    assert point("vanilla", 6, 2).label == "vanilla 6"
    assert point("reuse", 6, 2).label == "reuse 6,2"
    assert point("shortcut", 4, 4).label == "shortcut 4"


def test_jobs_take_turns_after_one_warm_up_round():
    calls = []
    jobs = [lambda name=name: calls.append(name) for name in "abc"]
    seconds = interleaved(jobs, 4, torch.device("cpu"))
    assert "".join(calls) == "abc" * 5
    assert len(seconds) == 3


def test_the_median_of_the_timed_rounds_counts():
    # The warm-up and one hiccup are slow; neither may reach the result.
    naps = iter([0.2, 0.0, 0.2, 0.0, 0.0, 0.0])
    assert interleaved([lambda: time.sleep(next(naps))], 5, torch.device("cpu"))[0] < 0.1


def test_latency_is_per_image(parts, monkeypatch):
    base, point = parts
    monkeypatch.setattr(
        "migm.evaluation.cost.interleaved", lambda jobs, *_: [8.0 for job in jobs if job().shape == (4, 16)]
    )
    points = [point("vanilla", 2, 2), point("reuse", 6, 2)]
    assert latency(base, points, torch.arange(4), 1) == [2.0, 2.0]
