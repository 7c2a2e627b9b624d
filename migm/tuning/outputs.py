"""Write what a tuning found: the front file, a table, a figure, and a line for every share of vanilla's time."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from migm import __version__
from migm.config.candidates import CandidateParts
from migm.config.fronts import MEASURED, Front, FrontPoint, Vanilla, write_front
from migm.metrics.metric import QualityMetric
from migm.reporting.pareto import front as pareto
from migm.reporting.plots import colours
from migm.reporting.summary import spread
from migm.reporting.tables import Table
from migm.runtime.figures import plt, write_figure
from migm.runtime.provenance import environment
from migm.tuning.search import Tried
from migm.tuning.verify import Pick, Verified, resolution


def front_of(
    found: Sequence[Verified],
    metric: QualityMetric,
    name: str,
    images: int,
    parts: CandidateParts,
    about: dict[str, Any],
) -> Front:
    """Return the front of all that was verified; the first of `found` is vanilla."""
    reference, base = found[0], found[0].sampler.base
    device = str(environment(base.device)["device"])
    points = [
        FrontPoint(
            accelerator=each.candidate.accelerator,
            num_steps=each.candidate.num_steps,
            num_full_steps=each.candidate.num_full_steps,
            changes=each.candidate.changes,
            value=each.mean(name),
            speed=reference.seconds / each.seconds,
            standard_error=each.error(name),
            n=images,
            seed_sets=list(parts.config.verify_seed_sets),
            device=device,
            source="migm.tune, verified",
        )
        for each in found[1:]
    ]
    return Front(
        base=[base.fingerprint()],
        name=parts.base_name(),
        metric=name,
        higher_is_better=bool(metric.higher_is_better),
        resolution=resolution(found, name),
        vanilla=Vanilla(reference.mean(name), reference.candidate.num_steps, 1e3 * reference.seconds),
        points=points,
        about={
            "measured": MEASURED,
            "by": "migm.tune",
            "sampling": reference.sampler.sampling.identity,
            "date": time.strftime("%Y-%m-%d"),
            "migm": __version__,
            **{key: value for key, value in environment(base.device).items() if key in ("torch", "commit")},
            **about,
        },
    )


def table_of(found: Sequence[Verified], names: Sequence[str]) -> Table:
    """Return a row for each verified sampler, fastest first: what it is, costs, searched value, verified ones."""
    headings = ["method", "N", "B", "changes", "ms / image", "of vanilla's time", "predicted", f"{names[0]}: searched"]
    cells = []
    for each in sorted(found, key=lambda v: v.seconds):
        b, tried = each.sampler.num_full_steps, each.tried
        cells.append(
            [
                each.candidate.accelerator,
                str(each.candidate.num_steps),
                str(b),
                each.candidate.variant,
                f"{1e3 * each.seconds:.2f}",
                f"{each.share:.1%}",
                "" if tried is None else f"{tried.predicted:.1%}",
                "" if tried is None else f"{figure(tried.value)} ({tried.images} images)",
                *(spread_of(each.values[name]) for name in names),
            ]
        )
    return [*headings, *names], cells


def figure(value: float) -> str:
    """Return a value with three digits that count."""
    return f"{value:.3g}"


def spread_of(values: Sequence[float]) -> str:
    """Return mean ± deviation with digits that suit the values' size."""
    size = max(map(abs, values))
    digits = 3 if size >= 0.1 else 5 if size >= 1e-3 else 7
    return spread(values, digits)


def lines_of(chosen: Sequence[Pick], found: Sequence[Verified], name: str, tried: Sequence[Tried]) -> list[str]:
    """Return a line for every share: what was chosen and why."""
    lines, noise = [], resolution(found, name)
    for choice in chosen:
        start = f"within {choice.share:.0%} of vanilla's time: "
        if choice.best is None:
            nearest = min(found, key=lambda each: each.share)
            lines.append(f"{start}nothing; the fastest, {nearest.sampler.label}, takes {nearest.share:.1%}")
            continue
        best, second = choice.best, choice.second
        number = sum(each.lane.share == choice.share for each in tried)
        about = (
            f"{name} {figure(best.mean(name))}, vanilla {found[0].candidate.num_steps} {figure(found[0].mean(name))}"
        )
        text = f"{start}{best.sampler.label}, {best.share:.1%}: {about}; the best of {number} tried and verified"
        if second is not None:
            gap = abs(second.mean(name) - best.mean(name))
            within = ", which the resolution does not tell apart" if noise is not None and gap < noise else ""
            text += f", {figure(gap)} before {second.sampler.label}{within}"
        lines.append(text)
    return lines


def draw(
    found: Sequence[Verified],
    tried: Sequence[Tried],
    chosen: Sequence[Pick],
    metric: QualityMetric,
    name: str,
    path: Path,
) -> None:
    """Draw searched values against predicted time, and verified ones with their errors against measured time."""
    figure_, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    shades = colours(sorted({t.candidate.accelerator for t in tried} | {v.candidate.accelerator for v in found}))
    for method, shade in shades.items():
        mine = [t for t in tried if t.candidate.accelerator == method]
        axes.plot(
            [100 * t.predicted for t in mine], [t.value for t in mine], ".", color=shade, alpha=0.35, markersize=5
        )
        shown = [v for v in found if v.candidate.accelerator == method]
        axes.errorbar(
            [100 * v.share for v in shown],
            [v.mean(name) for v in shown],
            [v.error(name) for v in shown],
            fmt="o",
            color=shade,
            capsize=2,
            markersize=6,
            label=method.replace("_", " "),
        )
    sign = -1 if metric.higher_is_better else 1
    best = pareto([v.share for v in found], [sign * v.mean(name) for v in found])
    axes.plot(
        [100 * found[i].share for i in best],
        [found[i].mean(name) for i in best],
        "k:",
        linewidth=2,
        alpha=0.5,
        label="front, verified",
    )
    for choice in chosen:
        axes.axvline(100 * choice.share, color="#d1d5db", linewidth=0.8, zorder=0)
    values = [v.mean(name) for v in found]
    room = max(values) - min(values) or abs(values[0]) or 1.0
    axes.set_ylim(min(values) - 0.5 * room, max(values) + 0.5 * room)  # first rungs hold values far off
    axes.set(xlabel="% of vanilla's time (dots: searched, predicted time; circles: verified, measured)", ylabel=name)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    write_figure(figure_, path)


def write_all(front: Front, folder: Path, own: Path) -> None:
    """Write the front file where its readers look, and in the tuning's own folder."""
    write_front(front, own / "front.json")
    write_front(front, folder / "front.json")
