"""Write the table of methods by their own samplers, and say which setting is best for each method.

    python experiments/007-cifar10-deep/samplers.py [outputs/cifar10_deep_samplers]

A folder is what run_samplers.sh filled; its records are gathered into samplers.jsonl here, and `method<tab>setting` is
printed for every method. Without one the table follows from the records that are here.
"""

import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migm.reporting.tables import markdown
from migm.runtime.files import write_atomic
from migm.runtime.jsonl import dumped, read_lines
from migm.sampling.sampler import point_label

HERE = Path(__file__).parent
Record = dict[str, Any]
KEPT = ("accelerator", "variant", "num_steps", "num_full_steps", "metric", "n", "seed_set", "value", "device", "torch")
SHARED, SEARCH = "w1_t60_i1", 1001  # vanilla 32's setting; the seed set of the search
METRICS = ("kd_cifarnet", "fd_cifarnet", "class_agreement")


def gathered(folder: Path) -> list[Record]:
    """Return the records of all settings below the folder."""
    files = sorted(folder.glob("*/results.jsonl"))
    rows = [(file.parent.name, row) for file in files for row in read_lines(file) if "seed_set" in row]
    return [{"setting": setting, **{key: row[key] for key in KEPT}} for setting, row in rows]


def label(row: Record) -> str:
    return point_label(row["accelerator"], row["num_steps"], row["num_full_steps"], row["variant"])


def chosen(records: Iterable[Record]) -> dict[str, str]:
    """Return the setting of every method whose kernel distance, averaged over its points, is least in the search."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in records:
        if row["seed_set"] == SEARCH and row["metric"].startswith("kd_cifarnet"):
            values.setdefault(row["accelerator"], {}).setdefault(row["setting"], []).append(row["value"])
    return {
        method: min(found, key=lambda setting: statistics.fmean(found[setting])) for method, found in values.items()
    }


def table(records: Iterable[Record]) -> str:
    """Return both tables: every setting by the search's seeds, then vanilla 32's beside each method's own."""
    best = chosen(records)
    values: dict[bool, dict[tuple[str, str], dict[str, list[float]]]] = {True: {}, False: {}}
    names: dict[bool, list[str]] = {True: [], False: []}
    method_of = {}
    for row in records:
        searched, point = row["seed_set"] == SEARCH, label(row)
        method_of[point] = row["accelerator"]
        values[searched].setdefault((point, row["setting"]), {}).setdefault(row["metric"], []).append(row["value"])
        names[searched] += [row["metric"]] if row["metric"] not in names[searched] else []
    parts = []
    for searched, title in ((True, "## The search"), (False, "## Verified on other seeds")):
        order = sorted(names[searched], key=lambda n: [n.startswith(m) for m in METRICS], reverse=True)
        cells = []
        for (point, setting), found in values[searched].items():
            own, shared = setting == best.get(method_of[point]), setting == SHARED
            if searched or own or shared:
                mark = " (all methods)" * shared + " (its own)" * own
                numbers = [f"{statistics.fmean(found[n]):.3g}" if n in found else "" for n in order]
                cells.append([point, setting + mark, *numbers])
        if cells:
            parts += [title, markdown(["point", "sampler", *order], sorted(cells))]
    return "\n".join(parts)


def main() -> None:
    """Gather the records of a folder, if one is named, say what is best, and write the tables of all records here."""
    file = HERE / "samplers.jsonl"
    for folder in map(Path, sys.argv[1:]):
        write_atomic(file, dumped(gathered(folder)))
    records = read_lines(file)
    if sys.argv[1:]:
        for method, setting in chosen(records).items():
            print(method, setting, sep="\t")
    write_atomic(HERE / "samplers.md", table(records))


if __name__ == "__main__":
    main()
