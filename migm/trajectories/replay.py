"""Compute features that a store lacks, from its tokens and order (docs/originals/dimoo.md, Trajectories)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from migm.accelerators.runs import full_step
from migm.bases.base import Base, Branch, Moment, StepRecord
from migm.runtime.compiling import Fast, as_it_is
from migm.trajectories.dataset import Pairs
from migm.trajectories.record import unpacked


def with_features(batch: Pairs, base: Base, fast: Fast = as_it_is) -> Pairs:
    """Return the pairs with the base's features of their steps, in its dtype; pairs that have features are unchanged.

    Nothing waits for the device. `fast` compiles the base's blocks.
    """
    if batch.features.numel():
        return batch
    conditions = batch.conditions[:, : max(batch.lengths)]
    branch = base.branch(conditions, lengths=batch.lengths)

    def at(steps: Tensor, masked: Tensor) -> Tensor:
        return replay(base, branch, batch.tokens, masked, steps, batch.num_steps, fast)

    before = at(batch.steps, batch.masked | batch.new)
    after = at(batch.target_steps, batch.masked)
    batch = batch._replace(features=before, target=after, conditions=conditions)
    if batch.spans is None:
        return batch
    assert batch.order is not None  # for the type checker: pairs with an earlier step have it
    earlier = batch.steps - batch.spans
    return batch._replace(earlier=at(earlier, batch.order >= earlier[:, None]))


def replay(
    base: Base, branch: Branch, tokens: Tensor, masked: Tensor, steps: Tensor, num_steps: int, fast: Fast = as_it_is
) -> Tensor:
    """Return features (b, t, c) at `steps` (b,), of final tokens (b, l) with the mask where `masked` (b, l) is True."""
    now = tokens.where(~masked, base.spec.vocab_size)
    return frozen_features(base, branch, now, Moment(masked.sum(1) / base.spec.num_tokens, steps, num_steps), fast)


@torch.no_grad()  # not inference mode, whose tensors no gradient may need
def frozen_features(base: Base, branch: Branch, tokens: Tensor, moment: Moment, fast: Fast = as_it_is) -> Tensor:
    """Return the base's features (b, t, c) in its own precision, also where a training is in another one."""
    with torch.autocast(base.device.type, enabled=False):  # a training's autocast is for the shortcut alone
        return full_step(base, branch, None, 0, tokens, moment, fast)


def stored_features(image: dict[str, Tensor], base: Base) -> Tensor:
    """Return features (copies, n, t, c) of one image of a store; if they were not kept, compute them step by step."""
    if image["features"].numel():
        return unpacked(image["features"])
    copies, num_steps = image["features"].shape[:2]
    branch = base.branch(image["conditions"].long().to(base.device))
    tokens, order = (image[name].long().to(base.device).expand(copies, -1) for name in ("tokens", "order"))
    at = torch.arange(num_steps, device=base.device)[:, None].expand(-1, copies)
    steps = [replay(base, branch, tokens, order >= s, at[s], num_steps).cpu() for s in range(num_steps)]
    return torch.stack(steps, 1)


def replayed(images: dict[str, Tensor], base: Base) -> Iterator[StepRecord]:
    """Yield the steps of images of a shard as observers of their generation saw them, each half a branch of its own.

    All images have to reveal the same number of tokens at a step. Features that were not kept are computed.
    """
    stored, mask = images["features"], base.spec.vocab_size
    num_steps, length = stored.shape[2], stored.shape[3] or None
    tokens, order = (images[name].long().to(base.device) for name in ("tokens", "order"))
    conditions = images["conditions"].long().to(base.device).unbind(1)
    longest = [int((ids >= 0).sum(1).max()) for ids in conditions]
    branches = [base.branch(ids[:, :width], length) for ids, width in zip(conditions, longest, strict=True)]
    for s in range(num_steps):
        masked = order >= s
        moment = Moment.at(s, num_steps, masked.sum(1) / base.spec.num_tokens)
        if stored.numel():
            features = [half.to(base.device, base.dtype) for half in unpacked(stored[:, :, s]).unbind(1)]
        else:
            features = [frozen_features(base, branch, tokens.where(~masked, mask), moment) for branch in branches]
        new = (order == s).nonzero()[:, 1].view(len(tokens), -1)
        yield StepRecord(s, True, branches, features, tokens.where(order <= s, mask), new, moment)
