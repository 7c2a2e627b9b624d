"""What generation costs: counted, and timed in turns."""

import time
from itertools import pairwise

import pytest
import torch
from tiny_parts import naming, tiny

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Uniform
from migm.bases.inputs import Classes
from migm.config.building import build
from migm.evaluation.cost import LatencyProtocol, costs, counted, flops, interleaved, latency, peaks
from migm.evaluation.memory import peak_bytes
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler
from migm.shortcuts.maskgit import MaskGITShortcut

CLASSES = Classes(10)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The tiny base and a function from (accelerator, N, B) to a sampler of it."""
    output = tmp_path_factory.mktemp("cost")
    base = build(tiny(output).base)

    def point(kind: str, n: int, b: int, **more: str) -> Sampler:
        overrides = [f"sampling.num_steps={n}", f"sampling.num_full_steps={b}"]
        sampling = build(tiny(output, *overrides, *(f"{k}={v}" for k, v in more.items())).sampling)
        torch.manual_seed(0)
        predictors = {"vanilla": None, "reuse": Reuse(), "shortcut": Shortcut(module=MaskGITShortcut(48, num_heads=2))}
        policy = Always() if kind == "vanilla" else Uniform(b)
        return Sampler(base, sampling, Accelerator(policy, predictors[kind], kind))

    return base, point


@pytest.mark.parametrize("n", [1, 2, 6])
def test_vanilla_costs_exactly_its_steps(parts, n):
    _, point = parts
    assert costs([point("vanilla", n, 1)], CLASSES)[0].ffe == n


@pytest.mark.parametrize("kind", ["reuse", "shortcut"])
def test_all_steps_full_cost_exactly_vanilla(parts, kind):
    _, point = parts
    assert costs([point(kind, 6, 6)], CLASSES)[0].ffe == 6


def test_counted_operations_are_those_of_the_matrix_products(parts):
    _, point = parts
    n, (t, c, hidden, depth, v) = 2, (17, 48, 96, 2, 24)
    counts = point("vanilla", n, n).sampling.schedule.counts(16, n)
    block = 4 * t * c * c + 2 * t * t * c + 2 * t * c * hidden
    full = 2 * (3 * t * c * c + depth * block)  # both guidance halves; three linear layers around the blocks
    head = sum((16 - sum(counts[:i])) * c * v for i in range(n))  # masked rows only, after guidance
    assert flops(point("vanilla", n, n), CLASSES) == 2 * (n * full + head)


@pytest.mark.parametrize(("kind", "b"), [("vanilla", 6), ("reuse", 2), ("shortcut", 3)])
def test_what_is_counted_once_for_all_full_steps_is_what_a_whole_run_takes(parts, kind, b):
    base, point = parts
    sampler = point(kind, 6, b)
    noise = sampler.noise(0, torch.arange(1))
    whole = counted(lambda: sampler.tokens(CLASSES(torch.arange(1)), noise))
    found = costs([sampler], CLASSES)[0]
    assert flops(sampler, CLASSES) == found.flops == whole
    rows = 2 * b * 17 * base.spec.num_layers  # of all blocks, both guidance halves
    assert {found.rows[part] for part in ("k", "v", "attn_delta", "mlp_delta")} == {rows}


def test_runs_that_are_replayed_are_warmed_up_until_they_are_captured(parts, monkeypatch):
    _, point = parts
    asked = []

    def source(images: torch.Tensor) -> torch.Tensor:
        asked.append(images.tolist())
        return CLASSES(images)

    monkeypatch.setattr(Sampler, "replays", property(lambda self: True))
    monkeypatch.setattr(Sampler, "tokens", lambda self, inputs, noise: torch.zeros(len(inputs), 16))
    latency([point("vanilla", 2, 2)], source, LatencyProtocol.named("batch2_amortised"), 3)
    assert asked == 5 * [[0, 1]]
    asked.clear()
    latency([point("vanilla", 2, 2)], source, LatencyProtocol.named("batch1_wall"), 3)
    assert asked == 3 * [[0], [1], [2]]  # each image twice before it is timed


@pytest.mark.parametrize("b", [1, 2, 3, 5])
def test_reuse_costs_its_full_steps_and_the_heads(parts, b):
    _, point = parts
    ffe = costs([point("reuse", 6, b)], CLASSES)[0].ffe
    assert b < ffe < b + 0.15 * (6 - b)


def test_costs_grow_by_one_full_step_each_with_b(parts):
    _, point = parts
    reuse = [flops(point("reuse", 6, b), CLASSES) for b in range(1, 7)]
    steps = {b - a for a, b in pairwise(reuse)}
    assert len(steps) == 1
    assert steps.pop() > 0
    shortcut = [flops(point("shortcut", 6, b), CLASSES) for b in range(1, 7)]
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
    _, point = parts
    monkeypatch.setattr(
        "migm.evaluation.cost.interleaved", lambda jobs, *_: [8.0 for job in jobs if job().shape == (4, 16)]
    )
    points = [point("vanilla", 2, 2), point("reuse", 6, 2)]
    assert latency(points, CLASSES, LatencyProtocol.named("batch4_amortised"), 1) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("batch3_amortised", (3, 16)),
        ("batch3_amortised_decode", (3, 3, 16, 16)),
        ("batch1_wall", (1, 16)),
        ("batch1_wall_decode", (1, 3, 16, 16)),
    ],
)
def test_a_protocol_is_its_batch_and_whether_it_decodes(parts, name, shape):
    _, point = parts
    assert LatencyProtocol.named(name).job(point("vanilla", 2, 2), CLASSES)().shape == shape


def test_wall_takes_a_new_image_each_time_and_amortised_the_same_batch(parts):
    base, point = parts
    asked = []

    def source(images: torch.Tensor) -> torch.Tensor:
        asked.append(images.tolist())
        return CLASSES(images)

    for name in ("batch1_wall", "batch2_amortised"):
        interleaved([LatencyProtocol.named(name).job(point("vanilla", 1, 1), source)], 2, base.device)
    assert asked == [[0], [1], [2], *[[0, 1]] * 3]


@pytest.mark.parametrize("name", ["batch2_wall", "batch0_amortised", "amortised", "batch1_wall_decoded", "batch1"])
def test_another_protocol_is_refused_naming_the_known_ones(name):
    with pytest.raises(UserError, match=naming(f"latency={name}", "batch<b>_amortised", "batch1_wall", "_decode")):
        LatencyProtocol.named(name)


def test_the_peak_is_the_most_held_at_once_beyond_what_was_there():
    held = torch.zeros(1 << 20)

    def job() -> None:
        a, b = torch.zeros(1 << 18), torch.zeros(1 << 17)  # 1.5 MiB
        del a
        c = torch.zeros(1 << 16)  # 0.75 MiB
        held.add_(b[0] + c[0])

    assert (3 << 19) <= peak_bytes(job, torch.device("cpu")) < (3 << 19) + 64
    assert peak_bytes(lambda: None, torch.device("cpu")) == 0


def test_on_a_gpu_the_peak_is_that_of_a_warm_call_less_what_was_held(monkeypatch):
    calls = []
    readings = {"memory_allocated": 100, "max_memory_allocated": 140, "synchronize": None}
    for name in (*readings, "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: calls.append(name) or readings.get(name))
    assert peak_bytes(lambda: calls.append("job"), torch.device("cuda")) == 40
    first, second = (i for i, call in enumerate(calls) if call == "job")
    assert first < calls.index("reset_peak_memory_stats") < second < calls.index("max_memory_allocated")


def test_a_larger_batch_holds_more_and_more_steps_do_not(parts):
    _, point = parts
    points = [point("vanilla", 2, 2), point("vanilla", 6, 6)]
    small, large = (peaks(points, CLASSES, LatencyProtocol.named(f"batch{b}_amortised")) for b in (2, 8))
    assert 3 < large[0] / small[0] < 4.5
    assert small[1] < 1.1 * small[0]
    assert small == peaks(points, CLASSES, LatencyProtocol.named("batch2_amortised"))
