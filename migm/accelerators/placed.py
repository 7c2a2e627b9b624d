"""Take full steps from a file of `migm.place` (docs/placement.md)."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from migm.accelerators.predictor import Learned, Predictor
from migm.bases.base import Base
from migm.bases.weights import version
from migm.config.retraining import placing_command
from migm.runtime.errors import UserError
from migm.runtime.files import content_hash, write_atomic
from migm.runtime.identity import identity
from migm.runtime.jsonl import parsed
from migm.runtime.kinds import Count

FORMAT = "migm-placement/1"
FACTS = ("base", "sampling", "predictor", "num_steps", "plans")


@dataclass(frozen=True)
class Placed:
    """The full steps that `migm.place` chose for a base, a predictor, N and B.

    They are read from the file `written`, if it is there, else from `bundled`, which comes with a base. Of its plans
    the one is taken whose first `first` steps are full by request. The identity is the `steps` alone. A file for
    another base, predictor or sampling is refused; `sampling` "any" lets one pass that was made for other draws,
    guidance or schedules. `accelerator` is the name by which errors say how the file is made.
    """

    num_full_steps: Count = field(compare=False)
    num_steps: Count = field(compare=False)
    first: Count = field(default=1, compare=False)
    written: str | Path | None = field(default=None, compare=False)
    bundled: str | Path | None = field(default=None, compare=False)
    sampling: Literal["same", "any"] = field(default="same", compare=False)
    accelerator: str = field(default="", compare=False)
    steps: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self._steps())

    def plan(self, num_steps: int) -> list[bool]:
        if num_steps != self.num_steps:
            raise UserError(f"accelerator.policy.num_steps={self.num_steps}, but sampling.num_steps={num_steps}")
        return [i in self.steps for i in range(num_steps)]

    def suits(self, base: Base, predictor: Predictor | None, sampling: str, num_steps: int) -> None:
        """Refuse a base, predictor or sampling, given by its identity, for which the steps were not chosen."""
        file, content = self._content()
        known = content["predictor"]
        plain = getattr(base, "plain_fingerprint", base.fingerprint)()
        weights = predictor.fingerprint(base) if isinstance(predictor, Learned) else ""
        differences = {
            "base": (content["base"], {base.fingerprint(), plain}),
            "predictor": ([known["identity"]], {identity(predictor) if predictor else ""}),
            "weights of the predictor": ([known["fingerprint"]], {weights}),
        }
        if self.sampling == "same":
            differences["sampling"] = ([content["sampling"]], {sampling})
        for name, (expected, actual) in differences.items():
            if not actual & set(expected):
                raise UserError(
                    f"{file} places full steps for {name} {' or '.join(expected) or 'none'}, but this is "
                    f"{' or '.join(sorted(actual)) or 'none'}; {self._made('make one for it by')}"
                )

    def _steps(self) -> tuple[int, ...]:
        file, content = self._content()
        n, b = self.num_steps, self.num_full_steps
        if content["num_steps"] != n:
            made = self._made("make one by")
            raise UserError(f"{file} is for sampling.num_steps={content['num_steps']}, this is {n}; {made}")
        of_first = {plan["num_full_steps"]: plan["steps"] for plan in content["plans"] if plan["first"] == self.first}
        if b not in of_first:
            known = sorted({plan["first"] for plan in content["plans"]})
            held = f"B = {ranges(sorted(of_first))}" if of_first else f"first = {', '.join(map(str, known))}"
            asked = f"sampling.num_full_steps={b} with accelerator.policy.first={self.first}"
            raise UserError(f"{file} has no placement for {asked}: it holds {held}; {self._made('more come by')}")
        return tuple(of_first[b])

    def _content(self) -> tuple[Path, dict[str, Any]]:
        for path in (self.written, self.bundled):
            if path is not None and Path(path).is_file():
                return Path(path), read_placement(Path(path), version(path))
        places = " and ".join(str(path) for path in (self.written, self.bundled) if path is not None) or "none"
        raise UserError(f"accelerator.policy.written: no placement of full steps at {places}; {self._made('made by')}")

    def _made(self, words: str) -> str:
        name = Path(self.written or "").parent.name
        return f"{words} {placing_command(name, self.accelerator, self.num_steps)}"


@functools.lru_cache(maxsize=16)
def read_placement(path: Path, _version: object) -> dict[str, Any]:
    """Read a file of `write_placement`; UserError for any other, and for one that was changed."""
    content = content_of(path)
    if content is None:
        raise UserError(f"{path} is not a file of migm.place")
    if content.pop("hash", None) != _seal(content) or set(FACTS) - set(content):
        raise UserError(f"{path} is damaged: its content is not what was written; make it again or restore it")
    return content


def content_of(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of `write_placement`, damaged or not; None for any other file."""
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):  # not JSON, not text
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def write_placement(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `Placed` reads, with a hash; `content` has at least the `FACTS`. A plan or a history takes a line."""
    content = {"format": FORMAT, **content}
    lines = [f"{json.dumps(key)}: {_lines(value, 1)}" for key, value in {**content, "hash": _seal(content)}.items()]
    write_atomic(path, "{\n " + ",\n ".join(lines) + "\n}\n")


def _lines(value: Any, depth: int) -> str:
    """Return JSON with a line for each element of lists of groups, and of groups of groups or lists."""
    between = ",\n" + " " * (depth + 1)
    if isinstance(value, dict) and any(isinstance(each, (dict, list)) for each in value.values()):
        parts = [f"{json.dumps(key)}: {_lines(each, depth + 1)}" for key, each in value.items()]
        return "{" + between[1:] + between.join(parts) + "}"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "[" + between[1:] + between.join(map(json.dumps, value)) + "]"
    return json.dumps(value)


def _seal(content: Mapping[str, Any]) -> str:
    return content_hash(json.dumps(content, sort_keys=True))


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending whole numbers in words, as `1, 4 to 8`."""
    return ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in _runs(numbers))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            yield numbers[start], number
            start = i + 1
