"""Whether the values of a config are of the kind that a constructor's annotations ask for."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from migm.runtime import UserError

PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,), Path: (str,)}


def check_kinds(path: str, target: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse a number where a text belongs and the like, and null where nothing says that it may be.

    Only what is annotated by plain types is looked at closely; what components are given, they check themselves.
    """
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for key, parameter in inspect.signature(target).parameters.items():
        if key not in given or key not in hints or (parameter.default is None and given[key] is None):
            continue
        options, value = _options(hints[key]), given[key]
        if value is None:
            fits = Any in options or NoneType in options
        else:
            fits = any(_fits(value, option) for option in options)
        if not fits:
            names = " or ".join("null" if o is NoneType else getattr(o, "__name__", str(o)) for o in options)
            raise UserError(f"{path}.{key}={value} must be {names}")


def _options(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


def _fits(value: Any, option: Any) -> bool:
    if get_origin(option) is Literal or option not in PLAIN:
        return option is not NoneType
    return isinstance(value, PLAIN[option]) and (option is bool or not isinstance(value, bool))
