"""Every method once more, written for one sequence and without any row subset: what its features have to be.

Of the base nothing is used but its blocks on all rows at once. Each function takes the base, the
branch of one sequence, the tokens (1, l) that every step saw, and which steps were full, and gives
the features (t, c) of every step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from forecast_formulas import FORMULAS
from torch import Tensor
from torch.nn.functional import cosine_similarity

from migm.bases.base import Branch, Moment

Steps = Sequence[Tensor]
Plan = Sequence[bool]
Replay = Callable[..., Iterator[Tensor]]


class Passes:
    """Passes of one sequence through the base, at the steps of a generation."""

    def __init__(self, base: Any, branch: Branch, steps: Steps):
        self.base, self.branch, self.steps = base, branch, steps

    def start(self, tokens: Tensor) -> tuple[Tensor, Any]:
        step = next(i for i, seen in enumerate(self.steps) if seen is tokens)
        ratio = (tokens == self.base.spec.vocab_size).double().mean(1)
        return self.base.prepare(tokens, self.branch, Moment.at(step, len(self.steps), ratio))

    def deltas(self, tokens: Tensor) -> tuple[list[Tensor], Tensor, Any]:
        """Additions of attention and feed-forward to the blocks' input in turn, their output, and the context."""
        x, ctx = self.start(tokens)
        added = []
        for block in self.base.blocks:
            added.append(block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx)))
            x = x + added[-1]
            added.append(block.mlp_delta(x, ctx))
            x = x + added[-1]
        return added, x, ctx

    def features(self, tokens: Tensor) -> Tensor:
        return self.base.finalize(*self.deltas(tokens)[1:])[0]

    def active(self, tokens: Tensor, store: list[list[Tensor]], rows: Tensor, out: Tensor | None = None) -> Any:
        """The blocks' output, new where `rows` (t,) is True, and its features; keys and values there are stored."""
        x, ctx = self.start(tokens)
        for block, pair in zip(self.base.blocks, store or [[] for _ in self.base.blocks], strict=True):
            new = [block.k(x, ctx), block.v(x, ctx)]
            pair[:] = [torch.where(rows[:, None], n, old) for n, old in zip(new, pair or new, strict=True)]
            x = x + block.attn_delta(x, ctx, *pair)
            x = x + block.mlp_delta(x, ctx)
        out = x if out is None else torch.where(rows[:, None], x, out)
        return out, self.base.finalize(out, ctx)[0]


def rows_of(positions: Tensor, branch: Branch, num_rows: int) -> Tensor:
    """True (t,) at the blocks' rows of image positions (k,)."""
    return torch.zeros(num_rows, dtype=torch.bool).index_fill(0, branch.in_blocks[0, positions], True)


def revealed(steps: Steps, i: int) -> Tensor:
    """The positions (k,) that step i - 1 revealed."""
    return (steps[i] != steps[i - 1])[0].nonzero()[:, 0]


def boundary(
    base: Any, branch: Branch, steps: Steps, plan: Plan, formula: str = "taylor", order: int = 0
) -> Iterator[Tensor]:
    """A formula on the features of the full steps; order 0 of any is reuse."""
    passes, times, values = Passes(base, branch, steps), [], []
    for i, tokens in enumerate(steps):
        if plan[i]:
            times, values = [*times, i], [*values, passes.features(tokens)]
        yield values[-1] if plan[i] else FORMULAS[formula](times, values, i, order)


def modules(
    base: Any, branch: Branch, steps: Steps, plan: Plan, formula: str = "taylor", order: int = 0
) -> Iterator[Tensor]:
    """A formula on what every module adds at the full steps; order 0 is a reuse of residuals."""
    passes, times, values = Passes(base, branch, steps), [], []
    for i, tokens in enumerate(steps):
        if plan[i]:
            added, out, ctx = passes.deltas(tokens)
            times, values = [*times, i], [*values, added]
        else:
            out, ctx = passes.start(tokens)
            out = out + sum(FORMULAS[formula](times, series, i, order) for series in zip(*values, strict=True))
        yield base.finalize(out, ctx)[0]


def least_squares(base: Any, branch: Branch, steps: Steps, plan: Plan, gram: Tensor, order: int) -> Iterator[Tensor]:
    """L2P: the best weights for the last order + 1 full steps, whatever they are."""
    passes, known = Passes(base, branch, steps), {}
    for i, tokens in enumerate(steps):
        if plan[i]:
            known[i] = passes.features(tokens)
            yield known[i]
            continue
        at = sorted(known)[-order - 1 :]
        damped = gram[at][:, at] * (1 + 1e-6 * torch.eye(len(at), dtype=torch.float64))
        weights = torch.linalg.inv(damped) @ gram[at, i]
        yield sum((w * known[t] for w, t in zip(weights, at, strict=True)), torch.zeros(()))


