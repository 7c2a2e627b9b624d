"""Read training pairs from trajectories: features of a step, the tokens that it revealed, features of the next."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from migm.runtime.shapes import Features, PerImage, TokenMask, Tokens
from migm.trajectories.gaps import Gaps
from migm.trajectories.paging import will_need
from migm.trajectories.record import Trajectories, unpacked


class Pairs(NamedTuple):
    """A batch of pairs; each holds consecutive steps (s, s + 1) of one guidance half of one image.

    Where halves are together, the batch holds the same steps of both halves of every image: first all conditional
    halves, then all unconditional ones in the same order.

    With `gaps` g, for networks that start from full steps, each holds steps (s, s + g): `target` is of step s + g,
    `new` are the tokens that steps s to s + g - 1 revealed, and `masked` those left before step s + g.
    """

    features: Features  # of step s; if t = c = 0, `replay.with_features` computes them
    target: Features  # of step s + 1
    tokens: Tokens  # at the end of the generation
    new: TokenMask  # True at tokens that step s revealed
    masked: TokenMask  # True at tokens that are still masked before step s + 1
    steps: PerImage  # s
    conditions: Int[Tensor, "b q"]  # of the half, -1 at padding
    halves: PerImage  # 0 conditional, 1 unconditional
    images: PerImage  # numbers in the run
    # Known to the host, since shapes depend on them: a training step need not wait for the device.
    width: int  # the most tokens that step s revealed in any row
    lengths: Sequence[int]  # of the conditions
    host_steps: Sequence[int]  # `steps`
    num_steps: int  # of the generation
    halves_together: int = 0  # guidance halves of every image, 1 without guidance; 0: each pair is on its own
    order: Tokens | None = None  # the step that revealed each token
    most_masked: int = 0  # the most True entries in a row of `masked`
    gaps: PerImage | None = None
    spans: PerImage | None = None  # from an earlier step to s; 0: there is none, and its values are those of step s
    earlier: Features | None = None  # of step s - span; if t = c = 0, `replay.with_features` computes them

    @property
    def target_steps(self) -> PerImage:
        """The steps that `target` is of."""
        return self.steps + (1 if self.gaps is None else self.gaps)


class Shards(Protocol):
    """A source of pairs: a `Store`, or trajectories `InMemory`."""

    header: dict[str, Any]  # holds at least `copies` and `num_steps`
    shards: list[dict[str, Any]]  # each holds at least `count`

    def open(self, index: int) -> dict[str, Tensor]: ...


class InMemory:
    """Trajectories in memory that are read like a store of one shard."""

    def __init__(self, trajectories: Trajectories):
        self.tensors = trajectories.tensors()
        copies, num_steps = trajectories.features.shape[1:3]
        self.header: dict[str, Any] = {"copies": copies, "num_steps": num_steps}
        self.shards: list[dict[str, Any]] = [{"count": len(trajectories.images)}]

    def open(self, index: int) -> dict[str, Tensor]:
        return self.tensors


class PairDataset:
    """All pairs of the images from `first` to before `last` of a store, read in batches.

    Pair index = ((image * copies) + half) * (n - 1) + s, where images count from `first`. Pairs are shuffled within
    windows of random shards, so that a batch reads from few files. At most `window` shards stay open
    between batches.

    With halves `together`, an index stands for the `rows` = copies pairs of an image at a step, which no batch, worker
    or process splits: index = image * (n - 1) + s.

    With `gaps`, an index may be larger by a multiple of the number of indices: the multiple says how far apart the
    steps are. `order` draws it, so that it is a function of seed and epoch as the order is.
    """

    window = 16  # number of shards that are shuffled together

    def __init__(
        self,
        store: Shards,
        first: int = 0,
        last: int | None = None,
        together: bool = False,
        gaps: Gaps | None = None,
    ):
        self.store = store
        sizes = [shard["count"] for shard in store.shards]
        self.where = torch.tensor([(i, j) for i, size in enumerate(sizes) for j in range(size)][first:last])
        self.copies, self.num_steps = store.header["copies"], store.header["num_steps"]
        self.together, self.rows = together, self.copies if together else 1
        self.per_image = self.copies // self.rows * (self.num_steps - 1)  # indices
        self.gaps = gaps and gaps.within(self.num_steps)
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.where) * self.per_image

    def order(self, generator: torch.Generator) -> Int[Tensor, " pairs"]:
        """Return a shuffled order of all pairs that goes through the shards window by window."""
        shard = self.where[:, 0]
        shards = shard.unique()
        shards = shards[torch.randperm(len(shards), generator=generator)]
        parts = []
        for group in shards.split(self.window):
            images = torch.isin(shard, group).nonzero()[:, 0]
            pairs = (images[:, None] * self.per_image + torch.arange(self.per_image)).flatten()
            parts.append(pairs[torch.randperm(len(pairs), generator=generator)])
        return self.drawn(torch.cat(parts), generator)

    def drawn(self, index: Int[Tensor, " pairs"], generator: torch.Generator) -> Int[Tensor, " pairs"]:
        """Return the indices with drawn gaps; without `gaps`, as they are."""
        if self.gaps is None:
            return index
        return index + len(self) * self.gaps.code(index % (self.num_steps - 1), self.num_steps, generator)

    def of_gap(self, gap: int) -> Int[Tensor, " pairs"]:
        """Return the indices of all pairs of this gap, in order, the same at every call."""
        index = torch.arange(len(self))
        if self.gaps is None:
            return index
        index = index[index % (self.num_steps - 1) + gap < self.num_steps]
        return index + len(self) * self.gaps.code_of(gap, index % (self.num_steps - 1))

    def __getitems__(self, indices: Sequence[int]) -> Pairs:
        index = torch.as_tensor(indices)
        code, index = self._pairs(index // len(self), index % len(self))
        rest, s = index // (self.num_steps - 1), index % (self.num_steps - 1)
        image, half = rest // self.copies, rest % self.copies
        shard, row = self.where[image].unbind(1)
        shards = {number: self._shard(number) for number in shard.unique().tolist()}
        first = (row * self.copies + half) * self.num_steps + s
        if self.gaps is None:
            far, features = None, _read(shards, shard, first[:, None], length=2)
        else:
            far = self.gaps.distances(code)
            steps = [first, first + far.gaps] + [first - far.spans] * self.gaps.earlier
            features = _read(shards, shard, torch.stack(steps, 1))
        like = next(iter(shards.values()))
        tokens, order = (like[name].new_empty(len(index), like[name].shape[1]) for name in ("tokens", "order"))
        conditions = torch.full((len(index), max(data["conditions"].shape[-1] for data in shards.values())), -1)
        images = torch.empty_like(s)
        for number, data in shards.items():
            place = (shard == number).nonzero()[:, 0]
            ids = data["conditions"][row[place], half[place]]
            conditions[place, : ids.shape[1]] = ids.long()
            for name, into in {"tokens": tokens, "order": order, "images": images}.items():
                into[place] = data[name][row[place]]
        now, after, *earlier = features.unbind(1)
        masked = order >= (s + (1 if far is None else far.gaps))[:, None]
        new = (order >= s[:, None]) & ~masked
        width = int(new.sum(1).max())
        host = (width, (conditions >= 0).sum(1).tolist(), s.tolist(), self.num_steps)
        more = {"order": order, "most_masked": int(masked.sum(1).max())}
        more["halves_together"] = self.rows if self.together else 0
        if far is not None:
            more |= {"gaps": far.gaps, **({"spans": far.spans, "earlier": earlier[0]} if earlier else {})}
        return Pairs(now, after, tokens.long(), new, masked, s, conditions, half, images, *host, **more)

    def _pairs(
        self, code: Int[Tensor, " i"], index: Int[Tensor, " i"]
    ) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Return the codes of gaps and the numbers of the pairs that indices stand for."""
        if not self.together:
            return code, index
        image, s = index // (self.num_steps - 1), index % (self.num_steps - 1)
        pairs = [(image * self.copies + half) * (self.num_steps - 1) + s for half in range(self.copies)]
        return code.repeat(self.copies), torch.cat(pairs)

    def _shard(self, number: int) -> dict[str, Tensor]:
        shard = self._open.pop(number, None)
        if shard is None:
            if len(self._open) >= self.window:
                del self._open[next(iter(self._open))]  # the least recently used shard
            shard = self.store.open(number)
        self._open[number] = shard
        return shard


