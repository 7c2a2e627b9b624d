"""Write the table of the ablation: errors along true trajectories, and distances of images, of every training.

    python experiments/012-front/ablation.py [outputs/<experiment>]

A folder is what run_ablation.sh filled; its records are gathered into ablation_<experiment>.jsonl here. Without one the
table follows from the records that are here.
"""

import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migm.reporting.tables import markdown
from migm.runtime.files import write_atomic
from migm.runtime.jsonl import dumped, read_lines

HERE = Path(__file__).parent
Record = dict[str, Any]
POINT = ("accelerator", "num_steps", "num_full_steps")
FIDELITY = (*POINT, "since_full", "images", "first_step", "kl", "kl_se", "error")
FIDELITY += ("entropy", "equal_top", "marginal_entropy")
IMAGES = (*POINT, "metric", "n", "seed_set", "value", "device", "torch")
VALUES = ("fd_cifarnet", "kd_cifarnet", "class_agreement")


def gathered(folder: Path) -> list[Record]:
    """Return the records of all trainings below the folder: fidelity by steps since a full one, metrics of images."""
    records = []
    for file in sorted(folder.rglob("fidelity.jsonl")):
        training = file.parent.parent.relative_to(folder).as_posix()
        rows = [row for row in read_lines(file) if row.get("since_full", 0) > 0]
        records += [{"training": training, **{key: row[key] for key in FIDELITY}} for row in rows]
    for file in sorted(folder.rglob("results.jsonl")):
        training = file.parent.relative_to(folder).as_posix()
        rows = [row for row in read_lines(file) if "seed_set" in row]
        records += [{"training": training, **{key: row[key] for key in IMAGES}} for row in rows]
    return records


def label(training: str, accelerator: str) -> str:
    """Return a training's name in the table, or the accelerator's where nothing was trained."""
    return accelerator.removesuffix("_uniform") if training == "untrained" else training.removesuffix("_seed0")


def fidelity(records: Iterable[Record]) -> str:
    """Return the table of errors along true trajectories, least KL first."""
    methods: dict[str, dict[int, Record]] = {}
    for row in records:
        if "since_full" in row:
            methods.setdefault(label(row["training"], row["accelerator"]), {})[row["since_full"]] = row
    order = sorted(methods, key=lambda name: statistics.fmean(r["kl"] for r in methods[name].values()))
    gaps = sorted({g for found in methods.values() for g in found})
    headings = ["trained as", *(f"KL, g = {g}" for g in gaps)]
    headings += ["error of features", "entropy", "equal top", "entropy of the marginal"]
    cells = []
    for name in order:
        found = methods[name]
        last = found[max(found)]
        tail = [
            f"{last['error']:.3f}",
            f"{last['entropy']:+.3f}",
            f"{last['equal_top']:.3f}",
            f"{last['marginal_entropy']:+.4f}",
        ]
        cells.append([name, *(f"{found[g]['kl']:.4f} ± {found[g]['kl_se']:.4f}" for g in gaps), *tail])
    return markdown(headings, cells)


def images(records: Iterable[Record]) -> str:
    """Return the table of what images are measured by: means over seed sets, with what their values spread by."""
    values: dict[tuple[str, int, int], dict[str, list[float]]] = {}
    names: list[str] = []
    for row in records:
        if "metric" in row:
            point = (label(row["training"], row["accelerator"]), row["num_steps"], row["num_full_steps"])
            values.setdefault(point, {}).setdefault(row["metric"], []).append(row["value"])
            names += [row["metric"]] if row["metric"] not in names else []
    names.sort(key=lambda name: [name.startswith(value) for value in VALUES], reverse=True)
    cells = []
    for point in sorted(values, key=lambda p: (p[1], p[2], statistics.fmean(values[p][names[0]]))):
        found = [
            (statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for v in (values[point][n] for n in names)
        ]
        cells.append([point[0], f"({point[1]},{point[2]})", *(f"{mean:.3g} ± {spread:.1g}" for mean, spread in found)])
    return markdown(["trained as", "point", *names], cells) if cells else ""


def main() -> None:
    """Gather the records of a folder, if one is named, and write the tables of all records here."""
    for folder in map(Path, sys.argv[1:]):
        write_atomic(HERE / f"ablation_{folder.name}.jsonl", dumped(gathered(folder)))
    for file in sorted(HERE.glob("ablation_*.jsonl")):
        records = read_lines(file)
        parts = [f"# {file.stem.removeprefix('ablation_')}", fidelity(records), images(records)]
        write_atomic(file.with_suffix(".md"), "\n".join(part for part in parts if part))


if __name__ == "__main__":
    main()
