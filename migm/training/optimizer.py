"""Optimise the matrices inside the blocks by Muon and the rest by AdamW, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from migm.runtime.device import pick_dtype
from migm.runtime.kinds import NotNegative


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024), with its Newton-Schulz iteration in bfloat16 only where that is faster.

    Torch's Muon uses bfloat16 everywhere; on CPUs without fast bfloat16 it takes longer than the rest of a training
    step. The update is scaled to AdamW's root mean square (`match_rms_adamw`). On CUDA all matrices of a size are
    updated together, since starting so many small kernels takes longer than running them.
    """

    def __init__(self, params: Iterable[Parameter], lr: float, weight_decay: float):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[Any, list[Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(together(p), []).append(p)
            for matrices in alike.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Parameter], group: dict[str, Any]) -> None:
        """Update matrices of one shape and precision."""
        lists: Any = torch  # its functions of lists are not typed
        for p in matrices:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)  # type: ignore[arg-type]
        gradients: list[Any] = [p.grad for p in matrices]
        momenta = [self.state[p]["momentum_buffer"] for p in matrices]
        lists._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch.stack(lists._foreach_lerp(gradients, momenta, group["momentum"]))
        change = orthogonal(ahead.to(pick_dtype("auto", ahead.device)), group).to(ahead.dtype)
        lists._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(ahead.shape[1:]) ** 0.5
        lists._foreach_add_(matrices, change.unbind(0), alpha=-group["lr"] * size)


def together(p: Parameter) -> Any:
    """Return a key that matrices share which are updated together."""
    return (p.shape, p.dtype) if p.is_cuda else p


def orthogonal(matrices: Float[Tensor, "_ rows columns"], group: dict[str, Any]) -> Float[Tensor, "_ rows columns"]:
    """Return the matrices with singular values of about 1 (0.5 to 1.5), by Newton-Schulz steps of a parameter group."""
    a, b, c = group["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
        self.by_adamw = rest
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
