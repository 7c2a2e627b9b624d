"""Verify what a search found: other seeds, all beside vanilla, times side by side in one run."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migm.evaluation.evalset import EvalSet
from migm.evaluation.results import Results
from migm.evaluation.study import Study
from migm.metrics.metric import QualityMetric, result_name
from migm.reporting.summary import deviation
from migm.sampling.sampler import Sampler
from migm.tuning.search import Goal, Tried
from migm.tuning.space import Builder, Candidate

REPEATS = 3  # rounds of timing after the first
SLACK = 0.03  # by which a measured time may exceed a share: it was predicted when the candidate was chosen


@dataclass
class Verified:
    """A sampler's values on the verification's seed sets, and its seconds an image; `tried` None is the reference."""

    tried: Tried | None
    candidate: Candidate
    sampler: Sampler
    values: Mapping[str, list[float]]  # metric -> values over seed sets
    seconds: float
    share: float  # of vanilla's time

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.values[metric])

    def error(self, metric: str) -> float:
        """Return the standard error over the seed sets; 0 with a single set."""
        return deviation(self.values[metric]) / len(self.values[metric]) ** 0.5


def verified(
    builder: Builder,
    finalists: Mapping[Goal, Sequence[Tried]],
    evalset: EvalSet,
    metrics: Sequence[QualityMetric],
    results: Results,
    protocol: str,
) -> list[Verified]:
    """Measure vanilla and the finalists of all lanes; the first one returned is vanilla, the reference.

    What `results` hold already is not measured again; times only together.
    """
    distinct: dict[str, Tried] = {}
    for found in finalists.values():
        for tried in found:
            distinct.setdefault(str(tried.candidate), tried)
    entries: list[tuple[Tried | None, Candidate]] = [(None, builder.vanilla())]
    entries += [(tried, tried.candidate) for tried in distinct.values() if tried.candidate != builder.vanilla()]
    samplers = [builder.sampler(candidate) for _, candidate in entries]
    study = Study(samplers, evalset, metrics, results, repeats=REPEATS, protocols=[protocol])
    study.measure_times(peaks=False)
    study.count_costs()
    study.measure_quality()
    by_sampler: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for record in study.measured():
        values = by_sampler.setdefault(_key(record), {})
        values.setdefault(record["metric"], []).append(record["value"])
    names, time = [result_name(metric, evalset.num_images) for metric in metrics], f"seconds_per_image/{protocol}"
    found = []
    for (tried, candidate), sampler in zip(entries, samplers, strict=True):
        values = by_sampler[_key(sampler.identity)]
        seconds = values[time][0]
        share = seconds / (found[0].seconds if found else seconds)
        found.append(Verified(tried, candidate, sampler, {name: values[name] for name in names}, seconds, share))
    return found


def _key(about: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells samplers apart in records."""
    return tuple(about[key] for key in ("num_steps", "num_full_steps", "settings", "predictor", "sampling"))


def resolution(found: Sequence[Verified], metric: str) -> float | None:
    """Return the difference of two means that chance exceeds once in twenty: 2 standard errors of a difference.

    The deviation between seed sets is pooled over all that was verified; None with a single seed set.
    """
    number = len(found[0].values[metric])
    if number < 2:
        return None
    pooled = statistics.fmean(deviation(each.values[metric]) ** 2 for each in found)
    return 2 * (2 * pooled / number) ** 0.5


@dataclass(frozen=True)
class Pick:
    """The best verified sampler within a share of vanilla's time, and the next best; None where nothing fits."""

    share: float
    best: Verified | None
    second: Verified | None


def choices(found: Sequence[Verified], shares: Sequence[float], metric: str, sign: int) -> list[Pick]:
    """Return the choice of every share by the metric's means; `sign` is -1 where higher is better."""
    chosen = []
    for share in shares:
        fitting = [each for each in found if each.share <= share * (1 + SLACK)]
        ranked = sorted(fitting, key=lambda each: sign * each.mean(metric))
        chosen.append(Pick(share, *[*ranked, None, None][:2]))
    return chosen
