"""Files of placed full steps, as tests need them, for policies that read one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migm.accelerators.placed import write_placement
from migm.accelerators.refresh import Uniform


def is_placed(accelerator: str) -> bool:
    """Whether an accelerator of conf/accelerator reads its full steps from a file."""
    return accelerator.endswith("_placed")


def write_placed(folder: Path, accelerator: str, num_steps: int, budgets: Iterable[int], **about: Any) -> Path:
    """Write uniform full steps where a `*_placed` accelerator of the run in `folder` looks -> the file."""
    path = folder / f"placement_{accelerator.removesuffix('_placed')}_n{num_steps}.json"
    plans = [{"num_full_steps": b, "first": 1, "steps": Uniform(b).steps(num_steps)} for b in budgets]
    unknown = {"base": [], "sampling": "", "predictor": {"identity": "", "fingerprint": ""}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_placement(path, {**unknown, "num_steps": num_steps, "plans": plans, **about})
    return path
