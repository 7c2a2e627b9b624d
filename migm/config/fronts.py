"""Front files: measured points of a base, quality against speed, from which `speed=` and `quality=` choose.

The file is JSON with a line per point, `migm.tune` writes it; docs/fronts.md describes its keys.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from migm.config.fitting import fitted
from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.kinds import Count, Filled, NotNegative, Positive, Told, Whole
from migm.runtime.reading import read_text

FORMAT = "migm-front/1"
MEASURED, PAPER = "by this program", "from the paper, not measured by us"
KEY = r"(accelerator|sampling)(\.[A-Za-z]\w*)+"
STEPS = ("sampling.num_steps", "sampling.num_full_steps")

Scalar = bool | int | float | str | None
Word = Annotated[str, Told("a name of letters, digits and _", r"\w+")]


@dataclass(frozen=True)
class Vanilla:
    """The reference: the base at each of `num_steps` steps, its value and its milliseconds an image."""

    value: float
    num_steps: Count
    ms: Positive | None = None


@dataclass(frozen=True)
class FrontPoint:
    """A sampler and what it reached.

    `accelerator` is a name of conf/accelerator, `changes` are values of keys below `accelerator.` and `sampling.`; a
    text that begins with ./ is a file beside the front. `num_full_steps` is None where the policy sets B. `speed` is
    vanilla's time over this one's, both on `device`. `n` images in each of `seed_sets` gave `value`.
    """

    accelerator: Word
    num_steps: Count
    num_full_steps: Count | None
    value: float
    speed: Positive
    changes: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    standard_error: NotNegative | None = None
    n: Count | None = None
    seed_sets: list[Whole] = field(default_factory=list)
    device: Filled | None = None
    source: str = ""


@dataclass(frozen=True)
class Front:
    """Points of the base `name`, which has one of the fingerprints `base`.

    `metric` is the name in results, with the number of images. Differences below `resolution`, in its unit, mean
    nothing (None: not known). `about` says how the points came about; its key `measured` is MEASURED or PAPER, and a
    front from a paper has no fingerprints.
    """

    base: list[Filled]
    name: Word
    metric: Filled
    higher_is_better: bool
    resolution: NotNegative | None
    vanilla: Vanilla
    points: list[FrontPoint]
    about: dict[str, Any]

    @property
    def from_paper(self) -> bool:
        """Whether a paper's tables gave the points."""
        return self.about["measured"] == PAPER


