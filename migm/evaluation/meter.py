"""What one generation computes and keeps, step by step: rows through blocks and head, FLOPs, memory of caches."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from migm.accelerators.accelerator import Accelerator, Run
from migm.bases.base import Base, Branch, StepRecord
from migm.bases.inputs import InputSource
from migm.bases.layers import Block, Runner, run_blocks
from migm.sampling.loop import Sampling, generate_images

# torch counts its fused attention kernels on CUDA, not the one on CPUs.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
PARTS = ("k", "v", "attn_delta", "mlp_delta")


@dataclass
class Reading:
    """Per step, summed over images and guidance halves; `cached` is the largest number of bytes held between steps."""

    images: int
    flops: list[int] = field(default_factory=list)
    rows: list[dict[str, int]] = field(default_factory=list)  # through PARTS of all blocks, and the head
    full_steps: float = 0.0  # mean over images
    cached: int = 0


class Meter:
    """Observer of one generation; `base` stands in for the given one and counts what goes through it."""

    def __init__(self, base: Base, images: int):
        self.rows: Counter[str] = Counter()
        self.base = _Metered(base, self.rows)
        self.reading = Reading(images)
        self.run: Run | None = None
        self.counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        self._flops = 0

    def on_step(self, record: StepRecord) -> None:
        total = self.counter.get_total_flops()
        self.reading.flops.append(total - self._flops)
        self._flops = total
        self.reading.rows.append({part: self.rows[part] for part in (*PARTS, "head")})
        self.rows.clear()
        if self.run is not None:
            self.reading.cached = max(self.reading.cached, held_bytes(self.run.state))

    def accelerator(self, accelerator: Accelerator) -> Accelerator:
        """The same accelerator, whose run this meter looks into."""
        return _Watched(accelerator, self)


class _Watched(Accelerator):
    def __init__(self, inner: Accelerator, meter: Meter):
        super().__init__(inner.policy, inner.predictor, inner.name)
        self.meter = meter

    def start(self, base: Base, branches: Sequence[Branch], counts: Sequence[int]) -> Run:
        self.meter.run = super().start(base, branches, counts)
        return self.meter.run


class _Metered:
    """A base that counts; all that is not counted is the given one's."""

    def __init__(self, base: Base, rows: Counter[str]):
        self.base, self.rows = base, rows
        if hasattr(base, "blocks"):
            self.blocks = [_MeteredBlock(block, rows) for block in base.blocks]  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def features(self, tokens: Tensor, branch: Branch, mask_ratio: Tensor, runner: Runner | None = None) -> Tensor:
        if not hasattr(self.base, "blocks"):
            return self.base.features(tokens, branch, mask_ratio)
        run = runner or run_blocks
        inner: Any = self.base
        return inner.features(tokens, branch, mask_ratio, runner=lambda _, x, ctx: run(self.blocks, x, ctx))

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


def read_meter(base: Base, sampling: Sampling, accelerator: Accelerator, source: InputSource, images: int) -> Reading:
    """Generate the first `images` of `source` together and count."""
    meter, numbers = Meter(base, images), torch.arange(images)
    with meter.counter:
        generate_images(
            meter.base,  # type: ignore[arg-type]
            source(numbers),
            numbers,
            seed=0,
            sampling=sampling,
            accelerator=meter.accelerator(accelerator),
            observers=[meter],
        )
    assert meter.run is not None
    return dataclasses.replace(meter.reading, full_steps=meter.run.mean_full_steps())


def held_bytes(state: object) -> int:
    """Bytes of all tensors in `state`, storage shared by several counted once; bases and networks do not count."""
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
        # No dictionary is made of them: `seen` would take another one at its address for the same.
        own = (item for name, item in vars(value).items() if name not in ("base", "module"))
        yield from (t for item in own for t in _tensors(item, seen))
