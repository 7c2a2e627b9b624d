"""Tune the samplers of a base: plan for the time, search, verify on other seeds, write the front."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from migm.bases.inputs import review
from migm.config.building import build
from migm.config.candidates import CandidateParts
from migm.config.fronts import read_front
from migm.config.roots import TuneConfig
from migm.evaluation.cost import LatencyProtocol
from migm.evaluation.evalset import EvalSet
from migm.evaluation.results import Results
from migm.evaluation.study import Study
from migm.metrics.metric import result_name
from migm.reporting.tables import markdown
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.extras import refuse_missing
from migm.runtime.files import write_atomic
from migm.runtime.launch import launched
from migm.runtime.owned import own, refuse_foreign
from migm.runtime.progress import job
from migm.runtime.writing import writing
from migm.tuning.journal import Journal
from migm.tuning.outputs import draw, front_of, lines_of, table_of, write_all
from migm.tuning.rungs import Demand, Rates, Rungs, planned, verification
from migm.tuning.search import Goal, Search, Tried, quiet_optuna
from migm.tuning.space import Builder, Candidate, Space, methods_here, sampler_values
from migm.tuning.timing import measured, runnable
from migm.tuning.verify import REPEATS, Verified, choices, verified


def tune(parts: CandidateParts) -> None:
    """Search and verify within `budget` minutes, and write `front.json`; a second start goes on.

    Raises UserError before any work for values that cannot be, and where the time is too short for anything.
    """
    started, config = time.monotonic(), parts.config
    refuse(config)
    output = config.paths["output_dir"]
    folder = Path(output) / config.name
    if (folder / "front.json").exists():
        read_front(folder / "front.json", f"name={config.name}")  # only a front file is replaced
    with writing(folder / "tune", f"paths.output_dir={output}", folder=True):
        Tuning(parts, folder, started).run()


def refuse(config: TuneConfig) -> None:
    """Refuse what the keys alone show: a missing extra, several processes, seeds that verification has seen."""
    refuse_missing("optuna", wanted_by="migm.tune")
    if launched()[1] > 1:
        raise UserError(
            f"migm.tune runs as one process, not {launched()[1]}: times of candidates would disturb each other"
        )
    if len(config.seed_sets) != len(config.rungs):
        raise UserError(
            f"seed_sets={config.seed_sets} must be as many as rungs={config.rungs}: each has its own images"
        )
    for key, seeds in (("seed_sets", config.seed_sets), ("verify_seed_sets", config.verify_seed_sets)):
        if len(set(seeds)) < len(seeds):
            raise UserError(f"{key}={seeds} must differ")
    if seen := sorted(set(config.seed_sets) & set(config.verify_seed_sets)):
        raise UserError(
            f"verify_seed_sets={config.verify_seed_sets}: the search sees {seen} (seed_sets); choose others"
        )
    if config.rungs != sorted(config.rungs):
        raise UserError(f"rungs={config.rungs} must ascend")


class Tuning:
    """The parts of one tuning: what is searched, its files, its metrics."""

    def __init__(self, parts: CandidateParts, folder: Path, started: float):
        quiet_optuna()  # its import takes seconds, which no candidate should pay
        config = parts.config
        self.config, self.folder, self.own, self.console = config, folder, folder / "tune", Plain()
        self.key = f"paths.output_dir={folder.parent}"
        nodes = parts.metrics()
        self.base = build(config.base)  # first of all that is built, so that random weights are those of other commands
        self.metrics = list(map(build, nodes))
        self.metric = self.metrics[0]
        for images in (*config.rungs, config.verify_images):
            self._refuse_metrics(images)
        self.evalset = self._evalset(config.rungs[-1], config.seed_sets)
        review(self.base, self.evalset.inputs(torch.arange(2)), "evalset.inputs")
        self.builder = Builder(parts, self.base)
        values, lines = sampler_values(parts)
        methods, more = methods_here(self.builder, config)
        self.methods, unable, self.points = runnable(self.builder, methods, self.evalset)
        for line in (*lines, *more, *unable):
            self.console.print(line)
        first = (config.latency or [f"batch{self.evalset.batch_size}_amortised"])[0]
        self.values, self.protocol = values, LatencyProtocol.named(first)
        self.journal = Journal(self.own / "trials.jsonl", self._settings(), 60 * config.budget, started)
        refuse_foreign(self.own, "tuning", self.key)
        self.results = Results(self.own / "results.jsonl")
        self.lanes = [
            Goal(share, method)
            for share in config.shares
            for method in ([method.name for method in self.methods] if config.fair else [None])
        ]

    def run(self) -> None:
        """Make the plan or read it, search, verify, and write all files."""
        plan, rates, cheap = self._plan()
        methods = [replace(method, cheap=cheap.get(method.name, 1.0)) for method in self.methods]
        space = Space(methods, self.config, self.values, self.builder.num_steps)
        sign = -1 if self.metric.higher_is_better else 1
        search = Search(space, self.lanes, plan, rates, self._measure, self.journal, self.config, sign, self.console)
        with job({"search": plan.search_seconds, "evaluate": plan.verify_seconds}):
            finalists = search.run(self.config.finalists)
            if not finalists:
                raise UserError(
                    f"shares={self.config.shares}: nothing is as fast as any of them; raise them, or num_steps"
                )
            images = self._verify_images(plan, rates, search.pace, finalists)
            # After a search nothing may be refused any more.
            few = [m for m in self.metrics[1:] if images < m.min_images and not m.allow_small_n]
            self.metrics = [metric for metric in self.metrics if metric not in few]
            for metric in few:
                self.console.print(
                    f"{metric.metric_name} is left out: verification makes {images} images of a seed set"
                )
            evalset = self._evalset(images, self.config.verify_seed_sets)
            found = verified(self.builder, finalists, evalset, self.metrics, self.results, self.protocol.name)
        self._write(found, search.tried, images, plan)

    def _plan(self) -> tuple[Rungs, Rates, dict[str, float]]:
        """Return the plan, seconds and cheap steps' costs, measured once and kept in the journal; print the plan."""
        config, clock = self.config, self.journal.clock
        line = self.journal.one("plan")
        if line is None:
            counted = config.predict == "counted"
            rates, cheap = measured(
                self.builder, self.methods, self.points, self.evalset, self.metric, self.protocol, counted, self.console
            )
            plan = planned(self._wanted(len(self.lanes)), rates, clock.seconds, clock.spent)
            own(self.own, "tuning", self.key)
            self.journal.add("plan", plan=plan.as_json(), rates=asdict(rates), cheap=cheap)
        else:
            plan, rates, cheap = Rungs(**line["plan"]), Rates(**line["rates"]), line["cheap"]
            done = sum(1 for _ in self.journal.of("trial"))
            self.console.print(f"goes on after {done} measurements and {clock.spent / 60:.1f} minutes")
        self._say(plan, cheap)
        return plan, rates, cheap

    def _say(self, plan: Rungs, cheap: dict[str, float]) -> None:
        config, rungs = self.config, self.config.rungs[: len(plan.candidates)]
        counts = ", ".join(f"{c} of {n} images" for c, n in zip(plan.candidates, rungs, strict=True))
        lanes = f"{len(config.shares)} shares of vanilla's time"
        lanes += f" and {len(self.methods)} methods" if config.fair else ""
        self.console.print(
            f"plan for {config.budget:g} minutes: for each of {lanes} {counts} ({plan.search_seconds / 60:.1f} min), "
            f"then up to {config.finalists} beside vanilla by {plan.verify_images} images of each of "
            f"{len(config.verify_seed_sets)} other seed sets ({plan.verify_seconds / 60:.1f} min)"
        )
        costs = ", ".join(f"{name} {cost:.1%}" for name, cost in cheap.items())
        if costs:
            self.console.print(f"a cheap step takes of a full one ({config.predict}): {costs}")

    def _wanted(self, lanes: int) -> Demand:
        config = self.config
        shares = [lane.share for lane in self.lanes][:lanes]
        return Demand(
            shares,
            config.rungs,
            config.keep,
            config.finalists,
            config.verify_images,
            len(config.verify_seed_sets),
            REPEATS + 1,
            self.protocol.batch,
        )

    def _measure(self, candidate: Candidate, rung: int) -> float:
        """Return the search metric of a candidate on the rung's seed set."""
        images, seed_set = self.config.rungs[rung], self.config.seed_sets[rung]
        evalset = self._evalset(images, [seed_set])
        study = Study([self.builder.sampler(candidate)], evalset, [self.metric], self.results, previews=False)
        study.console = Plain(quiet=True)  # the search shows its own progress
        study.measure_quality()
        (record,) = (r for r in study.measured() if r["metric"] == result_name(self.metric, images))
        return record["value"]

    def _verify_images(self, plan: Rungs, rates: Rates, pace: float, finalists: dict[Goal, list[Tried]]) -> int:
        """Return the images of each seed set: as planned, or as many as there is still time for."""
        if line := self.journal.one("verify"):
            return line["images"]
        number = max(map(len, finalists.values()))
        wanted = replace(self._wanted(len(self.lanes)), finalists=number, shares=[lane.share for lane in finalists])
        fixed, an_image = verification(wanted, rates)
        fitting = int((self.journal.clock.left / pace - fixed) / an_image)
        images = max(min(plan.verify_images, fitting), min(self.config.rungs[0], plan.verify_images))
        self.journal.add("verify", images=images)
        return images

    def _write(self, found: list[Verified], tried: list[Tried], images: int, plan: Rungs) -> None:
        config, names = self.config, [result_name(metric, images) for metric in self.metrics]
        sign = -1 if self.metric.higher_is_better else 1
        chosen = choices(found, config.shares, names[0], sign)
        about = {
            "searched": f"{len(tried)} candidates on seed sets {config.seed_sets[: len(plan.candidates)]}",
            "budget_minutes": config.budget,
            "latency": self.protocol.name,
            "methods": [method.name for method in self.methods],
        }
        write_all(front_of(found, self.metric, names[0], images, self.builder.parts, about), self.folder, self.own)
        write_atomic(self.own / "table.md", markdown(*table_of(found, names)))
        draw(found, tried, chosen, self.metric, names[0], self.own / "front.png")
        for line in lines_of(chosen, found, names[0], tried):
            self.console.print(line)
        minutes = self.journal.clock.spent / 60
        self.console.print(
            f"{minutes:.1f} minutes; front in {self.folder / 'front.json'}, table and figure in {self.own}"
        )

    def _evalset(self, images: int, seed_sets: list[int]) -> EvalSet:
        return build({**self.config.evalset, "num_images": images, "seed_sets": list(seed_sets)})

    def _refuse_metrics(self, images: int) -> None:
        """Refuse metrics that need more images than the search or the verification makes."""
        result_name(self.metric, images)
        for metric in self.metrics:
            metric.refuse_incomplete()

    def _settings(self) -> dict[str, Any]:
        """Return what a later start has to share with this one to go on."""
        config, sampling = self.config, build(self.config.sampling)
        methods = {
            method.name: {
                "choices": {key: list(values) for key, values in method.choices.items()},
                "steps": list(method.steps),
                "weights": self.builder.sampler(Candidate(method.name, method.steps[0], 1)).accelerator.fingerprint(
                    self.base
                ),
            }
            for method in self.methods
        }
        keys = ("budget", "shares", "first", "warp", "sampler", "rungs", "keep", "seed_sets", "predict", "optimiser")
        keys += ("fair", "verify_seed_sets", "verify_images", "finalists", "seed", "latency")
        return {
            **{key: getattr(config, key) for key in keys},
            "base": self.base.fingerprint(),
            "sampling": f"{sampling.identity} N={sampling.num_steps}",
            "metrics": [f"{metric.metric_name} {metric.reference_hash}" for metric in self.metrics],
            "inputs": self.evalset.inputs.fingerprint(),
            "batch_size": self.evalset.batch_size,
            "methods": methods,
        }
