"""Go on with the W&B run of a resumed training."""

from collections.abc import Mapping
from typing import Any


def going_on(logger: Mapping[str, Any], run: str | None) -> dict[str, Any]:
    """Return a config's `logger` that goes on with the W&B run of this id, unless the config names a run."""
    if "wandb" not in logger:
        return dict(logger)
    node = dict(logger["wandb"])
    if node.get("offline"):  # Lightning sets only a variable, which W&B reads when its process begins
        node.setdefault("mode", "offline")
    if run is not None and not node.get("id") and not node.get("version"):
        node |= {"id": run, "resume": "allow"}
    return {**logger, "wandb": node}
