"""Training pairs out of stored trajectories: features before a step, what it revealed, features after."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from migm.trajectories.store import Store


class Pairs(NamedTuple):
    """A batch of consecutive steps (s, s+1) of one guidance half each."""

    features: Tensor  # (b, t, c) of step s
    target: Tensor  # (b, t, c) of step s + 1
    new_tokens: Tensor  # (b, k) revealed by step s, padded with 0
    new_positions: Tensor  # (b, k) ascending, padded with 0
    new_mask: Tensor  # (b, k) False at padding
    masked: Tensor  # (b, l) True where still masked before step s + 1
    mask_ratio: Tensor  # (b,) share of them
    steps: Tensor  # (b,) s


class PairDataset:
    """All pairs of the images `first`...`last` of a store, read in batches.

    Pair index = ((image * copies) + half) * (n - 1) + s. Shuffling goes shard by shard within
    windows, so that a batch reads from few files.
    """

    window = 16  # shards shuffled together

    def __init__(self, store: Store, first: int = 0, last: int | None = None):
        self.store = store
        sizes = [shard["count"] for shard in store.shards]
        self.where = torch.tensor([(i, j) for i, size in enumerate(sizes) for j in range(size)][first:last])
        self.copies, self.num_steps = store.header["copies"], store.header["num_steps"]
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.where) * self.copies * (self.num_steps - 1)

    def order(self, generator: torch.Generator) -> Tensor:
        """A shuffled order of all pairs that moves through the shards window by window."""
        per_image = self.copies * (self.num_steps - 1)
        shard = self.where[:, 0]
        shards = shard.unique()
        shards = shards[torch.randperm(len(shards), generator=generator)]
        parts = []
        for group in shards.split(self.window):
            images = torch.isin(shard, group).nonzero()[:, 0]
            pairs = (images[:, None] * per_image + torch.arange(per_image)).flatten()
            parts.append(pairs[torch.randperm(len(pairs), generator=generator)])
        return torch.cat(parts)

    def __getitems__(self, indices: Sequence[int]) -> Pairs:
        index = torch.as_tensor(indices)
        rest, s = index // (self.num_steps - 1), index % (self.num_steps - 1)
        image, half = rest // self.copies, rest % self.copies
        shard, row = self.where[image].unbind(1)
        both, tokens, order = (torch.empty(0),) * 3
        for number in shard.unique().tolist():
            data, place = self._shard(number), (shard == number).nonzero()[:, 0]
            t, c = data["features"].shape[-2:]
            if not len(both):
                both = torch.empty(len(index), 2 * t * c, dtype=data["features"].dtype)
                tokens, order = (data[key].new_empty(len(index), data[key].shape[1]) for key in ("tokens", "order"))
            # Steps s and s + 1 lie side by side: overlapping rows of two steps, copied whole.
            flat = data["features"].flatten()
            rows = flat.as_strided((len(flat) // (t * c) - 1, 2 * t * c), (t * c, 1))
            first = (row[place] * self.copies + half[place]) * self.num_steps + s[place]
            both.index_copy_(0, place, rows.index_select(0, first))
            tokens[place], order[place] = data["tokens"][row[place]], data["order"][row[place]]
        now, after = both.unflatten(1, (2, t, c)).unbind(1)
        return pair_batch(now, after, tokens, order, s)

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            self._open[number] = self.store.open(number)
        return self._open[number]


def pair_batch(features: Tensor, target: Tensor, tokens: Tensor, order: Tensor, steps: Tensor) -> Pairs:
    """Assemble a batch from features of steps s and s + 1, final tokens (b, l) and reveal order (b, l)."""
    new = order == steps[:, None]
    count = new.sum(1)
    width = int(count.max())
    # A stable descending sort puts the new positions first, in ascending order.
    positions = new.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width]
    new_mask = torch.arange(width) < count[:, None]
    positions = positions.where(new_mask, 0)
    masked = order > steps[:, None]
    return Pairs(
        features=features,
        target=target,
        new_tokens=tokens.gather(1, positions).long().where(new_mask, 0),
        new_positions=positions,
        new_mask=new_mask,
        masked=masked,
        mask_ratio=masked.float().mean(1),
        steps=steps,
    )
