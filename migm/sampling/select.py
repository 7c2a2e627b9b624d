"""Choose which of the drawn tokens a step reveals."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.kinds import NotNegative
from migm.runtime.shapes import Positions
from migm.sampling.draw import DTYPES, DTypeName
from migm.sampling.noise import SELECT, Noise, Step

Rule = Literal["count", "cutoff"]
Anneal = Literal["linear", "constant", "remaining", "compounding"]


class Select(Protocol):
    @property
    def rule(self) -> Rule: ...

    def __call__(
        self, log_prob: Float[Tensor, "b k"], noise: Noise, step: Step, num_steps: int, positions: Positions
    ) -> Float[Tensor, "b k"]: ...


@dataclass(frozen=True)
class Confidence:
    """Score by the log-probability of the drawn token + temperature * Gumbel noise; the highest scores are kept.

    The temperature is lowered by `annealed`: "linear" for MaskGIT, "constant" for Lumina-DiMOO. In float64 ties do not
    occur in practice; in bfloat16 they are common. Rule `count` reveals as many tokens as planned. Rule `cutoff` also
    reveals all that tie with the last of these, as the original Lumina-DiMOO and MMaDA code does; it works on one image
    at a time.
    """

    temperature: NotNegative
    anneal: Anneal = "linear"
    dtype: DTypeName = "float64"
    rule: Rule = "count"
    last: NotNegative = 0.0  # the temperature at the last step, with "linear"

    def __post_init__(self) -> None:
        if self.last and self.anneal != "linear":
            raise UserError(f"sampling.select.last={self.last} needs anneal=linear, not anneal={self.anneal}")

    def __call__(
        self, log_prob: Float[Tensor, "b k"], noise: Noise, step: Step, num_steps: int, positions: Positions
    ) -> Float[Tensor, "b k"]:
        """Return scores of the drawn tokens at the masked positions."""
        gumbel = noise.gumbel(SELECT, step, positions, dtype=DTYPES[self.dtype])
        temperature = self.last + annealed(self.temperature - self.last, self.anneal, step, num_steps)
        return log_prob.to(gumbel.dtype) + temperature * gumbel


def annealed(temperature: float, anneal: Anneal, step: Step, num_steps: int) -> float | Float[Tensor, "b 1"]:
    """Return the temperature of a step k = 0...N-1; all but "constant" end at 0.

    "linear" is 1 - k / (N - 1) of it, "remaining" 1 - (k + 1) / N, the share of steps that are left. "compounding" is
    the product of "remaining" over the steps until then: MMaDA's code scales what it has scaled before, so that it
    falls to a third in a quarter of the steps (docs/originals/mmada.md, Temperature).
    """
    if anneal == "constant":
        return temperature
    if anneal == "linear":
        return temperature * (1 - step / max(num_steps - 1, 1))
    if anneal == "remaining":
        return temperature * (1 - (step + 1) / num_steps)
    if isinstance(step, Tensor):
        shares = 1 - torch.arange(1, num_steps + 1, dtype=torch.float64, device=step.device) / num_steps
        return temperature * shares.cumprod(0)[step]
    for k in range(step + 1):
        temperature *= 1 - (k + 1) / num_steps
    return temperature


@dataclass(frozen=True)
class Random:
    """Select a random subset, independent of the model: the baseline of confidence selection."""

    rule: ClassVar[Rule] = "count"

    def __call__(
        self, log_prob: Float[Tensor, "b k"], noise: Noise, step: Step, num_steps: int, positions: Positions
    ) -> Float[Tensor, "b k"]:
        return noise.uniform(SELECT, step, positions)


def revealed(
    scores: Float[Tensor, "b k"],
    count: int | Int[Tensor, " b"],
    rule: Rule,
    allowed: Bool[Tensor, "b k"] | None = None,
) -> Bool[Tensor, "b k"]:
    """Return True at the `count` best scores, with rule `cutoff` also at all that tie with the last of these.

    A tensor `count` gives every row its own number; then only `allowed` entries can be revealed.
    """
    if isinstance(count, Tensor):
        assert allowed is not None, "rows with counts of their own come with masks of their own"
        rank = scores.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
        return (rank < count[:, None]) & allowed
    left = scores.shape[1] - count
    return ~(_below(scores, left) if rule == "cutoff" else _lowest(scores, left))


def split(
    chosen: Bool[Tensor, "b k"], positions: Positions, number: int
) -> tuple[Int[Tensor, "b {number}"], Int[Tensor, "b {number}"], Int[Tensor, "b _"]]:
    """Return indices and positions of the `number` entries where `chosen` is True, and the other positions.

    All are in ascending order of position, like `positions`.
    """
    order = (~chosen).to(torch.int8).sort(dim=1, stable=True).indices
    indices, rest = order[:, :number], order[:, number:]
    return indices, positions.gather(1, indices), positions.gather(1, rest)


def without(positions: Positions, some: Int[Tensor, "b _"], num_tokens: int) -> Int[Tensor, "b _"]:
    """Remove `some` from the ascending `positions`, which are below `num_tokens`; the result is ascending."""
    gone = torch.zeros(len(positions), num_tokens, dtype=torch.int8, device=positions.device).scatter(1, some, 1)
    order = gone.gather(1, positions).sort(dim=1, stable=True).indices
    return positions.gather(1, order[:, : positions.shape[1] - some.shape[1]])


def _lowest(scores: Float[Tensor, "b k"], left: int) -> Bool[Tensor, "b k"]:
    lowest = scores.topk(left, largest=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, lowest, True)


def _below(scores: Float[Tensor, "b k"], left: int) -> Bool[Tensor, "b k"]:
    if len(scores) > 1:
        raise UserError("sampling.select.rule=cutoff works on one image at a time; set the batch size to 1")
    if not scores.shape[1]:  # a step that reveals nothing, in an order known ahead
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores < scores.sort(dim=1).values[:, [min(left, scores.shape[1] - 1)]]
