"""Recognise the operators of torch that make the host wait for the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READ = {  # a number that the host reads, or a result whose size it has to know
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIED = {aten._to_copy.default, aten.copy_.default}


def waits(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, on: Callable[[Tensor], bool] = lambda x: True
) -> bool:
    """Whether the host waited in an operator for a device; `on` says which tensors are there, by default all.

    A copy from one device to another waits unless it says `non_blocking`.
    """
    if func in COPIED:
        source = args[1] if func is aten.copy_.default else args[0]
        return not _non_blocking(func, args, kwargs) and on(source) != on(out)
    tensors = [x for x in args if isinstance(x, Tensor)]
    if func in INDEXED:
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) and on(x) for x in args[1])
    return func in READ and any(map(on, tensors))


def made_of_others(func: Any) -> bool:
    """Whether an operator is made of others that show what it does: in inference mode it is seen before them."""
    return isinstance(func, OpOverload) and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )


def _non_blocking(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking", args[2] if func is aten.copy_.default and len(args) > 2 else False))


class Waits(TorchDispatchMode):
    """Notes every operator that waits, by the last lines of the program that led to it."""

    def __init__(self, on: Callable[[Tensor], bool], where: Callable[[], str]):
        super().__init__()
        self.on, self.where, self.found = on, where, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if made_of_others(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if waits(func, args, kwargs or {}, out, self.on):
            self.found.append(f"{func} {self.where()}")
        return out
