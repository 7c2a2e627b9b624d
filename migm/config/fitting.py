"""Fit a config's value to an annotation, or refuse it in one line with the key."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from migm.runtime.errors import UserError, nearest
from migm.runtime.kinds import Bound, Count, Length, Told

GROUP = "a group of keys with a _target_"
POINT = "N, or [N, B], as whole numbers, or {num_steps: N, num_full_steps: B, key: value} with keys of the accelerator"
Component = Annotated[Any, Told(GROUP)]
PointEntry = Annotated[Count | Annotated[list[Count], Length(2, 2)] | dict[str, Any], Told(POINT)]
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
    """Raised when a value does not fit one option of an annotation; another option may fit."""


def fitted(path: str, value: Any, hint: Any) -> Any:
    """Return the value at the key `path`, a number as text where only a text is allowed; UserError if `hint` forbids.

    An annotation that is not made of plain types stands for a component, which a config describes by its `_target_`.
    """
    options, inside = list(_options(hint)), None
    # Texts come last, so that a number stays a number where that is allowed
    for option in sorted(options, key=lambda candidate: _parts(candidate)[0] in TEXTS):
        try:
            return _as_option(path, value, option)
        except _Misfit:
            continue
        except UserError as error:  # the error of an element says more than ours
            inside = error
    raise inside or UserError(f"{path}={shown(value)} {_allowed(value, hint)}")


def _options(hint: Any) -> Iterator[Any]:
    """Yield the members of a union, including those of unions inside it."""
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(inner) not in (Union, UnionType):
        yield hint
        return
    for option in get_args(inner):
        yield from _options(option)


def _parts(option: Any) -> tuple[Any, tuple[Any, ...], list[Bound]]:
    """Return the type of an annotation, its arguments and its bounds."""
    bounds: list[Bound] = []
    if get_origin(option) is Annotated:
        option, *bounds = get_args(option)
    return get_origin(option) or option, get_args(option), bounds


def _as_option(path: str, value: Any, option: Any) -> Any:
    """Return the value as this one option, else raise `_Misfit`; UserError if an element does not fit."""
    kind, args, bounds = _parts(option)
    number = _is_number(value)
    if number and kind in (*TEXTS, Literal):
        value = str(value)
    if kind in (int, float):
        largest = 2**63 - 1 if kind is int else sys.float_info.max
        # NaN does not pass the comparisons
        fits = number and (kind is float or isinstance(value, int)) and -largest <= value <= largest
    elif kind is Literal:
        named = {str(literal): literal for literal in args}
        fits = isinstance(value, str) and value in named
        value = named[value] if fits else value
    elif kind in TEXTS:
        fits = isinstance(value, str)
    elif kind in (bool, NoneType):
        fits = isinstance(value, kind)
    elif kind in LISTS:
        fits = isinstance(value, list)
        if fits and args:
            value = [fitted(f"{path}[{i}]", element, args[0]) for i, element in enumerate(value)]
    elif kind in GROUPS:
        fits = isinstance(value, dict)
        if fits and args:
            value = {key: fitted(f"{path}.{key}", element, args[1]) for key, element in value.items()}
    else:
        # `Component` is Annotated, not a bare Any
        fits = option is Any or isinstance(kind, TypeVar) or (isinstance(value, dict) and "_target_" in value)
    if not fits or not all(bound.allows(value) for bound in bounds):
        raise _Misfit
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _allowed(value: Any, hint: Any) -> str:
    """Return the end of a refusal: which values are allowed."""
    options = list(_options(hint))
    if {_parts(option)[0] for option in options} in ({Literal}, {Literal, NoneType}):
        names = {shown(literal) for option in options for literal in get_args(option) or [None]}
        return f"is unknown{nearest(shown(value), names)}"
    huge = isinstance(value, int) and abs(value) >= 2**63
    return f"must be {_words(hint)}{', of at most 64 bits' if huge else ''}"


def _words(hint: Any) -> str:
    """Return words for the values that an annotation allows; a text that may be a path is called a path."""
    kind, args, bounds = _parts(hint)
    options = list(_options(hint))
    if len(options) > 1:
        descriptions = [bound.words("") for bound in bounds if isinstance(bound, Told)]
        each = [_words(option) for option in options if option is not str or Path not in options]
        return " or ".join(descriptions or each)
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
    """Return a value as a config would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