def _read(
    shards: Mapping[int, dict[str, Tensor]], shard: PerImage, first: Int[Tensor, "b k"], length: int = 1
) -> Float[Tensor, "b {length}*k t c"]:
    """Return the features of `length` steps from each of the steps `first` on.

    `first` counts the steps of all images and halves of the row's `shard`.
    """
    lengths = {data["features"].shape[-2] for data in shards.values()}
    like = next(iter(shards.values()))["features"]
    # Zeros are written only if sequences differ in length, since writing them takes as long as the copy.
    blank = torch.empty if len(lengths) == 1 else torch.zeros
    steps = blank(*first.shape, length, max(lengths), like.shape[-1], dtype=like.dtype)
    for number, data in shards.items() if steps.numel() else ():
        place = (shard == number).nonzero()[:, 0]
        t, c = data["features"].shape[-2:]
        # Neighbouring steps are adjacent in the tensor. All rows are requested before the first is waited for.
        flat, starts = data["features"].flatten(), (first[place] * t * c).tolist()
        for start in chain.from_iterable(starts):
            will_need(flat, start, length * t * c)
        for row, into in zip(starts, place.tolist(), strict=True):
            for i, start in enumerate(row):
                steps[into, i, :, :t] = flat[start : start + length * t * c].view(length, t, c)
    return unpacked(steps.flatten(1, 2))


def pinned(batch: Pairs) -> Pairs:
    """Return the pairs in memory from which CUDA copies while the host goes on; unchanged where there is no CUDA."""
    if not torch.cuda.is_available():
        return batch
    tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    return batch._replace(**{name: value.pin_memory() for name, value in tensors.items()})


def padded_positions(new: TokenMask, width: int) -> tuple[Int[Tensor, "b {width}"], Bool[Tensor, "b {width}"]]:
    """Return the positions of up to `width` true entries, ascending, 0 at padding; and a mask, False at padding."""
    # A stable descending sort puts the new positions first, in ascending order.
    positions = new.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width]
    mask = torch.arange(width, device=new.device) < new.sum(1, keepdim=True)
    return positions.where(mask, 0), mask
