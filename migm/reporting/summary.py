"""Summarise records, one row per point: quality over seed sets, time, FFE, differences to a baseline."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from migm.runtime.errors import UserError
from migm.sampling.sampler import point_label


@dataclass
class Row:
    """One point; `quality` maps a metric to its values over the seed sets.

    `seconds` is the time per image by the summary's protocol. `timings` and `peaks` map every protocol to
    seconds per image and to bytes of a batch.
    """

    accelerator: str
    num_steps: int
    num_full_steps: int  # 0: the accelerator decides while sampling
    seconds: float | None = None
    ffe: float | None = None
    quality: dict[str, list[float]] = field(default_factory=dict)
    variant: str = ""
    full_steps: float | None = None  # measured, mean over images
    cached: float | None = None  # bytes an image
    timings: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return point_label(self.accelerator, self.num_steps, self.num_full_steps, self.variant)

    @property
    def method(self) -> str:
        """The accelerator with the settings that tell this point from the accelerator's other points."""
        return f"{self.accelerator} {self.variant}".rstrip()

    @property
    def shown_full_steps(self) -> str:
        """B, or the measured mean where the accelerator decides while sampling."""
        if self.num_full_steps:
            return str(self.num_full_steps)
        return "" if self.full_steps is None else f"{self.full_steps:.1f}"

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.quality[metric])

    def deviation(self, metric: str) -> float:
        """Return the sample standard deviation over the seed sets; 0 with a single set."""
        return deviation(self.quality[metric])


@dataclass
class Summary:
    """Rows sorted by accelerator and cost, and whether higher is better for each metric."""

    rows: list[Row]
    higher_is_better: dict[str, bool]
    about: dict[str, Any]

    def metrics(self) -> list[str]:
        return list(self.higher_is_better)

    def protocols(self) -> list[str]:
        """Return the protocols of time and memory, the compared one first."""
        names = dict.fromkeys(name for row in self.rows for name in (*row.timings, *row.peaks))
        return sorted(names, key=lambda name: name != self.about["time"])

    def baseline(self, label: str) -> Row:
        for row in self.rows:
            if row.label == label:
                return row
        raise UserError(f"baseline={label} is not among the results: {', '.join(row.label for row in self.rows)}")


def summarise(records: Sequence[dict[str, Any]]) -> Summary:
    """Group records by point; records of several bases or samplers do not compare and raise UserError."""
    if not records:
        raise UserError("results: no records; run migm.evaluate first")
    for key in ("base", "sampling"):
        values = sorted({record[key] for record in records})
        if len(values) > 1:
            raise UserError(
                f"results hold several {key} fingerprints ({', '.join(values)}), which do not compare; "
                "report each alone"
            )
    rows: dict[tuple[str, int, int, str], Row] = {}
    better: dict[str, bool] = {}
    for record in newest(records):
        key = point(record)
        row = rows.setdefault(key, Row(*key[:3], variant=key[3]))
        if record["metric"].startswith("seconds_per_image/"):
            row.timings[protocol(record)] = record["value"]
        elif record["metric"].startswith("peak_bytes/"):
            row.peaks[protocol(record)] = record["value"]
        elif record["metric"] == "ffe":
            row.ffe, row.full_steps = record["value"], record.get("mean_full_steps")
        elif record["metric"] == "cache_bytes_per_image":
            row.cached = record["value"]
        else:
            row.quality.setdefault(record["metric"], []).append(record["value"])
            better[record["metric"]] = record["higher_is_better"]
    timed = [r for r in records if r["metric"].startswith("seconds_per_image/")]
    common = Counter(name for row in rows.values() for name in row.timings).most_common(1)
    compared = common[0][0] if common else ""
    for row in rows.values():
        row.seconds = row.timings.get(compared)
    order = sorted(
        rows.values(),
        key=lambda r: (r.accelerator != "vanilla", r.accelerator, r.num_steps, r.num_full_steps, r.variant),
    )
    # Times depend on the device, quality does not.
    *_, last = [r for r in timed if protocol(r) == compared] or records
    about = {key: last.get(key, "") for key in ("base", "sampling", "device", "torch", "migm", "commit")}
    peaks = [r for r in records if r["metric"].startswith("peak_bytes/")]
    counters = {str(r.get("counter", "unknown")): None for r in peaks}
    return Summary(order, better, {**about, "time": compared, "memory": ", ".join(counters)})


def protocol(record: dict[str, Any]) -> str:
    """Return the protocol by which a record's time or memory was measured."""
    return record["metric"].split("/")[1]


def point(record: dict[str, Any]) -> tuple[str, int, int, str]:
    """Return the point of a record: accelerator, N, B, variant."""
    return record["accelerator"], record["num_steps"], record["num_full_steps"], record.get("variant", "")


def newest(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep each point's records of the last measured shortcut and settings; others are another method."""

    def version(record: dict[str, Any]) -> tuple[Any, ...]:
        return record.get("predictor"), record.get("settings")

    last = {point(record): version(record) for record in records}
    return [record for record in records if version(record) == last[point(record)]]


def table(summary: Summary, baseline: Row) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells, formatted to print."""
    metrics = summary.metrics()
    if not metrics or metrics[0] not in baseline.quality:
        missing = metrics[0] if metrics else "quality metric"
        raise UserError(f"results hold no {missing} of baseline={baseline.label} yet; run migm.evaluate to its end")
    headings = ["method", "N", "B", *metrics, f"{metrics[0]} to {baseline.label}", "ms / image", "time", "FFE"]
    further = further_costs(summary)
    cells = []
    for row in summary.rows:
        values = [spread(row.quality[m], 3 if abs(row.mean(m)) < 2 else 2) if m in row.quality else "" for m in metrics]
        change = row.mean(metrics[0]) / baseline.mean(metrics[0]) - 1 if metrics[0] in row.quality else None
        more = [by_label[row.label] for by_label in further.values()]
        cells.append(
            [
                row.method,
                str(row.num_steps),
                row.shown_full_steps,
                *values,
                "" if change is None else f"{change:+.1%}",
                "" if row.seconds is None else f"{1e3 * row.seconds:.2f}",
                "" if row.seconds is None or not baseline.seconds else f"{row.seconds / baseline.seconds:.1%}",
                "" if row.ffe is None else f"{row.ffe:.2f}",
                *("" if value is None else f"{value:.2f}" for value in more),
            ]
        )
    return [*headings, *further], cells


def further_costs(summary: Summary) -> dict[str, dict[str, float | None]]:
    """Map heading -> label of a row -> value, of memory and of all times but the compared one, if measured.

    Memory is in MB (10^6 bytes): peak memory of a whole batch, and memory of caches per image.
    """
    columns: dict[str, dict[str, float | None]] = {}
    if any(row.cached is not None for row in summary.rows):
        columns["cache MB / image"] = {r.label: None if r.cached is None else r.cached / 1e6 for r in summary.rows}
    for name in summary.protocols():
        main = name == summary.about["time"]
        times = {row.label: row.timings.get(name) for row in summary.rows}
        peaks = {row.label: row.peaks.get(name) for row in summary.rows}
        if not main and any(times.values()):
            columns[f"ms / image, {name}"] = {label: value and 1e3 * value for label, value in times.items()}
        if any(peaks.values()):
            heading = "peak MB" if main else f"peak MB, {name}"
            columns[heading] = {label: value and value / 1e6 for label, value in peaks.items()}
    return columns


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float], digits: int) -> str:
    """Format mean ± sample standard deviation, the mean alone for a single value, nothing without values."""
    if not values:
        return ""
    shown = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{shown}"