def network(base: Any, branch: Branch, steps: Steps, plan: Plan, module: Any) -> Iterator[Tensor]:
    """The shortcut, from its own last output."""
    passes, features = Passes(base, branch, steps), torch.empty(0)
    for i, tokens in enumerate(steps):
        if plan[i]:
            features = passes.features(tokens)
        else:
            new = revealed(steps, i)[None]
            ratio = (tokens == base.spec.vocab_size).double().mean(1)
            features = module(features[None], base.control(tokens.gather(1, new), new, branch), ratio)[0]
        yield features


def max_logit(
    base: Any,
    branch: Branch,
    steps: Steps,
    plan: Plan,
    cache_ratio: float,
    force_new: bool = False,
    image_rows_only: bool = False,
) -> Iterator[Tensor]:
    """ML-Cache: the rows whose largest logit lies at or below the quantile 1 - c."""
    passes, store, out, features = Passes(base, branch, steps), [], None, torch.empty(0)
    for i, tokens in enumerate(steps):
        if plan[i]:
            store = [[] for _ in base.blocks]
            out, features = passes.active(tokens, store, torch.ones(1, dtype=torch.bool))
        else:
            assert out is not None
            largest = base.head(features[None])[0].amax(-1)
            best = (largest if largest.ndim == 1 else largest.amin(-1)).tolist()  # of the positions that share a row
            if branch.block_rows is not None:  # the least of the tokens of a row
                tokens_of = [(branch.block_rows[0] == row).nonzero()[:, 0].tolist() for row in range(out.shape[1])]
                best = [min(best[token] for token in its) for its in tokens_of]
            rows = sorted(set(branch.in_blocks[0].tolist())) if image_rows_only else list(range(len(best)))
            new = branch.in_blocks[0, revealed(steps, i)].tolist() if force_new else []
            ranks = torch.arange(len(rows)).float()
            count = int((ranks <= ranks.quantile(1 - cache_ratio)).sum()) + len(new)
            others = sorted(set(rows) - set(new), key=lambda row: best[row])
            chosen = [*sorted(set(new)), *others][:count]
            active = torch.zeros(len(best), dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)
            out, features = passes.active(tokens, store, active, out)
        yield features


def targets(base: Any, branch: Branch, steps: Steps, plan: Plan, recompute_condition: bool = False) -> Iterator[Tensor]:
    """ReCAP: the rows revealed from one full step to the next, against what that step stored of all others."""
    passes, store, out, features = Passes(base, branch, steps), [], None, torch.empty(0)
    active = torch.empty(0)
    last = torch.zeros_like(steps[0])  # what the last step made of it is not seen: all is revealed then
    for i, tokens in enumerate(steps):
        if plan[i]:
            store = [[] for _ in base.blocks]
            out, features = passes.active(tokens, store, torch.ones(1, dtype=torch.bool))
            after = next((steps[j] for j in range(i + 1, len(steps)) if plan[j]), last)
            masked = base.spec.vocab_size
            group = ((tokens == masked) & (after != masked))[0].nonzero()[:, 0]
            active = rows_of(group, branch, out.shape[1])
            if recompute_condition:
                active[: int(branch.in_blocks[0, 0])] = active[int(branch.in_blocks[0, -1]) + 1 :] = True
        else:
            out, features = passes.active(tokens, store, active, out)
        yield features


def similarity(
    base: Any, branch: Branch, steps: Steps, plan: Plan, prompt_interval: int, transfer_ratio: float
) -> Iterator[Tensor]:
    """dLLM-Cache: stored keys, values and both additions, of which every layer renews the rows that moved."""
    passes, store = Passes(base, branch, steps), [[] for _ in base.blocks]
    first, end = int(branch.in_blocks[0, 0]), int(branch.in_blocks[0, -1]) + 1
    count = int(transfer_ratio * (end - first))
    for i, tokens in enumerate(steps):
        x, ctx = passes.start(tokens)
        image = (torch.arange(x.shape[1]) >= first) & (torch.arange(x.shape[1]) < end)
        fixed = (~image & (i % prompt_interval == 0)) | (image & plan[i])
        for block, layer in zip(base.blocks, store, strict=True):
            k, v = block.k(x, ctx), block.v(x, ctx)
            layer[:] = layer or [k, v, torch.zeros_like(x), torch.zeros_like(x), [0] * x.shape[1]]
            chosen = fixed.clone()
            if count and not plan[i]:
                alike = cosine_similarity(v.transpose(1, 2).flatten(2), layer[1].transpose(1, 2).flatten(2), dim=-1)[0]
                steps_of = [(round(float(alike[row]) * 2**16), layer[4][row], row) for row in range(first, end)]
                chosen[[row for *_, row in sorted(steps_of)[:count]]] = True
            layer[0] = torch.where(chosen[:, None], k, layer[0])
            layer[1] = torch.where((chosen | (image & bool(count or plan[i])))[:, None], v, layer[1])
            layer[2] = torch.where(chosen[:, None], block.attn_delta(x, ctx, layer[0], layer[1]), layer[2])
            x = x + layer[2]
            layer[3] = torch.where(chosen[:, None], block.mlp_delta(x, ctx), layer[3])
            x = x + layer[3]
            layer[4] = [i if chosen[row] else last for row, last in enumerate(layer[4])]
        yield base.finalize(x, ctx)[0]
