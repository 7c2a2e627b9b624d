"""Checks the annotated shapes, dtypes and types of the contracts wherever a test goes through them.

Imported by tests/shared_fixtures.py before any module of migm; those that annotate shapes are compiled with the checks
in them. What a test starts as another process runs unchecked, as in production.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

# While a checked module is imported, jaxtyping misses the compiled files of all that it imports: twelve seconds for
# the large libraries, so that they come first.
import diffusers.models.autoencoders.vq_model  # noqa: F401
import lightning  # noqa: F401
import torchmetrics  # noqa: F401
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook, jaxtyped
from torch import Tensor

PACKAGE = Path(__file__).parents[1] / "migm"
ANNOTATED = re.compile(r"^from (jaxtyping|migm\.runtime\.shapes) import ", re.MULTILINE)
CHECKED = (
    "migm.accelerators.accelerator",  # annotates no shapes, but what it is made of
    *(
        ".".join(("migm", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in sorted(PACKAGE.rglob("*.py"))
        if ANNOTATED.search(path.read_text(encoding="utf-8")) and path.stem != "shapes"
    ),
)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A typechecker for jaxtyping: beartype, by which an int is a float as well, and anything fits a protocol.

    What it says is a function of the forms of the arguments, so that a form is checked once: the checks took more
    time than the tests.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: Any if has_protocol(hint) else hint for name, hint in hints.items()}
    check = beartype(function, conf=BeartypeConf(is_pep484_tower=True))
    sizes = [repr(hint) for hint in hints.values()]
    if any("{self" in size for size in sizes):
        return check
    deep, passed = any("{" in size for size in sizes), set()

    def checked_once(*args: Any, **kwargs: Any) -> None:
        seen = form(args, deep), form(kwargs, deep)
        if seen not in passed:
            check(*args, **kwargs)
            passed.add(seen)

    return checked_once


def form(value: Any, deep: bool) -> Any:
    """All that a check may look at; `deep`: also fields of dataclasses, which sizes in braces are read from."""
    kind = type(value)
    if isinstance(value, Tensor):
        return kind, value.dtype, value.shape
    if value is None or kind in (bool, int, str):
        return kind, value
    if isinstance(value, tuple | list):
        return kind, *[form(item, deep) for item in value]
    if isinstance(value, dict):
        return kind, *[(form(key, deep), form(item, deep)) for key, item in value.items()]
    if deep and is_dataclass(value):
        return kind, form(vars(value), deep)
    return value if isinstance(value, type) else kind


def has_protocol(hint: Any) -> bool:
    return getattr(hint, "_is_protocol", False) or any(map(has_protocol, get_args(hint)))


def check_fields(*kinds: Any) -> None:
    """Check the fields of these named tuples where one is made; jaxtyping does so for dataclasses alone."""
    for kind in kinds:
        kind.__new__ = jaxtyped(kind.__new__, typechecker=checked)


early = [name for name in CHECKED if name in sys.modules]
if early:
    raise RuntimeError(f"imported before the tests could check them: {', '.join(early)}")
install_import_hook(CHECKED, "shape_checks.checked")
