"""Check before a training what its settings would lead to."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.lr_scheduler import LambdaLR

from migm.runtime.errors import UserError

LITTLE = 0.5  # a smaller share of the learning rate, or a larger share of first weights, is worth a remark
LOOKED_AT = 1000  # number of steps at which a schedule is evaluated


def check_course(
    configured: Mapping[str, Any], callbacks: Mapping[str, L.Callback], config: Mapping[str, Any], max_steps: int
) -> str:
    """Refuse averaged weights that are never updated; return a remark if the training is too short, else "".

    `configured` is the result of the module's `configure_optimizers`; `config` is the config of `callbacks`, the only
    source of the decay.
    """
    remarks, reached = [], _rate(configured["lr_scheduler"]["scheduler"], max_steps)
    if reached < LITTLE:
        remarks.append(f"the learning rate reaches {reached:.0%} of optimizer.lr (lr_schedule)")
    for key, callback in callbacks.items():
        if isinstance(callback, EMAWeightAveraging):
            first = _share_of_first(callback, f"callbacks.{key}", config[key].get("decay", 0.999), max_steps)
            if first > LITTLE:
                remarks.append(f"{first:.0%} of the saved weights are those of the first update (callbacks.{key})")
    return f"trainer.max_steps={max_steps} is short: {', and '.join(remarks)}" if remarks else ""


def _rate(schedule: Any, max_steps: int) -> float:
    """Return the largest share of the learning rate that a schedule of factors reaches; 1 for other schedules."""
    if not isinstance(schedule, LambdaLR):
        return 1.0
    steps = range(0, max_steps, max(1, max_steps // LOOKED_AT))
    return max(factor(step) for factor in schedule.lr_lambdas for step in steps)


def _share_of_first(averaging: EMAWeightAveraging, key: str, decay: float, max_steps: int) -> float:
    """Return the share of the first update in the averaged weights; no update at all is refused."""
    every, start = averaging.update_every_n_steps, averaging.update_starting_at_step or 0
    updates = len(range(-(-start // every) * every, max_steps, every)) if every > 0 else 0
    # the number of epochs decides whether there are updates
    if not updates and averaging.update_starting_at_epoch is not None:
        return 0.0
    if not updates:
        raise UserError(
            f"{key}.update_starting_at_step={start}, {key}.update_every_n_steps={every}: the averaged weights would "
            f"not be updated once in trainer.max_steps={max_steps}, and untrained ones be saved; begin earlier"
        )
    return decay ** (updates - 1)
