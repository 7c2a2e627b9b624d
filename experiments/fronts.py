"""Write the fronts that migm ships, from the studies' records and from the tables of the paper.

    python experiments/fronts.py [--assets migm/assets]

Only points with a value and a time are taken, and of the bases without a bundled shortcut only methods without
training. Values are means over the seed sets that were measured; the resolution is what vanilla's seed sets differ by,
or what the study says.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir

import migm
from migm.config.building import conf_path, load
from migm.config.fronts import MEASURED, PAPER, Front, FrontPoint, Vanilla, write_front
from migm.config.points import entries, points
from migm.config.roots import EvaluateConfig
from migm.evaluation.results import read
from migm.runtime.jsonl import read_lines

HERE = Path(__file__).parent
COMMAND = "python experiments/fronts.py"
LEARNED = ("shortcut", "l2p", "teacache", "no_cross_attention")  # names that begin so need training or calibration
DEEP = {  # of the study's accelerators, what points_h200.jsonl calls them and whether their full steps lie at intervals
    "vanilla": ("vanilla", False),
    "reuse": ("reuse", False),
    "reuse_interval": ("reuse", True),
    "taylorseer": ("taylorseer order 1", True),
    "taylorseer_uniform": ("taylorseer order 1", False),
    "foca": ("foca fixed step", True),
    "foca_uniform": ("foca fixed step", False),
    "shortcut_bundled": ("shortcut R2", False),
    "shortcut_bundled_interval": ("shortcut R2", True),
    "shortcut_bundled_r1": ("shortcut R1", False),
}


class Planned(NamedTuple):
    """A point of a study's experiment: as a front names it, and as its records name it."""

    accelerator: str
    num_steps: int
    num_full_steps: int | None
    changes: dict[str, Any]
    method: tuple[str, int, str]

    def measured(self, values: dict[int, float], speed: float, device: str, source: str, n: int) -> FrontPoint:
        """Return the front's point of `values` by seed set."""
        return FrontPoint(
            self.accelerator,
            self.num_steps,
            self.num_full_steps,
            round(statistics.fmean(values.values()), 4),
            round(speed, 3),
            {f"accelerator.{key}": value for key, value in self.changes.items()},
            round(statistics.stdev(values.values()) / math.sqrt(len(values)), 4) if len(values) > 1 else None,
            n,
            sorted(values),
            device,
            source,
        )


def planned(experiment: str) -> Iterator[Planned]:
    """Yield the points of an experiment."""
    with initialize_config_dir(conf_path(), version_base="1.3"):
        cfg = compose("evaluate", [f"+experiment={experiment}", "device=cpu"])
        config = load(cfg, EvaluateConfig)
        for entry, made in zip(entries(cfg, config), points(cfg, config), strict=True):
            name, n = made.accelerator.name, made.sampling.num_steps
            b = None if name == "vanilla" else entry.num_full_steps
            yield Planned(name, n, b, dict(entry.changes), (name, n, made.accelerator.identity))


def fingerprints(base: str) -> list[str]:
    """Return those of a bundled base in the precisions that `dtype=auto` may choose."""
    return [migm.load_base(base, device="cpu", dtype=dtype).fingerprint() for dtype in ("bfloat16", "float32")]


def values_of(records: list[dict[str, Any]], metric: str, method: tuple[str, int, str]) -> dict[int, float]:
    """Return a point's values by seed set."""
    mine = [r for r in records if (r["accelerator"], r["num_steps"], r["settings"]) == method]
    return {r["seed_set"]: r["value"] for r in mine if r["metric"] == metric}


def of_study(base: str, study: str, experiment: str, metric: str, vanilla: int, told: float | None = None) -> Front:
    """Return the front of a study whose results hold values and times of the same run; `told` is its resolution."""
    records = read(HERE / study / "results.jsonl")
    times = [r for r in records if r["metric"].startswith("seconds_per_image/")]
    seconds = {(r["accelerator"], r["num_steps"], r["settings"]): r["value"] for r in times}
    chosen = [p for p in planned(experiment) if p.method in seconds and not p.accelerator.startswith(LEARNED)]
    (reference,) = [p for p in chosen if (p.accelerator, p.num_steps) == ("vanilla", vanilla)]
    whole, values = seconds[reference.method], values_of(records, metric, reference.method)
    source, n = f"experiments/{study}/results.jsonl", int(metric.rpartition("_")[2])
    return Front(
        fingerprints(base),
        base,
        metric,
        False,
        told if told is not None else round(max(values.values()) - min(values.values()), 4),
        Vanilla(round(statistics.fmean(values.values()), 4), vanilla, round(1e3 * whole, 2)),
        [
            p.measured(values_of(records, metric, p.method), whole / seconds[p.method], times[0]["device"], source, n)
            for p in chosen
        ],
        {
            "measured": MEASURED,
            "command": COMMAND,
            "study": f"experiments/{study}",
            "device": times[0]["device"],
            "time": times[0]["metric"].partition("/")[2],
            "torch": times[0]["torch"],
            "migm": times[0]["migm"],
            "searched": sorted(values),
            "verified": [],
        },
    )


