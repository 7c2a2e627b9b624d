"""Measure many points: cost side by side first, then quality over the seed sets, each value a record."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from migm.bases.base import Base
from migm.bases.inputs import captioned, review
from migm.config.building import build
from migm.config.roots import Common
from migm.evaluation.cost import Point, Protocol, latency, peaks, work
from migm.evaluation.evalset import EvalSet
from migm.evaluation.memory import COUNTERS
from migm.evaluation.results import Results, file_name, identity
from migm.evaluation.unfinished import Part, Unfinished
from migm.metrics.metric import Batch, ImageMetric, result_name
from migm.runtime.distributed import first_console, from_first, processes, rank, to_first, wait
from migm.runtime.pictures import save_grid
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.sampling.loop import generate_images

PREVIEW = 20  # images of each point that are kept to look at


class Study:
    """Fills `results` with what is missing of `points`; running it again goes on where it stopped.

    The processes of a run share the images of each point. Rank 0 alone takes times, decides what is missing, and
    writes.
    """

    def __init__(
        self,
        base: Base,
        points: Sequence[Point],
        sampling_config: dict[str, Any],
        evalset: EvalSet,
        metrics: Sequence[ImageMetric],
        results: Results,
        repeats: int = 5,
        protocols: Sequence[str] = (),
    ):
        self.base, self.points, self.evalset, self.metrics = base, points, evalset, metrics
        self.results, self.repeats = results, repeats
        without = {k: v for k, v in sampling_config.items() if k not in ("num_steps", "num_full_steps")}
        self.evalset_hash = evalset.fingerprint()
        self.sampling = hashlib.sha256(json.dumps(without, sort_keys=True).encode()).hexdigest()[:12]
        self.preview, self.console = results.path.parent / "images", first_console()
        self.protocols = [Protocol.named(name) for name in protocols or [f"batch{evalset.batch_size}_amortised"]]
        for metric in metrics:
            metric.refuse_incomplete()  # this, and too few images, before anything is generated
            result_name(metric, evalset.num_images)
            metric.to(base.device)

    def run(self, cost: bool = True) -> None:
        """Everything that is missing; `cost` False leaves out time, FFE and memory."""
        self.console = first_console()
        if cost and rank() == 0:
            self.measure_cost()
        wait()
        self.measure_quality()
        self.console.print(f"results in {self.results.path}")

    def measure_cost(self) -> None:
        """Seconds of all points, taking turns, and their memory by every protocol; FFE and memory of caches."""
        run = time.strftime("%Y-%m-%dT%H:%M:%S")
        for protocol in self.protocols:
            self._measure_time(protocol, run)
            self._measure_peaks(protocol)
        equivalents = [self._record(p, "ffe", unit="full steps", higher_is_better=False) for p in self.points]
        memory = "cache_bytes_per_image"
        caches = [self._record(p, memory, unit="bytes", higher_is_better=False) for p in self.points]
        if all(self.results.has(record) for record in [*equivalents, *caches]):
            return
        with progress(self.console, "runs") as bar:
            done = work(self.base, self.points, self.evalset.inputs, bar)
        for ffe, cache, found in zip(equivalents, caches, done, strict=True):
            more = {"ffe_steps": [round(x, 4) for x in found.ffe_steps], "rows": found.rows}
            self._add({**ffe, "value": found.ffe, "mean_full_steps": found.full_steps, **more})
            self._add({**cache, "value": found.cached})

    def _measure_time(self, protocol: Protocol, run: str) -> None:
        about = {"unit": "s", "higher_is_better": False, "n": protocol.batch}
        records = [self._record(p, f"seconds_per_image/{protocol.name}", **about) for p in self.points]
        if all(map(self.results.has, records)):
            return
        with progress(self.console, "runs") as bar:
            seconds = latency(self.base, self.points, self.evalset.inputs, protocol, self.repeats, bar)
        # At once: times compare within a run alone, so that a kill must not leave a part of it.
        taken = zip(records, seconds, strict=True)
        self.results.extend([{**record, "value": s, "repeats": self.repeats, "run": run} for record, s in taken])

    def _measure_peaks(self, protocol: Protocol) -> None:
        counter = COUNTERS[self.base.device.type]
        about = {"unit": "bytes", "higher_is_better": False, "n": protocol.batch, "counter": counter}
        records = [(p, self._record(p, f"peak_bytes/{protocol.name}", **about)) for p in self.points]
        missing = [(p, record) for p, record in records if not self.results.has(record)]
        if not missing:
            return
        with progress(self.console, "runs") as bar:
            found = peaks(self.base, [p for p, _ in missing], self.evalset.inputs, protocol, bar)
        for (_, record), value in zip(missing, found, strict=True):
            self.results.append({**record, "value": float(value)})

    def measured(self) -> list[dict[str, Any]]:
        """The records of its own points, without what else the results hold; of one measured twice the latest."""
        costs = [f"{kind}/{p.name}" for p in self.protocols for kind in ("seconds_per_image", "peak_bytes")]
        wanted = {
            identity(record)
            for point in self.points
            for record in (
                *(self._record(point, metric) for metric in (*costs, "ffe", "cache_bytes_per_image")),
                *(r for seed_set in self.evalset.seed_sets for r in self._quality_records(point, seed_set)),
            )
        }
        return list({identity(r): r for r in self.results.records if identity(r) in wanted}.values())

    def measure_quality(self) -> None:
        """Every metric for every point and seed set that has no record yet."""
        tasks = from_first(
            [
                (i, seed_set)
                for seed_set in self.evalset.seed_sets
                for i, point in enumerate(self.points)
                if not all(self.results.has(r) for r in self._quality_records(point, seed_set))
            ]
        )
        self.unfinished = Unfinished(self.results.path.parent, rank())
        with progress(self.console, "images") as bar:
            task = bar.add_task("", total=len(tasks) * self.evalset.num_images)
            for done, (i, seed_set) in enumerate(tasks, 1):
                bar.update(task, description=f"{self.points[i].label}, seed set {seed_set}")
                self._measure(self.points[i], seed_set, lambda n: bar.advance(task, n * processes()))
                bar.update(task, completed=done * self.evalset.num_images)
        if rank() == 0:
            self.unfinished.clear_stale()

    def _measure(self, point: Point, seed_set: int, advance: Any) -> None:
        records, share = self._quality_records(point, seed_set), self.evalset.share(rank(), processes())
        key = json.dumps([self.evalset_hash, self.evalset.batch_size, [*share], *map(identity, records)])
        parts = to_first(self._part(point, seed_set, share, key, advance))
        if parts:
            self._write(parts, seed_set, records, point.label)
        wait()  # what is kept of the point goes when its records are there
        self.unfinished.clear(key)

    def _part(self, point: Point, seed_set: int, share: range, key: str, advance: Any) -> Part:
        """Let the metrics see this process's share of a point's images, or what was left of it."""
        part = self.unfinished.load(key) or Part(share.start)
        for metric in self.metrics:
            metric.reset()
        for metric, state in zip(self.metrics, part.states, strict=False):
            metric.put_before(state)
        start, before = time.perf_counter(), part.seconds
        for images, inputs in self.evalset.batches(part.next, share.stop):
            tokens = generate_images(
                self.base, inputs, images, seed_set, sampling=point.sampling, accelerator=point.accelerator
            )
            batch = Batch(self.base.decode(tokens), inputs)
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
        """The preview and records of a point whose images the metrics of several processes saw."""
        for i, metric in enumerate(self.metrics if len(parts) > 1 else ()):
            metric.reset()
            for part in reversed(parts):
                metric.put_before(part.states[i])
        if seed_set == self.evalset.seed_sets[0]:
            preview = torch.cat([images for part in parts for images in part.preview])[:PREVIEW]
            captions = [caption for part in parts for caption in part.captions][:PREVIEW]
            save_grid(preview, self.preview / f"{file_name(label)}.png", 10, captions=captions)
        for metric, record in zip(self.metrics, records, strict=True):
            value = {"value": float(metric.compute()), **metric.details()}
            self._add({**record, **value, "seconds": round(parts[0].seconds, 1)})

    def _add(self, record: dict[str, Any]) -> None:
        """Append it unless it is there: of a point that a kill stopped half-way, a part may be."""
        if not self.results.has(record):
            self.results.append(record)

    def _quality_records(self, point: Point, seed_set: int) -> list[dict[str, Any]]:
        n, evalset = self.evalset.num_images, self.evalset_hash
        return [
            self._record(
                point,
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

    def _record(self, point: Point, metric: str, **more: Any) -> dict[str, Any]:
        return {
            "metric": metric,
            "accelerator": point.accelerator.name,
            "variant": point.variant,
            "num_steps": point.sampling.num_steps,
            "num_full_steps": point.full_steps,
            "settings": point.settings,
            "base": self.base.fingerprint(),
            "predictor": point.accelerator.fingerprint(self.base),
            "sampling": self.sampling,
            "inputs": self.evalset.inputs.fingerprint(),
            **more,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **environment(self.base.device),
        }


def study(points: Sequence[Point], config: Common, base: Base) -> Study:
    """The study of a config at its `points`, writing to `<output_dir>/<name>/results.jsonl`."""
    results = Results(Path(config.paths["output_dir"]) / config.name / "results.jsonl")
    metrics = [build(metric) for metric in config.metric.values()]
    evalset, protocols = build(config.evalset), config.latency
    review(base, evalset.inputs(torch.arange(evalset.num_images)), "evalset.inputs")
    return Study(base, points, config.sampling, evalset, metrics, results, protocols=protocols)
