"""Several steps of the shortcut's own before it is judged, as it will be used (docs/originals/maskgit.md, Rollouts)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from migm.bases.base import Base, Branch, image_rows
from migm.runtime.kinds import Count, Seed
from migm.sampling.loop import Draw, Select
from migm.sampling.noise import KeyedNoise
from migm.sampling.schedule import Schedule
from migm.trajectories.dataset import Pairs, padded_positions


class Situation(NamedTuple):
    """What the shortcut is asked: features of a step, what it revealed, and what is masked now."""

    branch: Branch
    features: Tensor  # (b, t, c)
    tokens: Tensor  # (b, l), v where masked
    new: Tensor  # (b, l) True at what the last step revealed
    masked: Tensor  # (b, l)
    width: int  # the most entries of a row of `new`

    @classmethod
    def of(cls, batch: Pairs, base: Base) -> "Situation":
        """The situation a stored pair begins with."""
        tokens = batch.tokens.where(~batch.masked, base.spec.vocab_size)
        branch = base.branch(batch.conditions, batch.features.shape[1])
        return cls(branch, batch.features, tokens, batch.new, batch.masked, batch.width)

    @property
    def mask_ratio(self) -> Tensor:
        return self.masked.float().mean(1)


def predict(shortcut: nn.Module, base: Base, now: Situation) -> Tensor:
    """The shortcut's features of the next step (b, t, c)."""
    dtype = next(shortcut.parameters()).dtype
    positions, mask = padded_positions(now.new, now.width)
    with torch.no_grad():
        new = base.control(now.tokens.gather(1, positions), positions, now.branch, mask)
    return shortcut(now.features.to(dtype), new._replace(embeddings=new.embeddings.to(dtype)), now.mask_ratio)


class Rollout:
    """Goes on from a pair with the shortcut's own features, `length` - 1 steps without gradients.

    The length cycles through 1...`max_length` with the iteration, and ends with the trajectory.
    Tokens are drawn without guidance, by the parts and the schedule of the sampler. The target of
    a pair that went on is the frozen base on the tokens it then has.
    """

    def __init__(
        self, max_length: Count, num_steps: Count, schedule: Schedule, draw: Draw, select: Select, seed: Seed = 0
    ):
        if max_length >= num_steps:
            raise ValueError(
                f"objective.rollout.max_length={max_length} must be between 1 and "
                f"sampling.num_steps - 1 = {num_steps - 1}"
            )
        self.max_length, self.num_steps = max_length, num_steps
        self.schedule, self.draw, self.select, self.seed = schedule, draw, select, seed

    @torch.no_grad()
    def __call__(self, shortcut: nn.Module, base: Base, batch: Pairs, iteration: int) -> tuple[Situation, Tensor]:
        """The situation of every pair before its last step, and the features (b, t, c) that step should have."""
        now, went_on = Situation.of(batch, base), torch.zeros_like(batch.steps, dtype=torch.bool)
        planned = self.schedule.counts(base.spec.num_tokens, self.num_steps)
        counts = torch.tensor(planned, device=now.tokens.device)
        # Another noise for the two halves of an image, and in every iteration.
        noise = KeyedNoise(self.seed + iteration, 2 * batch.images + batch.halves)
        for ahead in range(1, 1 + iteration % self.max_length):
            goes_on = batch.steps + ahead < self.num_steps - 1
            step = (batch.steps + ahead).clamp(max=self.num_steps - 1)
            after = self._step(shortcut, base, now, step[:, None], counts[step], noise)
            rows = (where_rows(goes_on, a, b) for a, b in zip(after, now[1:-1], strict=True))
            now = Situation(now.branch, *rows, width=max(planned))
            went_on |= goes_on
        if not went_on.any():
            return now, batch.target
        target = batch.target.clone()
        branch = base.branch(batch.conditions[went_on], target.shape[1])
        target[went_on] = base.features(now.tokens[went_on], branch, now.mask_ratio[went_on]).to(target.dtype)
        return now, target

    def _step(
        self, shortcut: nn.Module, base: Base, now: Situation, step: Tensor, count: Tensor, noise: KeyedNoise
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, tokens, new and masked after one sampled step; every row has its `step` (b, 1) and `count` (b,)."""
        features = predict(shortcut, base, now)
        every = torch.arange(now.tokens.shape[1], device=now.tokens.device).expand_as(now.tokens)
        logits = base.head(image_rows(features, now.branch).to(base.dtype), every)
        drawn, log_prob = self.draw(logits, noise, step, every)
        scores = self.select(log_prob, noise, step, self.num_steps, every).masked_fill(~now.masked, float("-inf"))
        rank = scores.argsort(dim=1, descending=True).argsort(dim=1)
        new = (rank < count[:, None]) & now.masked
        return features.to(now.features.dtype), drawn.where(new, now.tokens), new, now.masked & ~new


def where_rows(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` in the rows (b,) that are True, else `b`; both (b, ...)."""
    return a.where(rows.view(-1, *[1] * (a.ndim - 1)), b)
