"""Whole runs: their first and later images, new prompt lengths, and the speed-up that FFE promises."""

import math
import statistics
from collections.abc import Sequence

import torch

from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.base import Inputs
from migm.benchmarks.ledger import Row
from migm.benchmarks.timing import Job, Timed
from migm.benchmarks.variants import Variant
from migm.evaluation.cost import Cost, costs, seconds_of, warm_ups
from migm.sampling.sampler import Sampler

Costs = dict[tuple[int, str, str], Cost]  # of a base, by the sampler's label and accelerator


def run_job(sampler: Sampler, inputs: Inputs) -> Job:
    """Return a whole run without decoding, warmed up until later runs are like it."""
    numbers = torch.arange(len(inputs))
    return Job(lambda: sampler.tokens(inputs, sampler.noise(0, numbers)), warm_ups(sampler))


def cost_of(sampler: Sampler, variant: Variant, known: Costs) -> Cost:
    """Return FLOPs and FFE of a sampler's image, counted once for variants that differ in the runtime alone."""
    key = (id(sampler.base), sampler.label, sampler.accelerator.identity)
    if key not in known:
        known[key] = costs([sampler], variant.source)[0]
    return known[key]


def is_vanilla(sampler: Sampler) -> bool:
    return sampler.accelerator.predictor is None


def gain(sampler: Sampler, cost: Cost, timed: Timed, vanilla: dict[int, Timed]) -> Row:
    """Return FFE, the speed-up that it promises, the measured one, and their ratio.

    `vanilla` are the vanilla runs of this variant that took turns with this run, by N. Where none has the sampler's N,
    that with the nearest N is scaled, as `vanilla_from` says; without any there is no speed-up.
    """
    n = sampler.num_steps
    if is_vanilla(sampler):
        return {"ffe": cost.ffe}
    row: Row = {"ffe": cost.ffe, "ffe_speedup": n / cost.ffe}
    if not vanilla:
        return row
    nearest = min(vanilla, key=lambda steps: abs(math.log(steps / n)))
    speedup = timed.times(vanilla[nearest]) * n / nearest
    row["vanilla_from"] = f"vanilla {nearest}" + ("" if nearest == n else f" times {n / nearest:.3g}")
    return {**row, "speedup": speedup, "of_ffe": speedup / row["ffe_speedup"]}


def fewest(samplers: Sequence[Sampler]) -> Sampler:
    """Return the sampler with the fewest full steps, a shortcut before others; undecided ones count all steps."""
    learned = [s for s in samplers if isinstance(s.accelerator.predictor, Shortcut)]
    return min(learned or samplers, key=lambda sampler: sampler.num_full_steps or sampler.num_steps)


def waiting(timed: Timed, order: int) -> Row:
    """Return seconds of the first run, of the whole warm-up and of a later run.

    `runs_before` counts the samplers that ran before in this process: what they compiled is there already.
    """
    return {"first_s": timed.first, "warm_up_s": timed.warm_up, "later_s": timed.seconds, "runs_before": order}


def new_lengths(prompts: Sequence[str], share: int, shares: int, count: int) -> list[list[str]]:
    """Return the prompts in `count` other lengths, none of which another of the `shares` gets.

    They are shorter by up to half, or longer where there are not enough words.
    """
    words = [prompt.split() for prompt in prompts]
    longest, needed = max(map(len, words)), count * shares
    shortest = math.ceil(longest / 2)
    if longest - shortest >= needed:
        lengths = [shortest + i * (longest - shortest) // needed for i in range(needed)]
    else:
        lengths = [longest + 1 + i for i in range(needed)]
    return [[_of_length(each, length) for each in words] for length in lengths[share::shares]]


def _of_length(words: Sequence[str], length: int) -> str:
    return " ".join(words[i % len(words)] for i in range(length))


def new_length_row(
    variant: Variant, sampler: Sampler, inputs: Sequence[str], share: int, shares: int, count: int
) -> Row:
    """Return seconds of the first run with a prompt of a new length, the median of several, against a repeated run."""
    device = variant.base.device
    again = [run_job(sampler, inputs).call for _ in range(1 + count)]
    later = [seconds_of(call, device) for call in again][1:]
    found = new_lengths(inputs, share, shares, count)
    new = [seconds_of(run_job(sampler, prompts).call, device) for prompts in found]
    new_s, later_s = statistics.median(new), statistics.median(later)
    lengths = [max(len(prompt.split()) for prompt in prompts) for prompts in found]
    return {"later_s": later_s, "new_length_s": new_s, "of_later": new_s / later_s, "words": lengths, "all_s": new}
