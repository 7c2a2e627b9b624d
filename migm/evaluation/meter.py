"""Count the work of one generation, step by step: rows through blocks and head, FLOPs, bytes of caches."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from migm.bases.base import Base, Branch, Moment
from migm.bases.inputs import InputSource
from migm.bases.layers import Block, Runner, run_blocks
from migm.runtime.compiling import PLAIN
from migm.sampling.sampler import Sampler

aten = torch.ops.aten
# torch counts its fused attention kernels on CUDA, not those on CPUs.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}
PARTS = ("k", "v", "attn_delta", "mlp_delta")


@dataclass
class Reading:
    """Counts per step, summed over images and guidance halves; `cached` is the peak of bytes held between steps."""

    images: int
    flops: list[int] = field(default_factory=list)
    rows: list[dict[str, int]] = field(default_factory=list)  # rows through PARTS of all blocks, and through the head
    full_steps: float = 0.0  # mean over images
    cached: int = 0


class _Metered:
    """A base that counts rows; all other attributes are those of the wrapped base.

    With `once`, the first pass of a branch through all blocks stands for later ones, which would cost the same.
    """

    def __init__(self, base: Base, rows: Counter[str], counter: FlopCounterMode, once: bool):
        self.base, self.rows, self.counter, self.once = base, rows, counter, once
        self.passes: dict[int, tuple[Tensor, int, Counter[str]]] = {}  # of each branch: features, FLOPs, rows
        self.repeated = 0  # FLOPs of passes that were not made
        if hasattr(base, "blocks"):
            self.blocks = [_MeteredBlock(block, rows) for block in base.blocks]  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def features(self, tokens: Tensor, branch: Branch, moment: Moment, runner: Runner | None = None) -> Tensor:
        # A runner of its own may keep values of the layers, or leave rows out.
        plain = runner is None or (isinstance(runner, partial) and runner.func is run_blocks)
        if not (self.once and plain):
            return self._features(tokens, branch, moment, runner)
        if id(branch) in self.passes:
            features, flops, rows = self.passes[id(branch)]
            self.repeated += flops
            self.rows.update(rows)
            return features.clone()  # as the pass would return: states that keep several hold as many bytes
        before, rows = self.counter.get_total_flops(), self.rows.copy()
        features = self._features(tokens, branch, moment, runner)
        self.passes[id(branch)] = features, self.counter.get_total_flops() - before, self.rows - rows
        return features

    def _features(self, tokens: Tensor, branch: Branch, moment: Moment, runner: Runner | None) -> Tensor:
        if not hasattr(self.base, "blocks"):
            return self.base.features(tokens, branch, moment)
        run = runner or run_blocks
        inner: Any = self.base
        return inner.features(tokens, branch, moment, runner=lambda _, x, ctx: run(self.blocks, x, ctx))

    def head(self, features: Tensor, positions: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        self.rows["head"] += features.shape[0] * features.shape[1]
        return self.base.head(features, positions, rows)


class _MeteredBlock:
    def __init__(self, block: Block, rows: Counter[str]):
        self.block, self.rows = block, rows

    def __call__(self, x: Tensor, ctx: Any) -> Tensor:
        self._count(PARTS, x)
        return self.block(x, ctx)

    def k(self, x: Tensor, ctx: Any) -> Tensor:
        self._count(("k",), x)
        return self.block.k(x, ctx)

    def v(self, x: Tensor, ctx: Any) -> Tensor:
        self._count(("v",), x)
        return self.block.v(x, ctx)

    def attn_delta(self, x: Tensor, ctx: Any, k: Tensor, v: Tensor) -> Tensor:
        self._count(("attn_delta",), x)
        return self.block.attn_delta(x, ctx, k, v)

    def mlp_delta(self, x: Tensor, ctx: Any) -> Tensor:
        self._count(("mlp_delta",), x)
        return self.block.mlp_delta(x, ctx)

    def _count(self, parts: Iterable[str], x: Tensor) -> None:
        for part in parts:
            self.rows[part] += x.shape[0] * x.shape[1]


@torch.inference_mode()
def read_meter(sampler: Sampler, source: InputSource, images: int) -> Reading:
    """Generate the first `images` of `source` together and count."""
    rows, numbers, reading = Counter[str](), torch.arange(images), Reading(images)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    # The work of a step depends on values only where results decide what is revealed, or which steps are full.
    planned = sampler.plan() is not None and sampler.sampling.select.rule == "count"
    metered: Any = _Metered(sampler.base, rows, counter, planned)
    with counter:
        plain = Sampler(metered, sampler.sampling, sampler.accelerator, runtime=PLAIN)
        generation = plain.start(source(numbers), sampler.noise(0, numbers))
        for _ in generation:
            reading.flops.append(counter.get_total_flops() + metered.repeated - sum(reading.flops))
            reading.rows.append({part: rows[part] for part in (*PARTS, "head")})
            rows.clear()
            reading.cached = max(reading.cached, held_bytes(generation.run.state))
    reading.full_steps = generation.run.mean_full_steps()
    return reading


def held_bytes(state: object) -> int:
    """Return bytes of all tensors in `state`; shared storage counts once, bases and networks do not count."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(state, set())}.values())


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, (nn.Module, Branch, str, bytes, int, float, type)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (t for item in value.values() for t in _tensors(item, seen))
    elif isinstance(value, Iterable):
        yield from (t for item in value for t in _tensors(item, seen))
    elif hasattr(value, "__dict__"):
        # A generator, not a new dictionary: `seen` holds ids, and a freed dictionary's id may be used again.
        kept = (item for name, item in vars(value).items() if name not in ("base", "module"))
        yield from (t for item in kept for t in _tensors(item, seen))
