"""Which of the drawn tokens a step keeps."""

from typing import Literal

import torch
from torch import Tensor

from migm.sampling.noise import SELECT, Noise, Step


class Confidence:
    """log-probability of the drawn token + temperature * Gumbel noise; the highest are kept.

    `anneal` "linear" lowers the temperature to 0 at the last step (MaskGIT), "constant" keeps
    it (Lumina-DiMOO). Scores are float64, so ties do not occur in practice.
    """

    def __init__(self, temperature: float, anneal: Literal["linear", "constant"] = "linear"):
        if anneal not in ("linear", "constant"):
            raise ValueError(f"sampling.select.anneal={anneal} is unknown; one of linear, constant")
        self.temperature, self.anneal = temperature, anneal

    def __call__(self, log_prob: Tensor, noise: Noise, step: Step, num_steps: int, positions: Tensor) -> Tensor:
        """Scores (b, k) of the drawn tokens at the masked positions (b, k)."""
        left = 1 - step / max(num_steps - 1, 1) if self.anneal == "linear" else 1.0
        return log_prob.double() + self.temperature * left * noise.gumbel(SELECT, step, positions)


class Random:
    """A random subset, whatever the model believes: the baseline of confidence selection."""

    def __call__(self, log_prob: Tensor, noise: Noise, step: Step, num_steps: int, positions: Tensor) -> Tensor:
        return noise.uniform(SELECT, step, positions)


def split(scores: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best-scoring entries -> their indices (b, count), and the positions left (b, k - count).

    Both come in ascending order of position, as `positions` (b, k) do.
    """
    order = scores.argsort(dim=1, descending=True)
    chosen = order[:, :count].sort(dim=1).values
    rest = order[:, count:].sort(dim=1).values
    return chosen, positions.gather(1, chosen), positions.gather(1, rest)


def mask_ratio(masked: Tensor, num_tokens: int) -> Tensor:
    """Share of the image still masked (b,), 1 = all; masked positions (b, k)."""
    return torch.full(masked.shape[:1], masked.shape[1] / num_tokens, device=masked.device)