def read_front(path: str | Path, key: str = "front") -> Front:
    """Read and check a front file; refusals are one line that begins with `key` and the path.

    Raises FileNotFoundError without a file, UserError for another format, missing or unknown keys, values of another
    type, NaN, a front without points.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{key}={path}: no such file; python -m migm.tune makes one")
    return parsed_front(read_text(Path(path), key), f"{key}={path}")


def write_front(front: Front, path: str | Path) -> None:
    """Replace `path` at once by the front; UserError for values that `read_front` would refuse."""
    text = dumped_front(front)
    parsed_front(text, str(path))
    write_atomic(Path(path), text)


def dumped_front(front: Front) -> str:
    """Return the text of a front file: a line for every key and point."""
    content = {"format": FORMAT, **asdict(front)}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "points"]
    points = ",\n".join(f"  {json.dumps(point)}" for point in content["points"])
    return "{\n" + ",\n".join([*lines, f' "points": [\n{points}\n ]']) + "\n}\n"


def parsed_front(text: str, origin: str) -> Front:
    """Return the front of a file's text; refusals begin with `origin`."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is no front file: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        told = content.get("format", "no format") if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{origin} is no {FORMAT} file: it says {told}")
    del content["format"]
    for key, kind in (("vanilla", dict), ("points", list)):
        if key in content and not isinstance(content[key], kind):
            raise UserError(f"{origin}: {key}={content[key]} must be a {'group of keys' if kind is dict else 'list'}")
    parts = dict(content)
    if "vanilla" in parts:
        parts["vanilla"] = _made(Vanilla, content["vanilla"], f"{origin}: vanilla.")
    if "points" in parts:
        parts["points"] = [_made(FrontPoint, p, f"{origin}: points[{i}].") for i, p in enumerate(content["points"])]
    front: Front = _made(Front, parts, f"{origin}: ")
    _refuse_contradictions(front, origin)
    return front


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _made(kind: Any, content: Any, prefix: str) -> Any:
    """Return a dataclass of a JSON object whose keys and values fit; UserError that begins with `prefix`."""
    if not isinstance(content, dict):
        raise UserError(f"{prefix.removesuffix('.')} must be a group of keys, not {content}")
    known = {each.name: each for each in fields(kind)}
    if unknown := sorted(content.keys() - known.keys()):
        raise UserError(f"{prefix}{unknown[0]} is unknown (known: {', '.join(known)})")
    required = [k for k, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
    if missing := [key for key in required if key not in content]:
        raise UserError(f"{prefix}{missing[0]} is missing")
    hints = get_type_hints(kind, include_extras=True)
    for key, value in content.items():
        if key in ("vanilla", "points"):
            continue
        if fitted(f"{prefix}{key}", value, hints[key]) != value:  # it would take a number for a text
            raise UserError(f"{prefix}{key}={value} must be a text")
    return kind(**content)


def _refuse_contradictions(front: Front, origin: str) -> None:
    """Refuse what no single value shows: an empty front, one for no base, changes of other keys."""
    if not front.points:
        raise UserError(f"{origin}: points is empty")
    if front.about.get("measured") not in (MEASURED, PAPER):
        raise UserError(f"{origin}: about.measured={front.about.get('measured')} must be {MEASURED!r} or {PAPER!r}")
    if front.from_paper == bool(front.base):
        said = "a front from a paper has no fingerprints" if front.base else "no fingerprint of a base"
        raise UserError(f"{origin}: base={front.base}: {said}")
    for i, point in enumerate(front.points):
        where = f"{origin}: points[{i}]"
        if (point.num_full_steps or 0) > point.num_steps:
            raise UserError(f"{where}: num_full_steps={point.num_full_steps} is above num_steps={point.num_steps}")
        for key, value in point.changes.items():
            if not re.fullmatch(KEY, key) or key in STEPS or key == "accelerator.name":
                raise UserError(f"{where}.changes: {key} must be a key below accelerator. or sampling., and not N or B")
            if "${" in json.dumps(value):
                raise UserError(f"{where}.changes: {key}={value} may not refer to other keys")


def refuse_other_base(front: Front, path: str | Path, fingerprint: str, key: str = "front") -> None:
    """UserError unless the front holds for the base with this fingerprint; one from a paper names none."""
    if not front.from_paper and fingerprint not in front.base:
        raise UserError(
            f"{key}={path} holds for the base {front.name} ({', '.join(front.base)}), this base is {fingerprint}; "
            "python -m migm.tune makes a front for it"
        )


def quality(front: Front, value: float) -> float:
    """Return a value's share of vanilla's quality: 1 is as good, more is better.

    It is vanilla / value where lower is better, else value / vanilla. Raises UserError where vanilla's value is not
    above 0, which has no shares. An unbiased distance of 0 or less is beyond all shares.
    """
    reference = front.vanilla.value
    if reference <= 0:
        raise UserError(
            f"quality: {front.metric} of vanilla is {reference:.3g}, and there are no shares of that; choose by speed"
        )
    if front.higher_is_better:
        return value / reference
    return reference / value if value > 0 else float("inf")


def candidates(front: Front) -> list[FrontPoint]:
    """Return vanilla and the points that no other beats in value and speed, fastest first."""
    base, sign = front.vanilla, -1 if front.higher_is_better else 1
    vanilla = FrontPoint("vanilla", base.num_steps, None, base.value, 1.0, source="the front's reference")
    kept: list[FrontPoint] = []
    for point in sorted([*front.points, vanilla], key=lambda p: (-p.speed, sign * p.value)):
        if not kept or sign * point.value < sign * kept[-1].value:
            kept.append(point)
    return kept


TIMES_VARY = 0.01  # repeated times of a point differ by so much, so that 2.99 counts as 3


def choose(front: Front, speed: float | None = None, quality_share: float | None = None) -> FrontPoint:
    """Return the point of the best value that is at least `speed` times as fast and of at least `quality_share`.

    With `quality_share` alone it is the fastest such point, with neither the fastest that is no worse than vanilla
    within the front's resolution. Points that another beats are never chosen. Raises UserError with what is reachable.
    """
    points, sign = candidates(front), -1 if front.higher_is_better else 1
    if speed is None and quality_share is None:
        limit = sign * front.vanilla.value + (front.resolution or 0.0)
        return next(point for point in points if sign * point.value <= limit)
    fast = [p for p in points if speed is None or p.speed >= speed * (1 - TIMES_VARY)]
    good = [p for p in points if quality_share is None or quality(front, p.value) >= quality_share]
    both = [p for p in fast if p in good]
    if both:  # fastest first, so that the last one is the best
        return both[0] if speed is None else both[-1]
    raise UserError(_unreachable(front, speed, quality_share, fast, good, points))


def _unreachable(
    front: Front,
    speed: float | None,
    share: float | None,
    fast: Sequence[FrontPoint],
    good: Sequence[FrontPoint],
    points: Sequence[FrontPoint],
) -> str:
    """Return a line about what the front reaches at best."""
    asked = " ".join(f"{k}={v:g}" for k, v in {"speed": speed, "quality": share}.items() if v is not None)
    start = f"{asked} is beyond the front of {front.name}"
    if not fast:
        return f"{start}: at most {points[0].speed:.3g} times as fast, by {told(front, points[0])}"
    if not good:
        return f"{start}: the best quality is {told(front, points[-1])}"
    return f"{start}: so fast the best is {told(front, fast[-1])}; so good the fastest is {told(front, good[0])}"


def told(front: Front, point: FrontPoint) -> str:
    """Return words for a point: what it is, its value beside vanilla's, its quality and its speed."""
    share = f", quality {quality(front, point.value):.3g}" if front.vanilla.value > 0 else ""
    value = f"{front.metric} {point.value:.3f} (vanilla {front.vanilla.value:.3f}{share})"
    return f"{named(point)}: {value}, {point.speed:.3g} times as fast"


def named(point: FrontPoint) -> str:
    """Return a point's accelerator, N, B and changes, as `taylorseer N=32 policy.interval=5`."""
    steps = {"N": point.num_steps, "B": point.num_full_steps}
    shown: Mapping[str, Any] = {k: v for k, v in steps.items() if v is not None} | {
        key.removeprefix("accelerator."): value for key, value in point.changes.items()
    }
    return " ".join([point.accelerator, *(f"{key}={value}" for key, value in shown.items())])
