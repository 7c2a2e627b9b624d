"""Checks the annotated shapes, dtypes and types of the contracts wherever a test goes through them.

Imported by tests/conftest.py before any module of migm, which are compiled with the checks in them. What a test
starts as another process runs unchecked, as in production.
"""

import sys
from collections.abc import Callable
from typing import Any, get_args

# While a checked module is imported, jaxtyping misses the compiled files of all that it imports: twelve seconds for
# the large libraries, so that they come first.
import diffusers.models.autoencoders.vq_model  # noqa: F401
import lightning  # noqa: F401
import torchmetrics  # noqa: F401
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook, jaxtyped

CHECKED = (
    "migm.accelerators.accelerator",
    "migm.accelerators.order",
    "migm.accelerators.predictor",
    "migm.accelerators.runs",
    "migm.bases.amused",
    "migm.bases.base",
    "migm.bases.decoding",
    "migm.bases.dimoo",
    "migm.bases.layers",
    "migm.bases.maskgit",
    "migm.bases.tokenizer",
    "migm.bases.vqgan",
    "migm.metrics.metric",
    "migm.sampling.draw",
    "migm.sampling.guidance",
    "migm.sampling.loop",
    "migm.sampling.noise",
    "migm.sampling.sampler",
    "migm.sampling.select",
    "migm.shortcuts.dimoo",
    "migm.shortcuts.losses",
    "migm.shortcuts.maskgit",
    "migm.shortcuts.parts",
    "migm.trajectories.dataset",
    "migm.training.objective",
    "migm.training.rollout",
)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A typechecker for jaxtyping: beartype, by which an int is a float as well, and anything fits a protocol."""
    hints = function.__annotations__
    function.__annotations__ = {name: Any if has_protocol(hint) else hint for name, hint in hints.items()}
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))


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
