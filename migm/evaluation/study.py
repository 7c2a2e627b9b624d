"""Measure many points: first costs side by side, then quality over the seed sets, one record per value."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from migm.bases.base import Base
from migm.bases.inputs import captioned, review
from migm.config.building import build
from migm.config.points import Chosen
from migm.config.roots import Common
from migm.evaluation.cost import LatencyProtocol, costs, effort, latency, peaks
from migm.evaluation.evalset import EvalSet
from migm.evaluation.memory import COUNTERS
from migm.evaluation.results import Results, file_name, identity, is_former
from migm.evaluation.unfinished import Part, Unfinished
from migm.metrics.metric import Batch, QualityMetric, result_name
from migm.runtime.console import Plain
from migm.runtime.distributed import first_console, from_first, processes, rank, to_first, wait
from migm.runtime.errors import UserError
from migm.runtime.kinds import CostKind
from migm.runtime.pictures import save_grid
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.sampling.sampler import Sampler, say_weights

PREVIEW = 20  # images of each point in its preview


class Study:
    """Fill `results` with missing measurements of the samplers; a second run continues where the first stopped.

    The processes of a run share the images of each point. Only rank 0 measures times, decides what is missing,
    and writes.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler],
        evalset: EvalSet,
        metrics: Sequence[QualityMetric],
        results: Results,
        repeats: int = 5,
        protocols: Sequence[str] = (),
        previews: bool = True,
    ):
        self.samplers, self.evalset, self.metrics, self.results = samplers, evalset, metrics, results
        self.base, self.repeats, self.evalset_hash = samplers[0].base, repeats, evalset.fingerprint()
        self.preview, self.console = results.path.parent / "images", first_console()
        self.previews = previews
        self.protocols = [LatencyProtocol.named(name) for name in protocols or [f"batch{evalset.batch_size}_amortised"]]
        for metric in metrics:
            metric.refuse_incomplete()  # fail here, and on too few images, before generating
            result_name(metric, evalset.num_images)
            metric.to(self.base.device)

    def run(self, cost: CostKind = True) -> None:
        """Measure everything that is missing; `cost` False leaves out time, FFE and memory.

        "counted" leaves out time and peaks of memory: what other work on the machine could change.
        """
        self.console = first_console()
        found = say_weights(self.samplers, self.console)
        if found != (first := from_first(found)):  # one process may see a new file before another does
            raise UserError(
                f"rank {rank()} found weights {', '.join(found)}, rank 0 {', '.join(first)}; start it again"
            )
        if cost and rank() == 0:
            if cost != "counted":
                self.measure_times()
            self.count_costs()
        wait()
        self.measure_quality()
        self.console.print(f"results in {self.results.path}")

    def measure_times(self, peaks: bool = True) -> None:
        """Measure time of all points by every protocol, and with `peaks` their memory."""
        run = time.strftime("%Y-%m-%dT%H:%M:%S")
        for protocol in self.protocols:
            self._measure_time(protocol, run)
            if peaks:
                self._measure_peaks(protocol)

    def count_costs(self) -> None:
        """Count FFE of all points, and the bytes of their caches."""
        equivalents = [self._record(s, "ffe", unit="full steps", higher_is_better=False) for s in self.samplers]
        memory = "cache_bytes_per_image"
        caches = [self._record(s, memory, unit="bytes", higher_is_better=False) for s in self.samplers]
        if all(self.results.has(record) for record in [*equivalents, *caches]):
            return
        with progress(self.console, "runs") as bar:
            done = costs(self.samplers, self.evalset.inputs, bar)
        for ffe, cache, cost in zip(equivalents, caches, done, strict=True):
            details = {"ffe_steps": [round(x, 4) for x in cost.ffe_steps], "rows": cost.rows}
            self._add({**ffe, "value": cost.ffe, "mean_full_steps": cost.full_steps, **details})
            self._add({**cache, "value": cost.cached})

    def _measure_time(self, protocol: LatencyProtocol, run: str) -> None:
        about = {"unit": "s", "higher_is_better": False, "n": protocol.batch}
        records = [self._record(s, f"seconds_per_image/{protocol.name}", **about) for s in self.samplers]
        if all(map(self.results.has, records)):
            return
        with progress(self.console, "runs", part=protocol.name) as bar:
            seconds = latency(self.samplers, self.evalset.inputs, protocol, self.repeats, bar)
        # One write: times compare only within a run, so a kill must not leave a part of the run.
        taken = zip(records, seconds, strict=True)
        self.results.extend([{**record, "value": s, "repeats": self.repeats, "run": run} for record, s in taken])

    def _measure_peaks(self, protocol: LatencyProtocol) -> None:
        counter = COUNTERS[self.base.device.type]
        about = {"unit": "bytes", "higher_is_better": False, "n": protocol.batch, "counter": counter}
        records = [(s, self._record(s, f"peak_bytes/{protocol.name}", **about)) for s in self.samplers]
        missing = [(s, record) for s, record in records if not self.results.has(record)]
        if not missing:
            return
        with progress(self.console, "runs") as bar:
            most = peaks([s for s, _ in missing], self.evalset.inputs, protocol, bar)
        for (_, record), value in zip(missing, most, strict=True):
            self.results.append({**record, "value": float(value)})

    def measured(self) -> list[dict[str, Any]]:
        """Return the records of this study's points, without other records in the file; the latest of duplicates."""
        costs = [f"{kind}/{p.name}" for p in self.protocols for kind in ("seconds_per_image", "peak_bytes")]
        identities = {
            identity(record)
            for sampler in self.samplers
            for record in (
                *(self._record(sampler, metric) for metric in (*costs, "ffe", "cache_bytes_per_image")),
                *(r for seed_set in self.evalset.seed_sets for r in self._quality_records(sampler, seed_set)),
            )
        }
        return list({identity(r): r for r in self.results.records if identity(r) in identities}.values())

    def measure_quality(self) -> None:
        """Measure every metric for every point and seed set that lacks a record."""
        tasks = from_first(
            [
                (i, seed_set)
                for seed_set in self.evalset.seed_sets
                for i, sampler in enumerate(self.samplers)
                if not all(self.results.has(r) for r in self._quality_records(sampler, seed_set))
            ]
        )
        self.unfinished = Unfinished(self.results.path.parent, rank())
        with progress(self.console, "images", part="evaluate") as bar:
            n, efforts = self.evalset.num_images, [effort(self.samplers[i]) for i, _ in tasks]
            task = bar.add_task("", total=len(tasks) * n, share=0.0)

            def advance(images: int) -> None:
                bar.advance(task, images)
                done, part = divmod(min(bar.tasks[0].completed, len(tasks) * n - 1), n)
                reached = sum(efforts[: int(done)]) + efforts[int(done)] * part / n
                bar.update(task, share=reached / sum(efforts))

            for done, (i, seed_set) in enumerate(tasks, 1):
                bar.update(task, description=f"{self.samplers[i].label}, seed set {seed_set}")
                self._measure_point(self.samplers[i], seed_set, lambda images: advance(images * processes()))
                bar.update(task, completed=done * n, share=sum(efforts[:done]) / sum(efforts))
        if rank() == 0:
            self.unfinished.clear_stale()

    def _measure_point(self, sampler: Sampler, seed_set: int, advance: Any) -> None:
        records, share = self._quality_records(sampler, seed_set), self.evalset.share(rank(), processes())
        key = json.dumps([self.evalset_hash, self.evalset.batch_size, [*share], *map(identity, records)])
        parts = to_first(self._part(sampler, seed_set, share, key, advance))
        if parts:
            self._write(parts, seed_set, records, sampler.label)
        wait()  # unfinished parts may go only once the point's records are written
        self.unfinished.clear(key)

    def _part(self, sampler: Sampler, seed_set: int, share: range, key: str, advance: Any) -> Part:
        """Let the metrics see this process's share of a point's images, or the unseen rest of it."""
        part = self.unfinished.load(key) or Part(share.start)
        for metric in self.metrics:
            metric.reset()
        for metric, state in zip(self.metrics, part.states, strict=False):
            metric.put_before(state)
        start, before = time.perf_counter(), part.seconds
        for images, inputs in self.evalset.batches(part.next, share.stop):
            batch = Batch(sampler.images(inputs, seed_set, images), inputs)
            for metric in self.metrics:
                metric.update(batch)
            if sum(map(len, part.preview)) < PREVIEW:
                part.preview.append(batch.images.cpu())
                part.captions += captioned(inputs)
            part.next, part.seconds = part.next + 1, before + time.perf_counter() - start
            if part.next < share.stop:
                self.unfinished.save_when_due(key, part, self.metrics)
            advance(len(inputs))
        if processes() > 1:
            part.states = [metric.state() for metric in self.metrics]
        return part

    def _write(self, parts: Sequence[Part], seed_set: int, records: Sequence[dict[str, Any]], label: str) -> None:
        """Write preview and records of a point, after merging the metrics' states of all processes."""
        for i, metric in enumerate(self.metrics if len(parts) > 1 else ()):
            metric.reset()
            for part in reversed(parts):
                metric.put_before(part.states[i])
        if self.previews and seed_set == self.evalset.seed_sets[0]:
            preview = torch.cat([images for part in parts for images in part.preview])[:PREVIEW]
            captions = [caption for part in parts for caption in part.captions][:PREVIEW]
            save_grid(preview, self.preview / f"{file_name(label)}.png", 10, captions=captions)
        for metric, record in zip(self.metrics, records, strict=True):
            value = {"value": float(metric.compute()), **metric.details()}
            self._add({**record, **value, "seconds": round(parts[0].seconds, 1)})

    def _add(self, record: dict[str, Any]) -> None:
        """Append a record unless it exists: a kill may have left some records of the point."""
        if not self.results.has(record):
            self.results.append(record)

    def _quality_records(self, sampler: Sampler, seed_set: int) -> list[dict[str, Any]]:
        n, evalset = self.evalset.num_images, self.evalset_hash
        return [
            self._record(
                sampler,
                result_name(metric, n),
                unit=metric.unit,
                higher_is_better=metric.higher_is_better,
                n=n,
                seed_set=seed_set,
                reference=metric.reference_hash,
                evalset=evalset,
                decoder=self.base.decoder_fingerprint(),
            )
            for metric in self.metrics
        ]

    def _record(self, sampler: Sampler, metric: str, **fields: Any) -> dict[str, Any]:
        return {
            "metric": metric,
            **sampler.identity,
            "inputs": self.evalset.inputs.fingerprint(),
            **fields,
            **sampler.chosen,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **environment(self.base.device),
        }


def study(
    points: Sequence[Chosen], config: Common, base: Base, former: Callable[[], Mapping[str, str]] = dict
) -> Study:
    """Return the study of a config at its `points`, which writes to `<output_dir>/<name>/results.jsonl`.

    `former` maps hashes that an earlier version wrote to the identities they stand for; called only for such a file.
    """
    results = Results(Path(config.paths["output_dir"]) / config.name / "results.jsonl")
    metrics = [build(metric) for metric in config.metric.values()]
    evalset, protocols = build(config.evalset), config.latency
    review(base, evalset.inputs(torch.arange(evalset.num_images)), "evalset.inputs")
    samplers = [Sampler(base, *chosen) for chosen in points]
    if rank() == 0 and any(map(is_former, results.records)):
        _translate(results, former())
    return Study(samplers, evalset, metrics, results, protocols=protocols)


def _translate(results: Results, former: Mapping[str, str]) -> None:
    """Translate records of an earlier version, and print how many."""
    translated, unknown = results.translate(former)
    if translated:
        kept = f"; {unknown} others, of points that this config does not name, stay as they are" if unknown else ""
        Plain().print(
            f"{results.path}: {translated} records of an earlier version now name their settings{kept} "
            f"(the old file: {results.path.name}.former)"
        )
