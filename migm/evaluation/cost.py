"""What generation costs: seconds and memory by named protocols, FLOPs by counter, FFE, and plans before anything runs.

Protocols of time, each of the whole sampling loop and with the device synchronised before and after:
- `batch{b}_amortised`: a batch of b images, divided by b (Table 1 of the paper: b = 128);
- `batch1_wall`: what one waits for a single image, a new one each time (Table 2).
Decoding is excluded; with `_decode` after the name it is included. After a warm-up round the points
take turns, and the median over the rounds counts.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import AdaptivePolicy, Always
from migm.bases.base import Base
from migm.bases.inputs import InputSource
from migm.config.fitting import fitted
from migm.evaluation.memory import peak_bytes
from migm.evaluation.meter import CPU_ATTENTION, Reading, read_meter
from migm.evaluation.results import point_label
from migm.runtime.kinds import Latency
from migm.sampling.loop import Sampling, generate_images

ADAPTIVE_IMAGES = 20  # that the cost of a policy is averaged over which decides for each image


@dataclass(frozen=True)
class Point:
    """One configuration to measure."""

    sampling: Sampling
    accelerator: Accelerator
    settings: str = ""  # hash of the accelerator's configuration
    variant: str = ""  # the settings that tell it from other points of the same accelerator

    @property
    def label(self) -> str:
        return point_label(self.accelerator.name, self.sampling.num_steps, self.full_steps, self.variant)

    @property
    def full_steps(self) -> int:
        """B; 0 where it is decided while sampling."""
        policy = self.accelerator.policy
        return 0 if isinstance(policy, AdaptivePolicy) else sum(policy.plan(self.sampling.num_steps))


def interleaved(
    jobs: Sequence[Callable[[], object]], repeats: int, device: torch.device, bar: Progress | None = None
) -> list[float]:
    """Median seconds of each job; one warm-up round, then `repeats` rounds in which the jobs take turns."""
    task = bar.add_task("time", total=(repeats + 1) * len(jobs)) if bar else None
    seconds: list[list[float]] = [[] for _ in jobs]
    for round_ in range(repeats + 1):
        for job, taken in zip(jobs, seconds, strict=True):
            synchronise(device)
            start = time.perf_counter()
            job()
            synchronise(device)
            if round_:
                taken.append(time.perf_counter() - start)
            if bar and task is not None:
                bar.advance(task)
    return [statistics.median(taken) for taken in seconds]


@dataclass(frozen=True)
class Protocol:
    """How time and memory of a point are taken, by its name (see the module)."""

    name: str
    batch: int
    wall: bool  # a new image each time
    decode: bool

    @classmethod
    def named(cls, name: str) -> "Protocol":
        """The protocol of a name; UserError for others."""
        batch, what, *decode = fitted("latency", name, Latency).split("_")
        return cls(name, int(batch.removeprefix("batch")), what == "wall", bool(decode))

    def job(self, base: Base, point: Point, source: InputSource) -> Callable[[], Tensor]:
        """What is timed: returns tokens (b, l), or images (b, 3, h, w) where decoding is included."""
        first = itertools.count() if self.wall else itertools.repeat(0)

        def run() -> Tensor:
            images = torch.arange(self.batch) + next(first)
            sampled = {"sampling": point.sampling, "accelerator": point.accelerator}
            tokens = generate_images(base, source(images), images, seed=0, **sampled)
            return base.decode(tokens) if self.decode else tokens

        return run


def latency(
    base: Base,
    points: Sequence[Point],
    source: InputSource,
    protocol: Protocol,
    repeats: int,
    bar: Progress | None = None,
) -> list[float]:
    """Seconds per image of every point."""
    jobs = [protocol.job(base, point, source) for point in points]
    return [seconds / protocol.batch for seconds in interleaved(jobs, repeats, base.device, bar)]


def peaks(
    base: Base, points: Sequence[Point], source: InputSource, protocol: Protocol, bar: Progress | None = None
) -> list[int]:
    """Most bytes that every point holds at once while it generates a batch, weights excluded."""
    task = bar.add_task("memory", total=len(points)) if bar else None
    found = []
    for point in points:
        found.append(peak_bytes(protocol.job(base, point, source), base.device))
        if bar and task is not None:
            bar.advance(task)
    return found


def flops(base: Base, point: Point, inputs: InputSource) -> int:
    """Floating point operations of one image: base, predictor and head; multiply and add count two."""
    return sum(read_meter(base, point.sampling, point.accelerator, inputs, 1).flops)


def counted(job: Callable[[], object]) -> int:
    """Floating point operations of a call; multiply and add count two."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        job()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of one large square matrix product: what the device can reach in this precision."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / interleaved([lambda: a @ a], 5, device)[0]


@dataclass(frozen=True)
class Work:
    """What a point computes for an image. FFE is in units of one vanilla step of the same N, both guidance halves."""

    ffe: float
    ffe_steps: list[float]
    full_steps: float
    rows: dict[str, float]  # through the parts of all blocks, and the head
    cached: float  # bytes held between steps


def work(base: Base, points: Sequence[Point], inputs: InputSource, bar: Progress | None = None) -> list[Work]:
    """FLOPs over FLOPs of vanilla sampling, row counts and memory of every point."""
    task = bar.add_task("count FLOPs", total=len(points)) if bar else None
    vanilla: dict[int, int] = {}

    def read(point: Point) -> Reading:
        images = 1 if point.full_steps else ADAPTIVE_IMAGES
        return read_meter(base, point.sampling, point.accelerator, inputs, images)

    found = []
    for point in points:
        n = point.sampling.num_steps
        if n not in vanilla:
            vanilla[n] = sum(read(Point(point.sampling, Accelerator(Always()))).flops)
        reading = read(point)
        steps = [n * flops / reading.images / vanilla[n] for flops in reading.flops]
        ffe = n * sum(reading.flops) / reading.images / vanilla[n]
        rows = {part: sum(step[part] for step in reading.rows) / reading.images for part in reading.rows[0]}
        found.append(Work(ffe, steps, reading.full_steps, rows, reading.cached / reading.images))
        if bar and task is not None:
            bar.advance(task)
    return found


def planned_seconds(full_steps: float, num_steps: int, full: float, cheap: float) -> float:
    """Seconds of a run from those of its full and of its cheap steps (docs/originals/methods.md, Costs)."""
    return full_steps * full + (num_steps - full_steps) * cheap


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
