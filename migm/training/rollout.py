"""Roll the shortcut out for several steps before it is judged, as it is used (docs/originals/maskgit.md, Rollouts)."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from migm.bases.base import Base, Branch, Moment
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Seed
from migm.runtime.shapes import Features, PerImage, Ratio, TokenMask, Tokens
from migm.sampling.draw import Draw
from migm.sampling.guidance import Guidance
from migm.sampling.loop import Sampling, step
from migm.sampling.noise import KeyedNoise, Noise
from migm.sampling.order import AllMasked, Ordering
from migm.sampling.schedule import Schedule
from migm.sampling.select import Select, revealed
from migm.shortcuts.network import Past, reads_full_steps
from migm.trajectories.dataset import Pairs, padded_positions
from migm.trajectories.replay import frozen_features

Each = Shaped[Tensor, " b *each"]  # anything that has a row for each pair


class Situation(NamedTuple):
    """The input of the shortcut: features of a step, the tokens that the step revealed, and what is still masked."""

    branch: Branch
    features: Features
    tokens: Tokens  # v where masked
    new: TokenMask  # True at tokens that the last step revealed
    masked: TokenMask
    width: int  # the largest number of True entries in a row of `new`
    steps: PerImage  # the step whose features are to be predicted
    past: Past | None = None  # for a network that starts from full steps: the features are of the last one

    @classmethod
    def of(cls, batch: Pairs, base: Base) -> "Situation":
        """Return the situation at the start of stored pairs."""
        tokens = batch.tokens.where(~batch.masked, base.spec.vocab_size)
        branch = base.branch(batch.conditions, batch.features.shape[1], batch.lengths)
        known = (batch.features, tokens, batch.new, batch.masked, batch.width, batch.target_steps)
        return cls(branch, *known, past_of(batch))

    @property
    def mask_ratio(self) -> Ratio:
        return self.masked.float().mean(1)


def past_of(batch: Pairs) -> Past | None:
    """Return the full steps that predictions of these pairs start from; None for pairs of neighbouring steps."""
    if batch.gaps is None:
        return None
    ratio = (batch.masked | batch.new).float().mean(1)
    span = None if batch.spans is None else batch.spans / batch.num_steps
    return Past(ratio, batch.gaps / batch.num_steps, batch.earlier, span)


def predict(shortcut: nn.Module, base: Base, now: Situation) -> Features:
    """Return the features that the shortcut predicts: for the next step, or for as many steps ahead as pairs say."""
    if (now.past is not None) != reads_full_steps(shortcut):
        have = "start from full steps" if now.past is not None else "are of neighbouring steps"
        raise UserError(f"shortcut: a {type(shortcut).__name__} was given pairs that {have}; see its `reads`")
    dtype = next(shortcut.parameters()).dtype
    positions, mask = padded_positions(now.new, now.width)
    with torch.no_grad():
        new = base.control(now.tokens.gather(1, positions), positions, now.branch, mask)
    new = new._replace(embeddings=new.embeddings.to(dtype))
    past = [] if now.past is None else [now.past]
    if now.past is not None and now.past.earlier is not None:
        past = [now.past._replace(earlier=now.past.earlier.to(dtype))]
    return shortcut(now.features.to(dtype), new, now.mask_ratio, *past)


class Rollout:
    """Go on from pairs with the shortcut's own features, for `length` - 1 steps without gradients.

    The length cycles through 1...`max_length` with the iteration, and ends with the trajectory. Tokens are drawn by the
    rules, the schedule and the order of the sampler. Where both guidance halves of an image are together they get the
    same tokens, drawn by guided logits; on its own, a half draws without guidance. The target of a pair that went on
    are the frozen base's features of the tokens that it has then. `seed` is that of the trajectories too, so that an
    order that begins elsewhere for every image is theirs. Nothing waits for the device.
    """

    def __init__(
        self,
        max_length: Count,
        num_steps: Count,
        schedule: Schedule,
        draw: Draw,
        select: Select,
        seed: Seed = 0,
        order: Ordering | None = None,
    ):
        if max_length >= num_steps:
            raise ValueError(
                f"objective.rollout.max_length={max_length} must be between 1 and "
                f"sampling.num_steps - 1 = {num_steps - 1}"
            )
        self.max_length, self.seed = max_length, seed
        self.sampling = Sampling(num_steps, num_steps, schedule, draw, select)
        self.order: Any = None if isinstance(order, AllMasked) else order
        if self.order is not None and not hasattr(order, "ranks"):
            raise UserError(
                f"objective.rollout follows all masked positions or an order known ahead; sampling.order="
                f"{type(order).__name__} has no ranks"
            )
        self.counts: dict[tuple[int, torch.device], tuple[int, PerImage]] = {}

    @torch.no_grad()
    def __call__(
        self,
        shortcut: nn.Module,
        base: Base,
        batch: Pairs,
        iteration: int,
        fast: Fast = as_it_is,
        guidance: Guidance | None = None,
    ) -> tuple[Situation, Features]:
        """Return the situation of every pair before its last step, and the target features of that step.

        `fast` compiles the shortcut and the base's blocks; tokens are drawn as they are. `guidance` is used where
        halves are together.
        """
        now, last = Situation.of(batch, base), self.sampling.num_steps - 1
        on = [i for i, s in enumerate(batch.host_steps) if s + 1 < last]
        if not on or not iteration % self.max_length:
            return now, batch.target
        width, counts = self._counts(base)
        copies = max(batch.halves_together, 1)
        drawing = slice(len(batch.steps) // copies)  # rows that draw; halves that are together are one
        # Halves on their own get different noise, and every iteration too.
        noise = KeyedNoise(self.seed + iteration, (2 * batch.images + batch.halves)[drawing])
        sampling = replace(self.sampling, guidance=guidance if copies > 1 else None)
        ranks = None
        if self.order is not None:
            ranks = self.order.ranks(base.spec, KeyedNoise(self.seed, batch.images), now.tokens)[drawing]
        for ahead in range(1, 1 + iteration % self.max_length):
            goes_on = batch.steps + ahead < last
            index = (batch.steps + ahead).clamp(max=last)
            features = fast(predict)(shortcut, base, now)
            drawn = self._draw(features, base, now, sampling, index[drawing], counts[index[drawing]], noise, ranks)
            tokens, chosen = (x.repeat(copies, 1) for x in drawn)
            after = (features.to(now.features.dtype), tokens, chosen, now.masked & ~chosen)
            rows = (where_rows(goes_on, a, b) for a, b in zip(after, now[1:5], strict=True))
            now = Situation(now.branch, *rows, width=width, steps=(index + 1).clamp(max=last))
        # The rows that went on, ascending, found without asking the device how many there are.
        stayed = (batch.steps + 1 >= last).to(torch.int8)
        went_on = stayed.sort(stable=True).indices[: len(on)]
        branch = base.branch(batch.conditions[went_on], batch.target.shape[1], [batch.lengths[i] for i in on])
        moment = Moment(now.mask_ratio, now.steps, batch.num_steps).images(went_on)
        true = frozen_features(base, branch, now.tokens[went_on], moment, fast)
        return now, batch.target.index_copy(0, went_on, true.to(batch.target.dtype))

    def _draw(
        self,
        features: Features,
        base: Base,
        now: Situation,
        sampling: Sampling,
        index: Int[Tensor, " d"],
        count: Int[Tensor, " d"],
        noise: Noise,
        ranks: Int[Tensor, "d l"] | None,
    ) -> tuple[Int[Tensor, "d l"], Bool[Tensor, "d l"]]:
        """Return the tokens after one step and which are new; `index` and `count` are of each row that draws."""
        rows = len(index)
        before, masked = now.tokens[:rows], now.masked[:rows]
        positions = torch.arange(before.shape[1], device=before.device).expand_as(before)
        branch, wide = replace(now.branch, copies=len(now.tokens) // rows), features.to(base.dtype)
        stepped = step(base, sampling, [branch], [wide], positions, count, noise, index[:, None], masked)
        chosen = stepped.revealed
        if ranks is not None:
            chosen = revealed(-ranks.float(), count, "count", masked)
        return stepped.drawn.where(chosen, before), chosen

    def _counts(self, base: Base) -> tuple[int, PerImage]:
        """Return how many tokens every step reveals, on the base's device, and the most of one step."""
        key = base.spec.num_tokens, base.device
        if key not in self.counts:
            planned = self.sampling.schedule.counts(base.spec.num_tokens, self.sampling.num_steps)
            self.counts[key] = max(planned), torch.tensor(planned, device=base.device)
        return self.counts[key]


def where_rows(rows: Bool[Tensor, " b"], a: Each, b: Each) -> Each:
    """Return `a` in the rows that are True, and `b` in the others."""
    return a.where(rows.view(-1, *[1] * (a.ndim - 1)), b)
