"""Muon for the matrices inside the blocks, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers behind one `step`, so that one schedule, checkpoint and callback serve both.

    Muon (Jordan et al. 2024) takes the matrices with `inside` in their names; its update is scaled
    to AdamW's root mean square (`match_rms_adamw`), so both use `lr`.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], inside: str, lr: float, weight_decay: float):
        named = list(named_parameters)
        matrices = [p for n, p in named if p.ndim == 2 and inside in n]
        rest = [p for n, p in named if not (p.ndim == 2 and inside in n)]
        self.parts = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95)),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # The same group dictionaries in all three, so that a schedule reaches the parts.
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
