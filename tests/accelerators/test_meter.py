"""What methods compute and keep: rows, FLOPs, bytes by formula, seconds by plan (docs/originals/methods.md, Costs)."""

import dataclasses
import functools
import re
from typing import NamedTuple

import pytest
import torch
from families import METHODS, Family, N
from tiny_parts import moment, text_base

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.ml_cache import num_rows
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Table
from migm.bases.llada import LLaDAConfig
from migm.bases.segments import image_span
from migm.evaluation.cost import planned_seconds
from migm.evaluation.meter import PARTS, read_meter
from migm.sampling.draw import InverseCDF
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.dimoo import DiMOOShortcut


def meter(family, accelerator):
    """Count the generation of the first image."""
    sampler = Sampler(family.base, family.sampling, accelerator)
    return read_meter(sampler, lambda images: family.some(images.tolist()), 1)


@pytest.fixture(scope="module")
def metered(family):
    """What a method computes for the first image, and its full steps."""

    @functools.cache
    def read(method):
        accelerator = family.accelerator(method)
        return meter(family, accelerator), [record.is_full for record in family.run(accelerator, [0])[1]]

    return read


class Sizes(NamedTuple):
    """Of one image's sequences: rows of each, rows of its image span, layers, channels; and of every step."""

    branches: int
    rows: list[int]
    span: int
    depth: int
    channels: int
    counts: list[int]
    masked: list[int]


@pytest.fixture(scope="module")
def sizes(family):
    branches = family.base.encode(family.some([0]), guided=True)
    spec = family.base.spec
    now, tokens = moment(torch.ones(1)), torch.zeros(1, spec.num_tokens, dtype=torch.long)
    rows = [family.base.features(tokens, branch, now).shape for branch in branches]
    counts = family.sampling.schedule.counts(spec.num_tokens, N)
    masked = [sum(counts[i:]) for i in range(N)]
    each = [t for b, t, _ in rows for _ in range(b)]
    return Sizes(len(branches), each, image_span(branches[0]).shape[1], spec.num_layers, spec.channels, counts, masked)


def group(plan, counts, i):
    """How many tokens the full step at or before i and the cheap ones after it reveal."""
    first = max(j for j in range(i + 1) if plan[j])
    end = next((j for j in range(first + 1, N) if plan[j]), N)
    return sum(counts[first:end])


def layer_rows(method, plan, sizes, i):
    """Rows through (k, v, attention, feed-forward) of one layer at step i, of all sequences together."""
    s, total, halves = sizes, sum(sizes.rows), len(sizes.rows)
    if method == "dllm_cache":
        prompt = total - halves * s.span if i % 10 == 0 else 0
        image = halves * (s.span if plan[i] else int(0.25 * s.span))
        return [prompt + image, prompt + halves * s.span, prompt + image, prompt + image]
    if plan[i]:
        return [total] * 4
    if method.startswith("ml_cache"):
        return [sum(num_rows(t, 0.9) for t in s.rows)] * 4
    return [halves * group(plan, s.counts, i) if method == "recap" else 0] * 4


@pytest.mark.parametrize("method", METHODS)
def test_rows_through_layers_and_head_are_those_of_the_formula(metered, sizes, method):
    reading, plan = metered(method)
    assert reading.full_steps == sum(plan)
    for i, found in enumerate(reading.rows):
        wanted = [sizes.depth * n for n in layer_rows(method, plan, sizes, i)]
        if method == "teacache_first_block" and not plan[i]:
            wanted = [sum(sizes.rows)] * 4  # to decide; at full steps that block is not run again
        head = sizes.masked[i]
        if method == "recap" and not plan[i]:
            head = sizes.counts[i]
        if method.startswith("ml_cache") and not plan[i]:
            head += sum(num_rows(t, 0.9) for t in sizes.rows) + plan[i - 1] * sum(sizes.rows)
        assert found == dict(zip((*PARTS, "head"), [*wanted, head], strict=True)), i


