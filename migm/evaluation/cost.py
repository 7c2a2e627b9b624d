"""Measure the cost of generation: seconds and memory by named protocols, FLOPs by a counter, and FFE.

Each protocol times the whole sampling loop, with the device synchronised before and after:
- `batch{b}_amortised`: a batch of b images, divided by b (Table 1 of the paper: b = 128);
- `batch1_wall`: the waiting time for a single image, a new image each time (Table 2).
Decoding is excluded, or included with `_decode` after the name. After a warm-up round the points
take turns; the result is the median over the rounds.
"""

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from migm.bases.inputs import InputSource
from migm.config.fitting import fitted
from migm.evaluation.memory import peak_bytes
from migm.evaluation.meter import CPU_ATTENTION, read_meter
from migm.runtime.kinds import Latency
from migm.sampling.capture import MOST_RUNS
from migm.sampling.sampler import Sampler, vanilla

CHEAP = 0.1  # a guess of a cheap step's cost in full steps
MOST_REPEATED = 10  # calls of one turn that compile
ADAPTIVE_IMAGES = 20  # images to average over where the policy decides per image which steps are full


def interleaved(
    jobs: Sequence[Callable[[], object]],
    repeats: int,
    device: torch.device,
    bar: Progress | None = None,
    warm_up: int = 1,
) -> list[float]:
    """Return median seconds of each job: `warm_up` rounds, then `repeats` rounds; in each the jobs take turns."""
    task = bar.add_task("time", total=(repeats + warm_up) * len(jobs)) if bar else None
    seconds: list[list[float]] = [[] for _ in jobs]
    for round_ in range(repeats + warm_up):
        for job, taken in zip(jobs, seconds, strict=True):
            seconds_taken = settled_seconds(job, device)
            if round_ >= warm_up:
                taken.append(seconds_taken)
            if bar and task is not None:
                bar.advance(task)
    return [statistics.median(taken) for taken in seconds]


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return seconds of one call, with the device idle before and after."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def settled_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return seconds of a call in which nothing was compiled; calls that compile are repeated, up to MOST_REPEATED."""
    for _ in range(MOST_REPEATED):
        before = num_compiled()
        seconds = seconds_of(call, device)
        if num_compiled() == before:
            return seconds
    raise RuntimeError(f"each of {MOST_REPEATED} calls compiled something anew: its time would be that of compiling")