def deep() -> Front:
    """Return the front of the deeper base: times of points_h200.jsonl, values of both files.

    Networks there were kept in another precision than the bundled ones, so that values of shortcuts are of
    results.jsonl alone.
    """
    study, metric = HERE / "007-cifar10-deep", "fd_cifarnet_5000"
    records, lines = read(study / "results.jsonl"), read_lines(study / "points_h200.jsonl")
    found = []
    for point in planned("cifar10_deep_study"):
        if point.accelerator not in DEEP or "predictor.rule.max_order" in point.changes:
            continue
        name, at_intervals = DEEP[point.accelerator]
        plan = f"interval {point.changes.get('policy.interval', 4)}, first 3" if at_intervals else "uniform"
        steps = point.num_steps if name == "vanilla" else point.num_full_steps
        like = {"method": name, "N": point.num_steps, "plan": plan}
        mine = [r for r in lines if like.items() <= r.items() and steps in (None, r["full_steps"])]
        values = {r["seed_set"]: r["fd_cifarnet"] for r in mine} if "shortcut" not in name else {}
        values |= values_of(records, metric, point.method)
        if mine and values:
            found.append((point, values, statistics.fmean(r["ms_per_image"] for r in mine)))
    (reference,) = [each for each in found if each[0].method[:2] == ("vanilla", 32)]
    _, values, whole = reference
    source = "experiments/007-cifar10-deep/results.jsonl, points_h200.jsonl"
    return Front(
        fingerprints("cifar10_deep"),
        "cifar10_deep",
        metric,
        False,
        round(max(values.values()) - min(values.values()), 4),
        Vanilla(round(statistics.fmean(values.values()), 4), 32, round(whole, 3)),
        [p.measured(v, whole / ms, "NVIDIA H200", source, 5000) for p, v, ms in found],
        {
            "measured": MEASURED,
            "command": COMMAND,
            "study": "experiments/007-cifar10-deep",
            "device": "NVIDIA H200",
            "time": "batch1000_amortised",
            "torch": records[0]["torch"],
            "migm": records[0]["migm"],
            "searched": sorted(values),
            "verified": [],
        },
    )


def paper(base: str, metric: str, up: bool, n: int | None, about: dict[str, Any], rows: list[list[Any]]) -> Front:
    """Return a front of the paper's rows: accelerator, N, B, milliseconds, value of n images; the first is vanilla."""
    source, whole = f"arXiv 2602.23996, {about['table']}", rows[0][3]
    made = [
        FrontPoint(name, steps, b, value, round(whole / ms, 3), n=n, device="NVIDIA H200", source=source)
        for name, steps, b, ms, value in rows
    ]
    return Front([], base, metric, up, None, Vanilla(made[0].value, made[0].num_steps, whole), made, about)


def maskgit() -> Front:
    """Return Table 1: FID to the validation images, milliseconds an image at batch 128, decoding excluded."""
    vanilla = [
        (15, 50.1, 7.60),
        (8, 26.1, 9.91),
        (9, 29.4, 8.86),
        (11, 35.9, 7.90),
        (13, 42.5, 7.64),
        (32, 104.6, 8.08),
    ]
    shortcut = [
        (15, 7, 25.9, 8.90),
        (15, 8, 28.8, 8.16),
        (32, 8, 33.7, 7.30),
        (32, 9, 36.8, 6.97),
        (32, 12, 45.9, 6.84),
    ]
    about = {
        "measured": PAPER,
        "command": COMMAND,
        "table": "Table 1",
        "time": "batch128_amortised",
        "note": "measured with dropout left on in the shortcut; vanilla is that of the published 15 steps",
    }
    rows: list[list[Any]] = [["vanilla", n, None, ms, value] for n, ms, value in vanilla]
    rows += [["shortcut_released", n, b, ms, value] for n, b, ms, value in shortcut]
    return paper("maskgit_512", "fid_migm_paper_50000", False, 50_000, about, rows)


def dimoo() -> Front:
    """Return rows of Table 2: ImageReward less that of vanilla 64, seconds an image at batch 1, decoding excluded."""
    about = {
        "measured": PAPER,
        "command": COMMAND,
        "table": "Table 2",
        "time": "batch1_wall",
        "note": "values are differences to vanilla 64, to two digits, so that quality= has no shares to choose by",
    }
    rows: list[list[Any]] = [
        ["vanilla", 64, None, 23.10e3, 0.0],
        ["vanilla", 16, None, 5.77e3, -0.16],
        ["shortcut_released_dimoo", 64, 14, 5.76e3, -0.01],
        ["shortcut_released_dimoo", 64, 11, 4.70e3, -0.04],
        ["shortcut_released_dimoo", 64, 9, 3.99e3, -0.08],
    ]
    return paper("dimoo", "image_reward_less_vanilla", True, None, about, rows)


def main(assets: Path) -> None:
    """Write the files and print how many points each holds."""
    fronts = {
        "front.json": of_study("cifar10", "002-rivals-cifar10", "rivals_cifar10", "fd_cifarnet_500", 16),
        "dimoo_tiny/front.json": of_study("dimoo_tiny", "006-dimoo-tiny", "dimoo_tiny", "fd_cifarnet_500", 16, 0.05),
        "cifar10_deep/front.json": deep(),
        "fronts/maskgit_512.json": maskgit(),
        "fronts/dimoo.json": dimoo(),
    }
    for name, front in fronts.items():
        write_front(front, assets / name)
        print(json.dumps({"file": str(assets / name), "points": len(front.points), "resolution": front.resolution}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=HERE.parent / "migm" / "assets", help="folder to write into")
    main(**vars(parser.parse_args()))
