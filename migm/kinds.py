"""What a value of a config may be: kinds for annotations, and the refusal of what an annotation does not allow.

A refusal is one line with the key, the value and what is allowed. Python callers of a class are not held to its
annotations here: what they pass is a matter for their type checker.
"""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from migm.runtime import UserError


class Bound(Protocol):
    """What `Annotated` says of a value besides its type."""

    def allows(self, value: Any) -> bool: ...

    def words(self, name: str) -> str:
        """What is allowed, `name` being words for the type."""
        ...


@dataclass(frozen=True)
class Limits:
    """Between which numbers a number lies."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def allows(self, value: Any) -> bool:
        enough = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return enough and (self.most is None or value <= self.most) and (self.below is None or value < self.below)

    def words(self, name: str) -> str:
        if self.least is not None and self.most is not None:
            return f"{name} from {self.least} to {self.most}"
        said = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return f"{name} {' and '.join(f'{word} {limit}' for word, limit in said.items() if limit is not None)}"


@dataclass(frozen=True)
class Length:
    """How many elements a list or characters a text has."""

    least: int = 1
    most: int | None = None

    def allows(self, value: Any) -> bool:
        return len(value) >= self.least and (self.most is None or len(value) <= self.most)

    def words(self, name: str) -> str:
        return f"{name}, {'not empty' if self.least == 1 else f'{self.least} or more'}"


@dataclass(frozen=True)
class Told:
    """Words of its own for what is allowed, and a pattern that a text has to match."""

    told: str
    pattern: str = ""

    def allows(self, value: Any) -> bool:
        return not self.pattern or re.fullmatch(self.pattern, value) is not None

    def words(self, name: str) -> str:
        return self.told


GROUP = "a group of keys with a _target_"
POINT = "N, or [N, B], as whole numbers, or {num_steps: N, num_full_steps: B, key: value} with keys of the accelerator"
LATENCY = "batch<b>_amortised with any b or batch1_wall, and either with _decode at its end to include decoding"

Whole = Annotated[int, Limits(least=0)]
Count = Annotated[int, Limits(least=1)]
Seed = Annotated[int, Limits(least=0, most=2**32 - 1)]  # what scikit-learn takes; its sums and products fit 64 bits
Threads = Annotated[int, Limits(least=1, most=4096)]
NotNegative = Annotated[float, Limits(least=0)]
Positive = Annotated[float, Limits(above=0)]
Share = Annotated[float, Limits(least=0, most=1)]
Dropout = Annotated[float, Limits(least=0, below=1)]
Filled = Annotated[str, Length()]
# Stages of pretraining, in the order in which they need each other.
Stage = Literal["perceptual", "features", "tokenizer", "base", "reference", "words", "text_base"]
Component = Annotated[Any, Told(GROUP)]
PointEntry = Annotated[Count | Annotated[list[Count], Length(2, 2)] | dict[str, Any], Told(POINT)]
Latency = Annotated[str, Told(LATENCY, r"(batch[1-9]\d{0,8}_amortised|batch1_wall)(_decode)?")]

LISTS, GROUPS, TEXTS = (list, tuple, Sequence), (dict, Mapping), (str, Path)
NAMES: dict[Any, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


class _Misfit(Exception):
    """A value is not of one kind that an annotation allows; it may be of another."""


def fitted(path: str, value: Any, hint: Any) -> Any:
    """The value at the key `path`, a number as text where only a text may be; UserError where `hint` does not allow it.

    What is neither a plain type nor made of plain ones is a component, which a config gives by its `_target_`.
    """
    options, inside = list(_options(hint)), None
    for option in sorted(options, key=lambda one: _parts(one)[0] in TEXTS):  # a number stays one where it may
        try:
            return _one(path, value, option)
        except _Misfit:
            continue
        except UserError as error:  # of an element: it says more
            inside = error
    raise inside or UserError(f"{path}={shown(value)} {_allowed(value, hint)}")


def _options(hint: Any) -> Iterator[Any]:
    """The members of a union, those of unions in it too."""
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(inner) not in (Union, UnionType):
        yield hint
        return
    for option in get_args(inner):
        yield from _options(option)


def _parts(option: Any) -> tuple[Any, tuple[Any, ...], list[Bound]]:
    """The kind that an annotation is of, its arguments, and its bounds."""
    bounds: list[Bound] = []
    if get_origin(option) is Annotated:
        option, *bounds = get_args(option)
    return get_origin(option) or option, get_args(option), bounds


def _one(path: str, value: Any, option: Any) -> Any:
    """The value as this one kind, or `_Misfit`; UserError where an element is at fault."""
    kind, args, bounds = _parts(option)
    number = _is_number(value)
    if number and kind in (*TEXTS, Literal):
        value = str(value)
    if kind in (int, float):
        largest = 2**63 - 1 if kind is int else sys.float_info.max
        fits = number and (kind is float or isinstance(value, int)) and -largest <= value <= largest  # which NaN is not
    elif kind is Literal:
        named = {str(one): one for one in args}
        fits = isinstance(value, str) and value in named
        value = named[value] if fits else value
    elif kind in TEXTS:
        fits = isinstance(value, str)
    elif kind in (bool, NoneType):
        fits = isinstance(value, kind)
    elif kind in LISTS:
        fits = isinstance(value, list)
        value = [fitted(f"{path}[{i}]", one, args[0]) for i, one in enumerate(value)] if fits and args else value
    elif kind in GROUPS:
        fits = isinstance(value, dict)
        value = {key: fitted(f"{path}.{key}", one, args[1]) for key, one in value.items()} if fits and args else value
    else:
        # `Component` is no bare Any
        fits = option is Any or isinstance(kind, TypeVar) or (isinstance(value, dict) and "_target_" in value)
    if not fits or not all(bound.allows(value) for bound in bounds):
        raise _Misfit
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _allowed(value: Any, hint: Any) -> str:
    """The end of a refusal: what the value may be instead."""
    options = list(_options(hint))
    if {_parts(option)[0] for option in options} in ({Literal}, {Literal, NoneType}):
        known = {shown(one) for option in options for one in get_args(option) or [None]}
        return f"is unknown{nearest(shown(value), known)}"
    huge = isinstance(value, int) and abs(value) >= 2**63
    return f"must be {_words(hint)}{', of at most 64 bits' if huge else ''}"


def _words(hint: Any) -> str:
    """What an annotation allows; a text that may be a path is called that."""
    kind, args, bounds = _parts(hint)
    options = list(_options(hint))
    if len(options) > 1:
        told = [bound.words("") for bound in bounds if isinstance(bound, Told)]
        return " or ".join(told or [_words(option) for option in options if option is not str or Path not in options])
    if kind is Literal:
        name = f"one of {', '.join(map(shown, args))}"
    elif kind in LISTS:
        name = f"a list, each {_words(args[0])}" if args else "a list"
    else:
        name = "a group of keys" if kind in GROUPS else NAMES.get(kind, GROUP)
    for bound in bounds:
        name = bound.words(name)
    return name


def shown(value: Any) -> str:
    """A value as a config would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def nearest(word: str, options: Iterable[str]) -> str:
    """The end of an error about a word that is none of the options: what may be meant, and all of them."""
    known = sorted(options)
    close = difflib.get_close_matches(word, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"
