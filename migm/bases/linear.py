"""Linears in lower precision: 8-bit weights, and 8-bit inputs too where the device multiplies them.

A base and a shortcut name the kind of their blocks' linears; embeddings, heads, norms and projections stay as they are.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from migm.bases.transformer import PackedAttention
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash

LinearKind = Literal["plain", "fp8_rowwise", "int8_weights"]
FP8, FP8_MAX = torch.float8_e4m3fn, 448.0
INT8_MAX = 127.0
LEAST = 1e-12  # smallest largest value of a row, so that a row of zeros has a scale
MULTIPLE = 16  # of the sizes that `torch._scaled_mm` takes


def scaled(x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Return x (rows, k) with each row stretched to -largest...largest, and the rows' scales (rows, 1), in float32."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=LEAST) / largest
    return (wide / scale).clamp(-largest, largest), scale


def multiplies_fp8(device: torch.device) -> bool:
    """Return whether a device has matrix products of 8-bit floats: CUDA from compute capability 8.9 on."""
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 9)


class QuantisedLinear(nn.Module):
    """x (..., k) -> (..., n), by weights (n, k) in 8 bits and one float32 scale per output (1, n).

    `.to(dtype)` changes the bias alone. The inputs' dtype is the outputs'.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None):
        super().__init__()
        values, scale = self.quantised(weight.detach())
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = bias

    @staticmethod
    def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the 8-bit values of weights (n, k) and their scales (n, 1)."""
        raise NotImplementedError

    def product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the product (m, n) of rows x (m, k) and some of the weights (n, k), with their scales (1, n)."""
        raise NotImplementedError

    def forward(self, x: Tensor, outputs: slice = slice(None)) -> Tensor:
        """Map x to all outputs, or to some."""
        weight = self.weight[outputs]
        y = self.product(x.flatten(0, -2).contiguous(), weight, self.scale[:, outputs])
        y = y.view(*x.shape[:-1], weight.shape[0])
        return y if self.bias is None else y + self.bias[outputs]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantisedLinear":
        kept = {name: self._buffers.pop(name) for name in ("weight", "scale")}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            assert tensor is not None
            device = fn(torch.empty(0, device=tensor.device)).device
            self._buffers[name] = tensor.to(device)
        return self


class Float8Linear(QuantisedLinear):
    """Multiply 8-bit floats (e4m3): the weights with a scale per output, the inputs with one per row.

    Where the device cannot, or the inputs are not bfloat16, the same values are multiplied in float32: the results then
    differ by the order of summation only.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None):
        super().__init__(weight, bias)
        self.native = multiplies_fp8(self.weight.device)

    @staticmethod
    def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
        values, scale = scaled(weight, FP8_MAX)
        return values.to(FP8), scale

    def product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        values, row_scale = self.quantised(x)
        if self.native and x.dtype == torch.bfloat16 and len(x):
            return scaled_product(values, weight, row_scale, scale)
        return dequantised_product(values, weight, row_scale, scale).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float8Linear":
        super()._apply(fn, recurse)
        self.native = multiplies_fp8(self.weight.device)
        return self


def scaled_product(x: Tensor, weight: Tensor, row_scale: Tensor, scale: Tensor) -> Tensor:
    """Multiply 8-bit floats x (m, k) and weight (n, k) with their scales (m, 1) and (1, n): bfloat16 (m, n)."""
    return torch.ops.aten._scaled_mm(
        x, weight.t(), scale_a=row_scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def dequantised_product(x: Tensor, weight: Tensor, row_scale: Tensor, scale: Tensor) -> Tensor:
    """Return what `scaled_product` does, in float32 on any device."""
    return linear(x.float(), weight.float()) * row_scale * scale


class Int8Linear(QuantisedLinear):
    """Multiply by weights of 8-bit integers, which the inputs' dtype holds exactly, and then by the scales."""

    @staticmethod
    def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
        values, scale = scaled(weight, INT8_MAX)
        return values.round().to(torch.int8), scale

    def product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return (linear(x, weight.to(x.dtype)) * scale).to(x.dtype)


KINDS: dict[LinearKind, type[QuantisedLinear]] = {"fp8_rowwise": Float8Linear, "int8_weights": Int8Linear}


def quantise(module: nn.Module, kind: LinearKind, key: str) -> None:
    """Replace the linears below a module by those of a kind, one by one; `plain` changes nothing.

    Raises UserError, naming the config's `key`, for sizes that the kind cannot multiply.
    """
    if kind == "plain":
        return
    for place, part in list(module.named_modules()):
        if isinstance(part, nn.Linear):
            _replace(module, place, kind, key)
        elif isinstance(part, PackedAttention):
            part.in_proj = _quantised(part.in_proj_weight, part.in_proj_bias, f"{place}.in_proj", kind, key)
            del part.in_proj_weight, part.in_proj_bias


class Shrinking:
    """Replaces the linears of a network's blocks as soon as their weights are there, so that memory never holds all.

    Called with the name of each tensor that was filled. `sample` takes from a tensor what a fingerprint reads of it.
    """

    def __init__(self, net: nn.Module, kind: LinearKind, key: str, sample: Callable[[Tensor], Tensor]):
        self.net, self.key, self.sample = net, key, sample
        self.kind: LinearKind = kind
        self.names, self.samples = list(net.state_dict()), dict[str, Tensor]()

    def __call__(self, name: str) -> None:
        path, _, last = name.rpartition(".")
        part = self.net.get_submodule(path)
        if self.kind == "plain" or not name.startswith("blocks.") or not isinstance(part, nn.Linear):
            return
        self.samples[name] = self.sample(part.get_parameter(last).detach()).cpu().clone()
        if not any(tensor.is_meta for tensor in part.parameters()):
            _replace(self.net, path, self.kind, self.key)

    def originals(self) -> dict[str, Tensor]:
        """Return samples of all tensors of the network as it was before."""
        now = self.net.state_dict()
        return {name: self.samples[name] if name in self.samples else self.sample(now[name]) for name in self.names}


def with_linear(fingerprint: str, kind: LinearKind) -> str:
    """Return the fingerprint of a network whose linears are of a kind, from its fingerprint with plain ones."""
    return fingerprint if kind == "plain" else tensors_hash({}, fingerprint, kind)


def _replace(module: nn.Module, place: str, kind: LinearKind, key: str) -> None:
    old, (path, _, name) = module.get_submodule(place), place.rpartition(".")
    assert isinstance(old, nn.Linear)
    setattr(module.get_submodule(path), name, _quantised(old.weight, old.bias, place, kind, key))


def _quantised(weight: Tensor, bias: nn.Parameter | None, place: str, kind: LinearKind, key: str) -> QuantisedLinear:
    n, k = weight.shape
    if kind == "fp8_rowwise" and (n % MULTIPLE or k % MULTIPLE):
        raise UserError(
            f"{key}=fp8_rowwise multiplies sizes that are multiples of {MULTIPLE}, {place} is {n} x {k}; "
            f"choose {key}=int8_weights or plain"
        )
    return KINDS[kind](weight, bias)
