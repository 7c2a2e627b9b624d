"""Measure segment errors of an accelerator's predictor and choose its full steps by them (docs/placement.md)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.placed import FORMAT, content_of, write_placement
from migm.accelerators.placement import Total
from migm.accelerators.refresh import Always
from migm.analyses.placing_page import TITLES, draw, shown
from migm.analyses.plans import Plans
from migm.analyses.segment_table import SegmentTable, rounded
from migm.analyses.segments import SegmentWalk, memory_of, refuse_layers, segments
from migm.bases.inputs import InputSource
from migm.config.building import build
from migm.config.roots import PlaceConfig
from migm.runtime.console import Plain
from migm.runtime.device import DTypeName
from migm.runtime.errors import UserError
from migm.runtime.identity import identity
from migm.runtime.kinds import Count, Seed, Whole
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.sampling.sampler import Sampler, say_weights

ErrorName = Literal["kl_revealed", "kl_masked", "error"]


@dataclass(frozen=True)
class Placing:
    """The images to measure, and the plans to make of their errors.

    The images are numbered from `first_image` on in the run of `seed`. Of every B in `num_full_steps`, by default of
    all, and every number in `first` the file gets the plan with the least `total` of the `error`
    (`segments.SEGMENT_ERRORS`). At most `max_gap` cheap steps in a row are measured and planned. `dtypes` are further
    precisions of the base for which the plans hold.
    """

    inputs: InputSource
    output: str
    num_full_steps: list[Count] | None = None
    first: list[Count] = field(default_factory=lambda: [1])
    error: ErrorName = "kl_revealed"
    total: Total = "sum"
    max_gap: Count | None = None
    num_images: Count = 16
    batch_size: Count = 8
    first_image: Whole = 0
    seed: Seed = 0
    dtypes: list[DTypeName] = field(default_factory=list)

    @property
    def images(self) -> list[int]:
        return list(range(self.first_image, self.first_image + self.num_images))

    def gap(self, num_steps: int) -> int:
        """Return the most cheap steps in a row."""
        return min(self.max_gap or num_steps, num_steps - 1)

    def budgets(self, num_steps: int) -> list[int]:
        """Return the numbers of full steps to plan; UserError for what cannot be."""
        least = -(-num_steps // (self.gap(num_steps) + 1))
        known = list(range(least, num_steps + 1))
        for b in self.num_full_steps or ():
            if b not in known:
                because = f" with place.max_gap={self.max_gap}" if least > 1 else ""
                raise UserError(
                    f"place.num_full_steps={self.num_full_steps} must be from {least} to {num_steps}{because}"
                )
        for first in self.first:
            if first > max(self.num_full_steps or known):
                raise UserError(f"place.first={self.first} must be at most the largest place.num_full_steps")
        return sorted(set(self.num_full_steps or known))


@torch.inference_mode()
def run(config: PlaceConfig, placing: Placing) -> None:
    """Measure the images that the table lacks, choose full steps, write file and figure, and print what was chosen."""
    console, output, n = Plain(), Path(placing.output), config.sampling["num_steps"]
    name, predictor = config.accelerator["name"], config.accelerator.get("predictor")
    if predictor is None or n < 2:
        why = "runs the base at every step" if predictor is None else f"has no cheap step at sampling.num_steps={n}"
        raise UserError(f"accelerator={name} {why}: there is nothing to place")
    budgets = placing.budgets(n)
    refuse_other_file(output)
    accelerator = Accelerator(Always(), build(predictor), name)
    sampler = Sampler(build(config.base), build(config.sampling), accelerator, runtime=build(config.runtime))
    say_weights([sampler], console)
    some = torch.tensor(placing.images[:1])
    refuse_layers(sampler, sampler.start(placing.inputs(some), sampler.noise(placing.seed, some)).branches)
    about = facts(sampler, placing)
    table = SegmentTable(output.with_suffix(".jsonl"), about, f"place.output={output}")
    measure(sampler, placing, table)
    errors = table.errors(placing.images)
    plans = Plans(errors[placing.error], n, about["memory"], placing.gap(n), placing.total)
    rows = [row for first in sorted(set(placing.first)) for row in plans.rows(budgets, first)]
    means = {key: plans.by_history(rounded(values.mean(0))) for key, values in errors.items()}
    write_placement(
        output,
        {
            **about,
            "base": fingerprints(config, sampler, placing),
            "accelerator": name,
            **{key: getattr(placing, key) for key in ("first_image", "num_images", "error", "total")},
            "about": environment(sampler.base.device),
            "plans": rows,
            "errors": {key: {" ".join(map(str, h)): v for h, v in values.items()} for key, values in means.items()},
        },
    )
    figure = output.with_suffix(".png")
    draw(plans, rows, f"{name}, N = {n}: {TITLES[placing.error]}", figure)
    console.print(shown(rows, placing.first))
    console.print(f"{placing.num_images} images, {placing.error}, {placing.total}: {output}, {table.path} and {figure}")


def measure(sampler: Sampler, placing: Placing, table: SegmentTable) -> None:
    """Measure the images that the table lacks, batch by batch."""
    missing, n = table.missing(placing.images), sampler.num_steps
    memory, gap = table.about["memory"], placing.gap(n)
    # By rule `cutoff` images differ in the number of tokens that a step reveals.
    size = 1 if sampler.sampling.select.rule == "cutoff" else placing.batch_size
    with progress(Plain(), "predictions") as bar:
        task = bar.add_task("segment errors", total=len(missing) * len(segments(n, memory, gap)))
        for numbers in torch.tensor(missing).split(size) if missing else ():
            generation = sampler.start(placing.inputs(numbers), sampler.noise(placing.seed, numbers))
            walk = SegmentWalk(sampler, memory, gap, lambda done: bar.advance(task, done))
            for record in generation:
                walk.on_step(record)
            table.append(numbers.tolist(), walk.errors())


def facts(sampler: Sampler, placing: Placing) -> dict[str, Any]:
    """Return what segment errors depend on."""
    predictor = sampler.accelerator.predictor
    assert predictor is not None  # for the type checker: refused before
    return {
        "base": sampler.base.fingerprint(),
        "sampling": sampler.sampling.identity,
        "predictor": {"identity": identity(predictor), "fingerprint": sampler.accelerator.fingerprint(sampler.base)},
        "num_steps": sampler.num_steps,
        "memory": memory_of(predictor, sampler.base),
        "max_gap": placing.gap(sampler.num_steps),
        "inputs": placing.inputs.fingerprint(),
        "seed": placing.seed,
    }


def fingerprints(config: PlaceConfig, sampler: Sampler, placing: Placing) -> list[str]:
    """Return the fingerprints of the base, in its precision and in the further `dtypes`."""
    others = [build({**config.base, "dtype": dtype}).fingerprint() for dtype in placing.dtypes]
    return list(dict.fromkeys([sampler.base.fingerprint(), *others]))


def refuse_other_file(path: Path) -> None:
    """Raise a UserError if a file is there that `migm.place` did not write."""
    if path.exists() and content_of(path) is None:
        raise UserError(f"place.output={path} is there, and no {FORMAT} file; choose another, or delete it")
