"""The learned predictor: each cheap step advances the features by the shortcut network."""

import copy
from pathlib import Path

from torch import Tensor, nn

from migm.bases.base import Base, Branch
from migm.shortcuts.checkpoint import load_shortcut


class Shortcut:
    """MIGM-Shortcut (arXiv 2602.23996, section 3).

    `weights` is a file written by `migm.train`; a module may be given instead (tests, previews).
    It is refused unless it was trained for the base it is used with.
    """

    def __init__(self, weights: str | Path | None = None, module: nn.Module | None = None):
        # A copy: the given network may still be in training, in another precision.
        self.weights, self.module = weights, copy.deepcopy(module).eval() if module is not None else None
        self._fingerprint = ""

    def fingerprint(self, base: Base) -> str:
        self._load(base)
        return self._fingerprint

    def start(self, base: Base, branch: Branch) -> "_Advance":
        return _Advance(self._load(base), base, branch)

    def _load(self, base: Base) -> nn.Module:
        if self.module is None:
            self.module, self._fingerprint = load_shortcut(
                self.weights, base.fingerprint(), "accelerator.predictor.weights"
            )
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
