"""Audit results files: select the records that count, and say by file and line why others do not.

Nothing is merged or left out silently. Left out are damaged lines, values without a reference, earlier
measurements of the same thing, and measurements of another shortcut, reference or decoder than
the last. Differing versions and devices are pointed out.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from migm.evaluation.results import identity, type_fault
from migm.reporting.summary import newest
from migm.runtime.jsonl import numbered_lines, parsed
from migm.runtime.reading import decoded
from migm.sampling.sampler import point_label

STUDY = ("base", "sampling", "inputs")  # records compare only if they agree in these keys
VERSIONS = ("device", "torch", "migm", "commit", "run")


@dataclass(frozen=True)
class Line:
    """A record with its file and line number."""

    path: Path
    number: int
    record: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}"


@dataclass(frozen=True)
class Problem:
    """One finding of the audit; `where` names files and lines."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


@dataclass
class StudyLines:
    """Lines of one base, sampler and set of inputs."""

    lines: list[Line]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [line.record for line in self.lines]

    @property
    def folders(self) -> list[Path]:
        return list(dict.fromkeys(line.path.parent for line in self.lines))

    @property
    def name(self) -> str:
        inputs = self.lines[0].record.get("inputs") or "inputs unknown"
        return f"{' + '.join(folder.resolve().name for folder in self.folders)} ({inputs})"


def audit(paths: Iterable[str | Path]) -> tuple[list[StudyLines], list[Problem]]:
    """Read results files -> studies and problems; a missing file raises FileNotFoundError."""
    problems: list[Problem] = []
    requested = [Path(path) for path in paths]
    files = list({path.resolve(): path for path in requested}.values())
    if twice := len(requested) - len(files):
        problems.append(Problem("duplicate", "results", f"{twice} files are given twice, read once"))
    lines = [line for path in files for line in _read(path, problems)]
    studies: dict[tuple[Any, ...], list[Line]] = {_study(line): [] for line in lines}  # keeps the order of the files
    for line in _last_of_each(lines, problems):
        studies[_study(line)].append(line)
    audited = [StudyLines(_same_versions(part, problems)) for part in studies.values()]
    for study in audited:
        _point_out_versions(study.lines, problems)
    return audited, problems


def _study(line: Line) -> tuple[Any, ...]:
    return tuple(line.record.get(key) for key in STUDY)


def _read(path: Path, problems: list[Problem]) -> list[Line]:
    if not path.exists():
        raise FileNotFoundError(f"results={path}: no such file; run migm.evaluate first")
    lines = []
    for number, text, whole in numbered_lines(decoded(path.read_bytes(), path, errors="replace")):
        if fault := _fault(text):
            kind = "damaged" if whole else "cut off"
            problems.append(Problem(kind, f"{path}, line {number}", f"{fault}; not counted"))
        else:
            lines.append(Line(path, number, parsed(text)))
    return lines


def _fault(text: str) -> str | None:
    """Return why a line is no result record, or None."""
    try:
        record = parsed(text)
    except ValueError:
        return "not JSON"
    if not isinstance(record, dict):
        return "not a JSON object"
    if fault := type_fault(record):
        return fault
    if "higher_is_better" not in record:
        return "it lacks higher_is_better"
    value = record["value"]
    if not abs(value) <= sys.float_info.max:
        return f"value={value} is not a finite number"
    if "seed_set" in record and record.get("reference") is None:
        return f"no reference: nothing says what {record['metric']} was measured against"
    return None


def _last_of_each(lines: Sequence[Line], problems: list[Problem]) -> list[Line]:
    """Keep the latest of equal measurements by time; at equal times the last line read."""
    latest: dict[tuple[Any, ...], Line] = {}
    replaced: dict[tuple[Path, Path], list[tuple[Line, Line]]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: str(line.record.get("time", ""))):
        # Popped, so that the result is in order of the measurements that count.
        earlier = latest.pop(identity(line.record), None)
        if earlier:
            replaced[earlier.path, line.path].append((earlier, line))
        latest[identity(line.record)] = line
    for pairs in replaced.values():
        old, new = zip(*pairs, strict=True)
        changed = [pair for pair in pairs if pair[0].record["value"] != pair[1].record["value"]]
        text = f"measured again in {located(new)}, which counts; {len(changed)} of {len(pairs)} values differ"
        if changed:
            before, after = max(changed, key=lambda pair: _change(*pair))
            values = f"{before.record['value']:g} became {after.record['value']:g}"
            text += f", most of all {before.record['metric']} of {_point(before.record)}: {values}"
        problems.append(Problem("duplicate", located(old), text))
    return list(latest.values())


def _change(before: Line, after: Line) -> float:
    old, new = before.record["value"], after.record["value"]
    return abs(new - old) / max(abs(old), abs(new))


def _point(record: dict[str, Any]) -> str:
    variant = record.get("variant", "")
    return point_label(record["accelerator"], record["num_steps"], record["num_full_steps"], variant)


def _same_versions(lines: Sequence[Line], problems: list[Problem]) -> list[Line]:
    """Keep the lines of each point's last shortcut and settings, and of each metric's last reference and decoder."""
    last = {line.record["metric"]: _reference_and_decoder(line.record) for line in lines}
    kept = {id(record) for record in newest([line.record for line in lines])}
    counting, replaced = [], defaultdict(list)
    for line in lines:
        record = line.record
        if id(record) not in kept:
            replaced[f"{_point(record)} of another shortcut or other settings than the last measured"].append(line)
        elif _reference_and_decoder(record) != last[record["metric"]]:
            replaced[f"{record['metric']} against another reference or by another decoder than the last"].append(line)
        else:
            counting.append(line)
    problems += [Problem("mixed versions", located(part), f"{text}; not counted") for text, part in replaced.items()]
    return counting


def _reference_and_decoder(record: dict[str, Any]) -> tuple[Any, Any]:
    return record.get("reference"), record.get("decoder")


def _point_out_versions(lines: Sequence[Line], problems: list[Problem]) -> None:
    """Report differing devices and runs among times, and differing versions of code among all lines."""
    timed = defaultdict(list)
    for line in lines:
        if line.record["metric"].startswith("seconds_per_image/"):
            timed[line.record["metric"]].append(line)
    for key in VERSIONS:
        for part in timed.values() if key in ("device", "run") else [lines]:
            _point_out_values(key, part, problems)


def _point_out_values(key: str, lines: Sequence[Line], problems: list[Problem]) -> None:
    groups = defaultdict(list)
    for line in lines:
        groups[str(line.record.get(key))].append(line)
    if len(groups) > 1:
        consequence = "times compare within one alone" if key in ("device", "run") else "all count"
        values = "; ".join(f"{value}: {located(part)}" for value, part in groups.items())
        files = ", ".join(dict.fromkeys(str(line.path) for line in lines))
        problems.append(Problem("mixed versions", files, f"{len(groups)} values of {key}, {consequence}: {values}"))


def located(lines: Sequence[Line]) -> str:
    """Write lines as `a.jsonl, lines 3, 5-7`, for each file."""
    files = defaultdict(list)
    for line in lines:
        files[line.path].append(line.number)
    return "; ".join(f"{path}, line{'s' * (len(numbers) > 1)} {_ranges(numbers)}" for path, numbers in files.items())


def _ranges(numbers: Sequence[int]) -> str:
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