def expected_bytes(method, plan, s):
    """Bytes between steps at their most: float64 values, int64 numbers of rows."""
    total, halves, boundary = sum(s.rows), len(s.rows), 8 * sum(s.rows) * s.channels
    if method == "vanilla":
        return 0
    if method.startswith("ml_cache"):
        return (2 * s.depth + 1) * boundary + 8 * total
    if method == "recap":
        largest = max(group(plan, s.counts, i) for i in range(N))
        ranked = (halves + 1) * largest  # rows of every sequence, positions
        return (2 * s.depth + 1) * boundary + 8 * (ranked + halves * s.span)
    if method == "dllm_cache":
        return 4 * s.depth * boundary + 8 * s.depth * total + 8 * halves * s.span + 8 * total
    orders = {"taylorseer": 1, "taylorseer_module": 1, "hicache": 2, "newton": 2, "l2p": 2, "foca": 1}
    order = orders.get(re.sub("_(uniform|placed|table)$", "", method), 0)
    kept = min(order + 1, sum(plan))
    if method == "taylorseer_module":
        return 2 * s.depth * kept * boundary
    if method in ("teacache", "teacache_first_block", "shortcut_adaptive"):
        return 2 * boundary + 8  # residual or features, the indicator, and the sum
    return kept * boundary


@pytest.mark.parametrize("method", METHODS)
def test_bytes_held_between_steps_are_those_of_the_formula(metered, sizes, method):
    reading, plan = metered(method)
    assert reading.cached == expected_bytes(method, plan, sizes)


@pytest.mark.parametrize("method", ["reuse", "taylorseer", "newton", "hicache", "foca", "l2p"])
def test_forecasts_of_the_boundary_cost_the_head_alone(family, metered, sizes, method):
    reading, _ = metered(method)
    head = 2 * sizes.channels * family.base.spec.vocab_size
    cheap = [i for i, rows in enumerate(reading.rows) if not rows["k"]]
    assert len(cheap) >= 3
    assert [reading.flops[i] for i in cheap] == [head * sizes.masked[i] for i in cheap]


# --- at Lumina-DiMOO's proportions: c channels, 3 c in the feed-forward, c rows ---

C, TOKENS, DEPTH = 128, 118, 8  # 8 layers and c / 2 codes, which are to each other as 32 and 2 c


def proportioned_to(depth):
    """One sequence of 118 tokens in a row, a newline, four markers and five words: 128 rows."""
    codes = depth * C // 16
    base = text_base(
        dtype="float32",
        transformer=LLaDAConfig(C, 4, depth, 3 * C, 36 + codes, 10000.0, 1e-5),
        vocab_size=codes,
        height=4,
        width=4 * TOKENS,
        system="",
    )
    sampling = Sampling(4, 2, CosineFloor(), InverseCDF(), Confidence(1.0, "constant"))
    return Family("dimoo", base, ["a"], sampling, None)


@pytest.fixture(scope="module")
def proportioned():
    return proportioned_to(DEPTH)


def layers_flops(rows, values=None):
    """Of all layers on some rows of 128, the values on others if given; multiply and add count two."""
    values = rows if values is None else values
    return DEPTH * (2 * rows * 3 * C * C + 2 * values * C * C + 2 * rows * 9 * C * C + 4 * rows * C * C)


def head_flops(rows):
    return 2 * rows * C * DEPTH * C // 16


FULL = layers_flops(C)
COUNTS = CosineFloor().counts(TOKENS, 4)
MASKED = [sum(COUNTS[i:]) for i in range(4)]


def shares(family, accelerator, num_steps=4):
    """FLOPs of every step over those of a full one's layers and head."""
    changed = dataclasses.replace(family, sampling=dataclasses.replace(family.sampling, num_steps=num_steps))
    flops = meter(changed, accelerator).flops
    return [n / flops[0] for n in flops], flops


def test_vanilla_is_its_layers_and_a_head_on_masked_rows(proportioned):
    _, flops = shares(proportioned, Accelerator(Always()))
    assert flops == [FULL + head_flops(m) for m in MASKED]


def test_ml_cache_computes_a_tenth(proportioned):
    found, flops = shares(proportioned, proportioned.accelerator("ml_cache_w0"))
    rows = num_rows(C, 0.9)
    assert rows == 13
    assert flops[2] == layers_flops(rows) + head_flops(MASKED[2] + rows)
    assert flops[1] == layers_flops(rows) + head_flops(MASKED[1] + rows + C)
    assert found[1:] == pytest.approx([0.10] * 3, abs=0.012)


def test_recaps_groups_are_an_eighth_on_average(proportioned):
    found, flops = shares(proportioned, proportioned.accelerator("recap", num_full_steps=8), num_steps=16)
    counts = CosineFloor().counts(TOKENS, 16)
    for i in range(1, 16, 2):
        assert flops[i] == layers_flops(counts[i - 1] + counts[i]) + head_flops(counts[i])
    mean = sum(found[1::2]) / 8
    assert mean * C / TOKENS == pytest.approx(0.125, abs=0.001)  # of the image's rows, nearly all there are
    assert mean == pytest.approx(0.125, abs=0.011)


