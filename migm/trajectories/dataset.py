"""Training pairs out of stored trajectories: features before a step, what it revealed, features after."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from migm.runtime.shapes import Tokens
from migm.trajectories.paging import will_need
from migm.trajectories.record import Trajectories, unpacked


class Pairs(NamedTuple):
    """A batch of consecutive steps (s, s+1) of one guidance half each."""

    features: Float[Tensor, "b t c"]  # of step s; t = c = 0: `replay.with_features` computes them
    target: Float[Tensor, "b t c"]  # of step s + 1
    tokens: Tokens  # final ones
    new: Bool[Tensor, "b l"]  # True at what step s revealed
    masked: Bool[Tensor, "b l"]  # True where still masked before step s + 1
    steps: Int[Tensor, " b"]  # s
    conditions: Int[Tensor, "b q"]  # of that half
    halves: Int[Tensor, " b"]  # 0 conditional, 1 unconditional
    images: Int[Tensor, " b"]  # number in the run
    width: int  # the most tokens that step s revealed in any row


class Shards(Protocol):
    """What pairs are read from: a `Store`, or trajectories `InMemory`."""

    header: dict[str, Any]  # `copies` and `num_steps` at least
    shards: list[dict[str, Any]]  # `count` at least

    def open(self, index: int) -> dict[str, Tensor]: ...


class InMemory:
    """Trajectories read as a store of one shard."""

    def __init__(self, trajectories: Trajectories):
        self.tensors = trajectories.tensors()
        copies, num_steps = trajectories.features.shape[1:3]
        self.header: dict[str, Any] = {"copies": copies, "num_steps": num_steps}
        self.shards: list[dict[str, Any]] = [{"count": len(trajectories.images)}]

    def open(self, index: int) -> dict[str, Tensor]:
        return self.tensors


class PairDataset:
    """All pairs of the images `first`...`last` of a store, read in batches.

    Pair index = ((image * copies) + half) * (n - 1) + s. Shuffling goes shard by shard within
    windows, so that a batch reads from few files, and a window's shards stay open between batches.
    """

    window = 16  # shards shuffled together

    def __init__(self, store: Shards, first: int = 0, last: int | None = None):
        self.store = store
        sizes = [shard["count"] for shard in store.shards]
        self.where = torch.tensor([(i, j) for i, size in enumerate(sizes) for j in range(size)][first:last])
        self.copies, self.num_steps = store.header["copies"], store.header["num_steps"]
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.where) * self.copies * (self.num_steps - 1)

    def order(self, generator: torch.Generator) -> Int[Tensor, " pairs"]:
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
        shards = {number: self._shard(number) for number in shard.unique().tolist()}
        both = _two_steps(shards, shard, (row * self.copies + half) * self.num_steps + s)
        some = next(iter(shards.values()))
        tokens, order = (some[name].new_empty(len(index), some[name].shape[1]) for name in ("tokens", "order"))
        conditions = torch.full((len(index), max(data["conditions"].shape[-1] for data in shards.values())), -1)
        images = torch.empty_like(s)
        for number, data in shards.items():
            place = (shard == number).nonzero()[:, 0]
            known = data["conditions"][row[place], half[place]]
            conditions[place, : known.shape[1]] = known.long()
            for name, into in {"tokens": tokens, "order": order, "images": images}.items():
                into[place] = data[name][row[place]]
        now, after = both.unbind(1)
        new, masked = order == s[:, None], order > s[:, None]
        width = int(new.sum(1).max())
        return Pairs(now, after, tokens.long(), new, masked, s, conditions, half, images, width)

    def _shard(self, number: int) -> dict[str, Tensor]:
        shard = self._open.pop(number, None)
        if shard is None:
            if len(self._open) >= self.window:
                del self._open[next(iter(self._open))]  # the one whose last use is the longest ago
            shard = self.store.open(number)
        self._open[number] = shard
        return shard


def _two_steps(
    shards: Mapping[int, dict[str, Tensor]], shard: Int[Tensor, " b"], first: Int[Tensor, " b"]
) -> Float[Tensor, "b 2 t c"]:
    """Features of step `first`, counted through all of the row's `shard`, and of the one after it."""
    lengths = {data["features"].shape[-2] for data in shards.values()}
    some = next(iter(shards.values()))["features"]
    # Zeros only where a shard's sequences are shorter: they cost as much as the copy.
    blank = torch.empty if len(lengths) == 1 else torch.zeros
    both = blank(len(first), 2, max(lengths), some.shape[-1], dtype=some.dtype)
    if not both.numel():
        return both
    for number, data in shards.items():
        place = (shard == number).nonzero()[:, 0]
        t, c = data["features"].shape[-2:]
        # Steps s and s + 1 lie side by side. All rows are asked for before the first is waited for.
        flat, starts = data["features"].flatten(), (first[place] * t * c).tolist()
        for start in starts:
            will_need(flat, start, 2 * t * c)
        for row, start in zip(place.tolist(), starts, strict=True):
            both[row, :, :t] = flat[start : start + 2 * t * c].view(2, t, c)
    return unpacked(both)


def padded_positions(
    new: Bool[Tensor, "b l"], width: int
) -> tuple[Int[Tensor, "b {width}"], Bool[Tensor, "b {width}"]]:
    """The positions of up to `width` true entries, ascending, 0 at padding; and False at padding."""
    # A stable descending sort puts the new positions first, in ascending order.
    positions = new.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width]
    mask = torch.arange(width, device=new.device) < new.sum(1, keepdim=True)
    return positions.where(mask, 0), mask
