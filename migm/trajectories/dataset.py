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
    tokens: Tensor  # (b, l) final ones
    new: Tensor  # (b, l) True at what step s revealed
    masked: Tensor  # (b, l) True where still masked before step s + 1
    steps: Tensor  # (b,) s
    labels: Tensor  # (b,)
    halves: Tensor  # (b,) 0 conditional, 1 unconditional
    images: Tensor  # (b,) number in the run
    width: int  # the most tokens that step s revealed in any row


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
        both, labels, images = torch.empty(0), torch.empty_like(s), torch.empty_like(s)
        tokens, order = (torch.empty(0),) * 2
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
            values = {"tokens": tokens, "order": order, "labels": labels, "images": images}
            for key, into in values.items():
                into[place] = data[key][row[place]]
        now, after = both.unflatten(1, (2, t, c)).unbind(1)
        new, masked = order == s[:, None], order > s[:, None]
        width = int(new.sum(1).max())
        return Pairs(now, after, tokens.long(), new, masked, s, labels, half, images, width)

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            self._open[number] = self.store.open(number)
        return self._open[number]


def padded_positions(new: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Up to `width` true entries of `new` (b, l) -> their positions (b, width), ascending, and False at padding (0)."""
    # A stable descending sort puts the new positions first, in ascending order.
    positions = new.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width]
    mask = torch.arange(width, device=new.device) < new.sum(1, keepdim=True)
    return positions.where(mask, 0), mask
