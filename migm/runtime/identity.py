"""Name parts by their identity, the text by which results, stores and checkpoints tell configurations apart.

A part is a frozen dataclass. Its identity is the name of its class and the parameters that differ from their defaults.
So a moved file or a new parameter with a neutral default does not change it. Never change a default: results measured
with the old value would count as measured with the new one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from migm.runtime.errors import UserError


def identity(part: Any, *leave_out: str) -> str:
    """Return `Name(parameter=value, ...)` of a part and of the parts inside it, without the parameters `leave_out`.

    Fields with `compare=False` do not count: files, whose content has its own fingerprint. Raises UserError for an
    object that is not a dataclass.
    """
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        raise UserError(f"{type(part).__name__} must be a dataclass: its name and fields are its identity in results")
    fields = [field for field in dataclasses.fields(part) if field.compare and field.name not in leave_out]
    texts = {field.name: _text(getattr(part, field.name)) for field in fields}
    shown = [f"{field.name}={texts[field.name]}" for field in fields if texts[field.name] != _text(_default(field))]
    return f"{type(part).__name__}({', '.join(shown)})"


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _text(value: Any) -> str:
    """Return a value as text, independent of how a config wrote it: 3 and 3.0 are the same."""
    if dataclasses.is_dataclass(value):
        return identity(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_text(each)}' for key, each in sorted(value.items()))}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
