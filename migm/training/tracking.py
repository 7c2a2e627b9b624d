"""The run in W&B that a training goes on with."""

from collections.abc import Mapping
from typing import Any


def going_on(logger: Mapping[str, Any], run: str | None) -> dict[str, Any]:
    """A config's `logger` whose training goes on with the W&B run of this id, unless it names one itself."""
    if "wandb" not in logger:
        return dict(logger)
    node = dict(logger["wandb"])
    if node.get("offline"):  # Lightning says so by a variable, which W&B reads only when a process begins with it
        node.setdefault("mode", "offline")
    if run is not None and not node.get("id") and not node.get("version"):
        node |= {"id": run, "resume": "allow"}
    return {**logger, "wandb": node}
