"""Optimise the matrices inside the blocks by Muon and the rest by AdamW, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from migm.runtime.device import pick_dtype
from migm.runtime.kinds import NotNegative


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024), with its Newton-Schulz iteration in bfloat16 only where that is faster.

    Torch's Muon uses bfloat16 everywhere; on CPUs without fast bfloat16 it takes longer than the rest of a training
    step. The update is scaled to AdamW's root mean square (`match_rms_adamw`).
    """

    def __init__(self, params: Iterable[Parameter], lr: float, weight_decay: float):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(momentum, group["momentum"]).to(pick_dtype("auto", p.device))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonal(ahead, group), alpha=-group["lr"] * (0.2 * max(p.shape) ** 0.5))


def orthogonal(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the matrix with singular values of about 1 (0.5 to 1.5), by Newton-Schulz steps of a parameter group."""
    a, b, c = group["ns_coefficients"]
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers behind one `step`, so that one schedule, checkpoint and callback serve both.

    Muon takes the matrices with `inside` in their names; both use `lr`. One that would have no parameters is left out.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, Parameter]], inside: str, lr: NotNegative, weight_decay: NotNegative
    ):
        named = list(named_parameters)
        matrices = [p for n, p in named if p.ndim == 2 and inside in n]
        rest = [p for n, p in named if not (p.ndim == 2 and inside in n)]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices or not rest:  # torch refuses an optimizer of nothing
            self.parts.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95)))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # All three optimizers share the group dictionaries, so that a schedule reaches both parts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
