"""Learning-rate schedules that torch does not have."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from migm.runtime import UserError


def trapezoid(optimizer: Optimizer, total_steps: int, warmup_steps: int, decay: float) -> LambdaLR:
    """Linear warm-up, a plateau, and a linear fall to zero over the last `decay` share of the steps."""

    if warmup_steps < 1 or not 0 < decay <= 1:
        raise UserError(
            f"lr_schedule.warmup_steps={warmup_steps} must be at least 1, lr_schedule.decay={decay} in (0, 1]"
        )

    def factor(step: int) -> float:
        return min((step + 1) / warmup_steps, 1.0, max(total_steps - step, 0) / (decay * total_steps))

    return LambdaLR(optimizer, factor)
