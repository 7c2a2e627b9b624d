"""Time, FLOPs and memory of steps and whole runs, variants in turns, and the floor that FLOPs set."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from migm.benchmarks.ledger import Ledger, Row
from migm.benchmarks.memory import memory_jobs
from migm.benchmarks.profile import profiled
from migm.benchmarks.runs import Costs, cost_of, fewest, gain, is_vanilla, new_length_row, run_job, waiting
from migm.benchmarks.steps import STEPS, step_flops, step_jobs
from migm.benchmarks.timing import Budget, Job, Timed, in_turns
from migm.benchmarks.variants import Variant
from migm.evaluation.cost import matmul_rate
from migm.runtime.console import Plain
from migm.runtime.progress import progress

Key = tuple[str, str]  # a variant and a part
PROFILED = ("full", "cheap", "tail")  # steps


@dataclass
class Bench:
    """The measurements of one command. Every method measures one kind of rows for a batch, of all variants in turns.

    Rows that the ledger knows are not measured again; what would begin after the budget is left out and named.
    """

    variants: Sequence[Variant]
    ledger: Ledger
    budget: Budget
    repeats: int
    new_lengths: int
    wanted: int = 1  # the batch size that was asked for
    ran: int = 0  # samplers that have run in this process
    costs: Costs = field(default_factory=dict)
    rates: dict[torch.dtype, float] = field(default_factory=dict)

    @torch.inference_mode()
    def measure(self, b: int) -> None:
        """Measure batches of b images. Runs come first, so that the first one is the first in this process."""
        self.measure_runs(b)
        self.measure_steps(b)
        self.measure_new_lengths(b)
        self.measure_memory(b)

    def measure_runs(self, b: int) -> None:
        """Time whole runs; vanilla ones are timed again beside any that is missing, since it is compared to them."""
        points = {(v.name, s.label): (v, s) for v in self.variants for s in v.samplers}
        about = self._lacking("run", {key: v for key, (v, _) in points.items()}, b)
        if not about:
            return
        inputs = {v.name: v.source(torch.arange(b)) for v in self.variants}
        chosen = {key: (v, s) for key, (v, s) in points.items() if key in about or is_vanilla(s)}
        timed = self._timed("runs", {key: run_job(s, inputs[v.name]) for key, (v, s) in chosen.items()}, b)
        for key, each in timed.items():
            variant, sampler = points[key]
            beside = {
                s.num_steps: timed[v.name, s.label]
                for v, s in chosen.values()
                if v is variant and is_vanilla(s) and (v.name, s.label) in timed
            }
            if key in about:
                cost = cost_of(sampler, variant, self.costs)
                row = self._row(variant, b, cost.flops, each) | gain(sampler, cost, each, beside)
                self.ledger.add(about[key], row | waiting(each, self.ran))
            self.ran += 1

    def measure_steps(self, b: int) -> None:
        """Time the parts of a step; the full step is timed again beside any that is missing."""
        parts = {(v.name, part): v for v in self.variants for part in STEPS}
        about = self._lacking("step", parts, b)
        if not about or self._over(f"steps of batch {b}"):
            return
        jobs = {v.name: step_jobs(v.vanilla, v.predictor, v.source(torch.arange(b))) for v in self.variants}
        chosen = {key: Job(jobs[key[0]][key[1]]) for key in parts if key in about or key[1] == "full"}
        timed = self._timed("steps", chosen, b)
        work: dict[int, Mapping[str, int]] = {}
        for key in [key for key in timed if key in about]:
            variant = parts[key]
            if id(variant.base) not in work:
                work[id(variant.base)] = step_flops(variant.vanilla, variant.predictor, variant.source(torch.arange(1)))
            row = self._row(variant, b, work[id(variant.base)][key[1]], timed[key])
            full = timed.get((key[0], "full"))
            self.ledger.add(about[key], row | ({"of_full_step": 1 / timed[key].times(full)} if full else {}))

    def measure_new_lengths(self, b: int) -> None:
        """Time first runs with prompts of new lengths, by the sampler of each variant with the fewest full steps."""
        for i, variant in enumerate(self.variants):
            sampler = fewest(variant.samplers)
            key = variant.name, sampler.label
            inputs = variant.source(torch.arange(b))
            if isinstance(inputs, torch.Tensor) or not self.new_lengths:
                return
            about = self._lacking("new_length", {key: variant}, b)
            if about and not self._over(f"new prompt lengths of {' '.join(key)}, batch {b}"):
                row = new_length_row(variant, sampler, inputs, i, len(self.variants), self.new_lengths)
                self.ledger.add(about[key], row)

    def measure_memory(self, b: int) -> None:
        """Measure the peaks of the full step and of whole runs."""
        for variant in self.variants:
            parts = ["full", *(sampler.label for sampler in variant.samplers)]
            about = self._lacking("memory", {(variant.name, part): variant for part in parts}, b)
            jobs = memory_jobs(variant, b) if about and not self.budget.over() else {}
            for key, row in about.items():
                if not self._over(f"memory of {' '.join(key)}, batch {b}"):
                    self.ledger.add(row, jobs[key[1]]())

    @torch.inference_mode()
    def profile(self, b: int) -> None:
        """Profile the parts of a step, and the run with the fewest full steps."""
        for variant in self.variants:
            sampler = fewest(variant.samplers)
            parts = {(variant.name, part): variant for part in (*PROFILED, sampler.label)}
            about = self._lacking("profile", parts, b)
            if not about or self._over(f"profile of {variant.name}, batch {b}"):
                continue
            inputs = variant.source(torch.arange(b))
            steps = step_jobs(variant.vanilla, variant.predictor, inputs)
            jobs = {part: Job(steps[part]) for part in PROFILED} | {sampler.label: run_job(sampler, inputs)}
            for key, row in about.items():
                if not self._over(f"profile of {' '.join(key)}, batch {b}"):
                    self.ledger.add(row, profiled(jobs[key[1]], variant.base.device))

    def _lacking(self, kind: str, parts: Mapping[Key, Variant], b: int) -> dict[Key, Row]:
        """Return what is known beforehand of those rows that have to be measured."""
        about = {key: self.ledger.about(v, kind, key[1], b, self.wanted) for key, v in parts.items()}
        return {key: row for key, row in about.items() if self.ledger.lacks(row)}

    def _timed(self, unit: str, jobs: Mapping[Key, Job], b: int) -> dict[Key, Timed]:
        device = self.variants[0].base.device
        with progress(Plain(), unit) as bar:
            timed = in_turns(jobs, self.repeats, device, self.budget, bar)
        for key in jobs.keys() - timed.keys():
            self._left_out(f"{' '.join(key)}, batch {b}")
        return timed

    def _row(self, variant: Variant, b: int, work: float, timed: Timed) -> Row:
        """Return milliseconds and FLOPs of an image, and the floor that FLOPs alone would take.

        The floor is at the rate of one large matrix product in the base's precision, measured in the same process.
        """
        base = variant.base
        if base.dtype not in self.rates:
            self.rates[base.dtype] = matmul_rate(base.device, base.dtype)
        ms, floor = 1e3 * timed.seconds / b, 1e3 * work / self.rates[base.dtype]
        row = {"ms_per_image": ms, "gflop": work / 1e9, "floor_ms": floor, "of_floor": floor / ms}
        return {**row, "matmul_tflop_per_s": self.rates[base.dtype] / 1e12, "repeats": len(timed.rounds)}

    def _over(self, what: str) -> bool:
        if self.budget.over():
            self._left_out(what)
        return self.budget.over()

    def _left_out(self, what: str) -> None:
        Plain().print(f"left out, since max_seconds is over: {what}", style="yellow")


def fitting(measured: Callable[[int], None], batch_size: int) -> int:
    """Return the largest batch size that fits the device's memory, halving from `batch_size`; it is measured."""
    while True:
        try:
            measured(batch_size)
            return batch_size
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # Outside of `except` the error is gone, and with it the frames that held the tensors.
        gc.collect()
        torch.cuda.empty_cache()
        Plain().print(f"batch {batch_size} does not fit the device's memory: trying {batch_size // 2}")
        batch_size //= 2