def test_dllm_cache_computes_a_third(proportioned):
    """Released code runs the head of the whole vocabulary on all rows, 6.4% of a full step, on cheap steps too."""
    found, flops = shares(proportioned, proportioned.accelerator("dllm_cache", **{"policy.interval": 4}))
    chosen = int(0.25 * TOKENS)
    assert flops[1] == layers_flops(chosen, TOKENS) + head_flops(MASKED[1])
    head = 2 * C * C * 33 * C * DEPTH // 32
    assert head / (FULL + head) == pytest.approx(0.064, abs=0.001)
    released = (layers_flops(chosen, TOKENS) + head) / (FULL + head)
    assert released == pytest.approx(0.34, abs=0.025)  # the image has 92% of the rows here, 98% there
    assert found[1:] == pytest.approx([0.28] * 3, abs=0.01)


def test_a_shortcut_step_is_a_thirtieth():
    with torch.random.fork_rng(devices=[]):
        network = DiMOOShortcut(C, num_heads=4, mlp_channels=3 * C, rope_theta=1e4)
    found, _ = shares(proportioned_to(32), Accelerator(Table([0, 3]), Shortcut(module=network)))
    assert found[1:3] == pytest.approx([0.03] * 2, abs=0.003)


@pytest.mark.parametrize("method", ["taylorseer", "taylorseer_module", "teacache", "reuse"])
def test_steps_without_a_network_cost_the_head_alone(proportioned, method):
    known = proportioned.accelerator(
        method, num_full_steps=2, **({"policy.calibration": None} if "tea" in method else {})
    )
    found, flops = shares(proportioned, Accelerator(Table([0, 3]), known.predictor))
    assert flops[1:3] == [head_flops(m) for m in MASKED[1:3]]
    assert max(found[1:3]) < 0.005


# --- plans: Table 2 of the paper, one H200, from its full step of 0.361 s and one cheap step a method ---

# N, B, accelerator and its settings; the latency and its source: "table" as in docs/originals/dimoo.md, Cost; and
# conf/experiment/dimoo_shortcut.yaml, "speed-up" and "fit" by docs/originals/methods.md, Costs.
FULL_SECONDS = 0.361
TABLE_2 = [
    ("vanilla", {}, 64, 64, 23.10, "table"),
    ("vanilla", {}, 32, 32, 11.60, "table"),
    ("vanilla", {}, 16, 16, 5.77, "table"),
    ("shortcut", {}, 64, 14, 5.76, "table"),
    ("shortcut", {}, 64, 11, 4.70, "table"),
    ("shortcut", {}, 64, 9, 3.99, "table"),
    ("ml_cache_w01", {}, 64, 18, 10.40, "table"),
    ("ml_cache_w0", {}, 64, 13, 9.10, "table"),
    ("recap", {}, 48, 8, 23.10 / 3.3, "speed-up"),
    ("recap", {}, 32, 8, FULL_SECONDS * (8 + 24 * 0.292), "fit"),
    ("dllm_cache", {}, 64, 13, 23.10 / 1.47, "speed-up"),
    ("dllm_cache", {"policy.interval": 16}, 64, 4, FULL_SECONDS * (4 + 60 * 0.594), "fit"),
    ("taylorseer", {}, 64, 18, 23.10 / 2.65, "speed-up"),
    ("taylorseer", {"policy.interval": 8}, 64, 10, FULL_SECONDS * (10 + 54 * 0.122), "fit"),
]
# FFE of a cheap step, measured: one value for all rows of a method, the mean of those of section 0.
CHEAP = {"vanilla": 0.0, "shortcut": 0.038, "ml_cache": 0.237, "recap": 0.29, "dllm_cache": 0.595, "taylorseer": 0.1275}


@pytest.mark.parametrize(("method", "changes", "num_steps", "full", "seconds", "source"), TABLE_2)
def test_plans_give_the_latencies_of_table_2(maskgit, method, changes, num_steps, full, seconds, source):
    policy = maskgit.accelerator(method, num_full_steps=full, **changes).policy
    plan = policy.plan(num_steps)
    assert sum(plan) == full
    cheap = CHEAP[method.removesuffix("_w01").removesuffix("_w0")] * FULL_SECONDS
    assert planned_seconds(sum(plan), num_steps, FULL_SECONDS, cheap) == pytest.approx(seconds, rel=0.03)
