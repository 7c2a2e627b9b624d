"""Which of the drawn tokens a step keeps."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.kinds import NotNegative
from migm.sampling.draw import DTYPES, DTypeName
from migm.sampling.noise import SELECT, Noise, Step

Rule = Literal["count", "cutoff"]


class Select(Protocol):
    rule: Rule

    def __call__(self, log_prob: Tensor, noise: Noise, step: Step, num_steps: int, positions: Tensor) -> Tensor: ...


class Confidence:
    """log-probability of the drawn token + temperature * Gumbel noise; the highest are kept.

    `anneal` "linear" lowers the temperature to 0 at the last step (MaskGIT), "constant" keeps
    it (Lumina-DiMOO). In float64 ties do not occur in practice; in bfloat16 they are common. Rule `count`
    reveals as many tokens as planned, `cutoff` all that tie with the last of them as well (the original
    Lumina-DiMOO code; one image at a time).
    """

    def __init__(
        self,
        temperature: NotNegative,
        anneal: Literal["linear", "constant"] = "linear",
        dtype: DTypeName = "float64",
        rule: Rule = "count",
    ):
        self.temperature, self.anneal = temperature, anneal
        self.dtype, self.rule = DTYPES[dtype], rule

    def __call__(self, log_prob: Tensor, noise: Noise, step: Step, num_steps: int, positions: Tensor) -> Tensor:
        """Scores (b, k) of the drawn tokens at the masked positions (b, k)."""
        left = 1 - step / max(num_steps - 1, 1) if self.anneal == "linear" else 1.0
        gumbel = noise.gumbel(SELECT, step, positions, dtype=self.dtype)
        return log_prob.to(self.dtype) + self.temperature * left * gumbel


class Random:
    """A random subset, whatever the model believes: the baseline of confidence selection."""

    rule: Rule = "count"

    def __call__(self, log_prob: Tensor, noise: Noise, step: Step, num_steps: int, positions: Tensor) -> Tensor:
        return noise.uniform(SELECT, step, positions)


def split(scores: Tensor, positions: Tensor, count: int, rule: Rule = "count") -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best-scoring entries -> their indices (b, count), their positions, and the positions left.

    All come in ascending order of position, as `positions` (b, k) do. By rule `cutoff` there may be more of them.
    """
    left = scores.shape[1] - count
    stay = _below(scores, left) if rule == "cutoff" else _lowest(scores, left)
    if rule == "cutoff":
        left = int(stay.sum())
    order = stay.to(torch.int8).sort(dim=1, stable=True).indices
    chosen, rest = order[:, : scores.shape[1] - left], order[:, scores.shape[1] - left :]
    return chosen, positions.gather(1, chosen), positions.gather(1, rest)


def without(positions: Tensor, some: Tensor, num_tokens: int) -> Tensor:
    """The ascending positions (b, k) of 0...num_tokens-1 less `some` (b, m) of them: (b, k - m), ascending."""
    gone = torch.zeros(len(positions), num_tokens, dtype=torch.int8, device=positions.device).scatter(1, some, 1)
    order = gone.gather(1, positions).sort(dim=1, stable=True).indices
    return positions.gather(1, order[:, : positions.shape[1] - some.shape[1]])


def _lowest(scores: Tensor, left: int) -> Tensor:
    lowest = scores.topk(left, largest=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, lowest, True)


def _below(scores: Tensor, left: int) -> Tensor:
    if len(scores) > 1:
        raise UserError("sampling.select.rule=cutoff works on one image at a time; set the batch size to 1")
    return scores < scores.sort(dim=1).values[:, [min(left, scores.shape[1] - 1)]]


def mask_ratio(masked: Tensor, num_tokens: int) -> Tensor:
    """Share of the image still masked (b,), 1 = all; masked positions (b, k)."""
    return torch.full(masked.shape[:1], masked.shape[1] / num_tokens, device=masked.device)
