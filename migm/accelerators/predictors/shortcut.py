"""The learned predictor: each cheap step advances the features by the shortcut network."""

import copy
from pathlib import Path

from torch import Tensor, nn

from migm.bases.base import Base, Branch
from migm.bases.transformer import PackedAttention
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Dropout, Positive
from migm.shortcuts.checkpoint import load_shortcut


class Shortcut:
    """MIGM-Shortcut (arXiv 2602.23996, section 3).

    `weights` is a file written by `migm.train`, refused unless it was trained for the base it is
    used with, or a published checkpoint; in the latter nothing tells `num_heads`, `rope_theta` and
    `prompt`, by default those of the published network. A module may be given instead (tests,
    previews). `dropout` stays active while sampling, drawn from torch's global generator: the
    paper's Table 1 was measured with 0.1, which is an oversight of its evaluation script
    (docs/originals/maskgit.md, Evaluation with dropout).
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        module: nn.Module | None = None,
        num_heads: Count | None = None,
        rope_theta: Positive | None = None,
        prompt: bool | None = None,
        dropout: Dropout = 0.0,
    ):
        # A copy: the given network may still be in training, in another precision.
        self.weights, self.module = weights, copy.deepcopy(module).eval() if module is not None else None
        self.given, self.dropout = {"num_heads": num_heads, "rope_theta": rope_theta, "prompt": prompt}, dropout
        self._fingerprint = ""
        if self.module is not None and dropout:
            keep_dropout(self.module, dropout)

    def fingerprint(self, base: Base) -> str:
        self._load(base)
        return self._fingerprint

    def start(self, base: Base, branch: Branch) -> "_Advance":
        return _Advance(self._load(base), base, branch)

    def _load(self, base: Base) -> nn.Module:
        if self.module is None:
            key = "accelerator.predictor.weights"
            module, self._fingerprint = load_shortcut(self.weights, base.fingerprint(), key, **self.given)
            if module.config["channels"] != base.spec.channels:
                raise UserError(
                    f"{key}={self.weights} is for features of {module.config['channels']} channels, "
                    f"this base has {base.spec.channels}"
                )
            if self.dropout:
                keep_dropout(module, self.dropout)
            self.module = module
        return self.module


class _Advance:
    features: Tensor

    def __init__(self, module: nn.Module, base: Base, branch: Branch):
        self.module, self.base, self.branch = module, base, branch
        self.ready = False

    def update(self, step: int, features: Tensor) -> None:
        if not self.ready:
            self.module.to(features.device, features.dtype)
            self.ready = True
        self.features = features

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        new = self.base.control(tokens.gather(1, new_positions), new_positions, self.branch)
        self.features = self.module(self.features, new, mask_ratio.repeat(self.branch.copies))
        return self.features


def keep_dropout(module: nn.Module, dropout: float) -> None:
    """Put all dropout of `module`, attention weights included, into its training behaviour."""
    if not any(isinstance(part, nn.Dropout) for part in module.modules()):
        raise UserError(f"accelerator.predictor.dropout={dropout}, but a {type(module).__name__} has none")
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
            part.train()
        elif isinstance(part, PackedAttention):
            part.dropout = dropout
            part.train()