def num_compiled() -> int:
    """Return how many graphs torch has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0


@dataclass(frozen=True)
class LatencyProtocol:
    """A protocol for time and memory of a point, parsed from its name (see the module)."""

    name: str
    batch: int
    wall: bool  # a new image each time
    decode: bool

    @classmethod
    def named(cls, name: str) -> "LatencyProtocol":
        """Return the protocol called `name`; UserError for unknown names."""
        batch, kind, *decode = fitted("latency", name, Latency).split("_")
        return cls(name, int(batch.removeprefix("batch")), kind == "wall", bool(decode))

    def job(self, sampler: Sampler, source: InputSource, images: int | None = None) -> Callable[[], Tensor]:
        """Return the call to time: it returns tokens (b, l), or images (b, 3, h, w) with decoding.

        With `images`, the new image of each call is one of so many, in turn.
        """
        new = itertools.cycle(range(images)) if images else itertools.count()
        first = new if self.wall else itertools.repeat(0)

        def run() -> Tensor:
            numbers = torch.arange(self.batch) + next(first)
            tokens = sampler.tokens(source(numbers), sampler.noise(0, numbers))
            return sampler.base.decode(tokens) if self.decode else tokens

        return run


def latency(
    samplers: Sequence[Sampler],
    source: InputSource,
    protocol: LatencyProtocol,
    repeats: int,
    bar: Progress | None = None,
) -> list[float]:
    """Return seconds per image of every sampler, without the runs until what is replayed has been captured."""
    replayed = max(map(warm_ups, samplers), default=1) > 1
    # Prompts of other lengths are other runs to capture, so that the timed ones have to be those of the warm-up.
    images = min(repeats, MOST_RUNS) if replayed and protocol.wall else None
    jobs = [protocol.job(sampler, source, images) for sampler in samplers]
    device = samplers[0].base.device if samplers else torch.device("cpu")
    warm_up = (1 + replayed) * (images or 1)
    return [seconds / protocol.batch for seconds in interleaved(jobs, repeats, device, bar, warm_up)]


def warm_ups(sampler: Sampler) -> int:
    """Return after how many runs of one shape later ones are alike: a run to be replayed is captured at the second."""
    return 2 if sampler.replays else 1


def peaks(
    samplers: Sequence[Sampler], source: InputSource, protocol: LatencyProtocol, bar: Progress | None = None
) -> list[int]:
    """Return the most bytes that each sampler holds at once while it generates a batch, without weights.

    A replay allocates nothing: its run is measured as it is captured, and holds as much as long as it is kept.
    """
    tracked = bar.track(samplers, description="memory") if bar else samplers
    return [peak_bytes(protocol.job(uncaptured(sampler), source), sampler.base.device) for sampler in tracked]


def uncaptured(sampler: Sampler) -> Sampler:
    """Return the sampler with runs that are not captured."""
    return sampler.in_runtime(replace(sampler.runtime, cuda_graphs=False))


def flops(sampler: Sampler, inputs: InputSource) -> int:
    """Return FLOPs of one image by base, predictor and head; a multiplication and an addition count 2."""
    return sum(read_meter(sampler, inputs, 1).flops)


def counted(job: Callable[[], object]) -> int:
    """Return FLOPs of a call; a multiplication and an addition count 2."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        job()
    return counter.get_total_flops()


@functools.cache  # once a process
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP per second of one large square matrix product, the device's practical limit in `dtype`."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / interleaved([lambda: a @ a], 5, device)[0]


@dataclass(frozen=True)
class Cost:
    """Cost of an image. FFE is in units of one vanilla step with the same N, both guidance halves."""

    ffe: float
    ffe_steps: list[float]
    full_steps: float
    rows: dict[str, float]  # rows through each part of all blocks, and through the head
    cached: float  # bytes held between steps
    flops: float  # a multiplication and an addition count 2


def costs(samplers: Sequence[Sampler], inputs: InputSource, bar: Progress | None = None) -> list[Cost]:
    """Count FLOPs relative to vanilla sampling, rows and memory of every sampler."""
    vanilla_flops: dict[int, int] = {}

    def cost(sampler: Sampler) -> Cost:
        n = sampler.num_steps
        if n not in vanilla_flops:
            vanilla_flops[n] = flops(vanilla(sampler), inputs)
        reading = read_meter(sampler, inputs, 1 if sampler.num_full_steps else ADAPTIVE_IMAGES)
        steps = [n * step / reading.images / vanilla_flops[n] for step in reading.flops]
        total = sum(reading.flops) / reading.images
        rows = {part: sum(step[part] for step in reading.rows) / reading.images for part in reading.rows[0]}
        return Cost(
            n * total / vanilla_flops[n], steps, reading.full_steps, rows, reading.cached / reading.images, total
        )

    return [cost(sampler) for sampler in (bar.track(samplers, description="count FLOPs") if bar else samplers)]


def effort(sampler: Sampler) -> float:
    """Return about the cost of an image in full steps before anything is counted, to tell what is left."""
    return planned_seconds(sampler.num_full_steps or sampler.num_steps, sampler.num_steps, 1.0, CHEAP)


def planned_seconds(full_steps: float, num_steps: int, full: float, cheap: float) -> float:
    """Return seconds of a run with `full` and `cheap` seconds a step (docs/originals/methods.md, Costs)."""
    return full_steps * full + (num_steps - full_steps) * cheap


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
