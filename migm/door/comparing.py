"""Compare samplers in Python: quality with the same inputs and noise, time side by side, FFE."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from migm.config.roots import EvaluateConfig
from migm.door.configs import built, config_of
from migm.evaluation.results import Results
from migm.evaluation.study import Study
from migm.reporting.summary import Summary, summarise, table
from migm.reporting.tables import markdown
from migm.runtime.errors import UserError
from migm.runtime.writing import writing
from migm.sampling.sampler import Sampler


class Comparison:
    """The result of `compare`: `rows`, one per sampler, and `records` as in results.jsonl; shown as a table."""

    def __init__(self, records: Sequence[dict[str, Any]], baseline: str):
        self.records = list(records)
        self.summary: Summary = summarise(self.records)
        self.rows = self.summary.rows
        self._table = table(self.summary, self.summary.baseline(baseline))

    def __repr__(self) -> str:
        return markdown(*self._table)

    _repr_markdown_ = __repr__


def compare(
    samplers: Sequence[Sampler],
    metrics: Sequence[str] = ("fd_cifarnet",),
    num_images: int = 500,
    evalset: str | None = None,
    seed_sets: Sequence[int] = (1,),
    cost: bool = True,
    folder: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Comparison:
    """Measure samplers of one base and compare them with the first one.

    `metrics` and `evalset` are names of conf/metric and conf/evalset; the default evalset is the base's. With a
    `folder` the records go to its results.jsonl, and records that are already there are not measured again, as in
    `migm.evaluate`. With `cost` time, FFE and memory are measured too, which needs an otherwise idle machine. Raises
    UserError with the line that the command would print.
    """
    if not samplers:
        raise UserError("samplers=[]: give at least one")
    labels = [sampler.label for sampler in samplers]
    if len(set(labels)) < len(labels):
        raise UserError(f"samplers: several are called {max(labels, key=labels.count)}; tell them apart by variant=")
    base = samplers[0].base
    if any(sampler.base.fingerprint() != base.fingerprint() for sampler in samplers):
        raise UserError("samplers: they have several bases, whose figures do not compare")
    changes = {"evalset.num_images": num_images, "evalset.seed_sets": list(seed_sets), **(overrides or {})}
    config = config_of(EvaluateConfig, base, changes, metric=list(metrics), evalset=evalset)
    with TemporaryDirectory() as temporary:
        place = Path(folder or temporary)
        with writing(place, f"folder={place}", folder=True):
            made = built(config.evalset), [built(metric) for metric in config.metric.values()]
            study = Study(samplers, *made, Results(place / "results.jsonl"), protocols=config.latency)
            study.run(cost)
        return Comparison(study.measured(), labels[0])
