"""Learning-rate schedules that torch does not have."""

from typing import Annotated

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from migm.runtime.kinds import Count, Limits


def trapezoid(
    optimizer: Optimizer, total_steps: Count, warmup_steps: Count, decay: Annotated[float, Limits(above=0, most=1)]
) -> LambdaLR:
    """Schedule a linear warm-up, a plateau, and a linear fall to zero over the last `decay` share of the steps."""

    def factor(step: int) -> float:
        return min((step + 1) / warmup_steps, 1.0, max(total_steps - step, 0) / (decay * total_steps))

    return LambdaLR(optimizer, factor)
