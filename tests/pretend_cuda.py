"""A CUDA device pretended on the CPU: values are real, and what would meet on two devices is refused as CUDA does.

torch's own fake tensors (FakeTensorMode) have no values, so that nothing which waits for the device can be
followed, and without a GPU no gradient goes back through those of CUDA. What they refuse is refused here too: a test
compares the two, operator by operator.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from migm.cifar10.net import load_cifarnet
from migm.metrics.networks.inception import load_inception
from migm.runtime.compiling import Runtime
from migm.runtime.provenance import environment

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
# What may read one device and write another, and what takes indices from the CPU.
ANY_DEVICE = {aten.copy_.default, aten._to_copy.default, aten._has_compatible_shallow_copy_type.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
CACHES = (environment, load_cifarnet, load_inception)  # what knows or is on a device
LEAVING: ContextVar[bool] = ContextVar("LEAVING", default=False)  # whether a copy to the CPU was asked for


class Pretended(Tensor):
    """A tensor that says it is on CUDA; `held` has its values, in the same memory."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, held: Tensor) -> "Pretended":
        made = Tensor._make_subclass(cls, held)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)

    # torch's own methods would see a CPU tensor, which needs no copy.

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy, other = kwargs.pop("copy", False), args[0] if args else kwargs.pop("other", None)
        if isinstance(other, Tensor):
            args = (other.device, other.dtype, *args[1:])
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype = device or CUDA, dtype or self.dtype
        if device.type == "cuda" and dtype == self.dtype and not copy and memory_format is None:
            return self
        layout = {} if memory_format is None else {"memory_format": memory_format}
        going = LEAVING.set(device == CPU)
        try:
            return aten._to_copy.default(self, device=device, dtype=dtype, non_blocking=non_blocking, **layout)
        finally:
            LEAVING.reset(going)

    def cpu(self) -> Tensor:
        return self.to(CPU)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other.device, other.dtype)

    def get_device(self) -> int:
        return 0

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA)

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first (pretended)")

    __array__ = numpy

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on pretended {CUDA}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pretended":
        if id(self) not in memo:
            memo[id(self)] = copied = Pretended(self.held.clone()).requires_grad_(self.requires_grad)
            copied.__dict__.update({name: value for name, value in vars(self).items() if name != "held"})
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operator on what `args` and `kwargs` hold; what it makes is on CUDA where CUDA would make it."""
    here: dict[int, Pretended] = {}  # by what they hold
    others: list[Tensor] = []
    plain_args = [plain(x, here, others) for x in args]
    plain_kwargs = {name: plain(x, here, others) for name, x in kwargs.items()}
    wanted = kwargs.get("device")
    # torch itself takes what is here for the CPU's, and so do the zeros of gradients.
    if wanted == CPU and not LEAVING.get() and (here or torch._C._current_graph_task_id() != -1):
        wanted = CUDA
    if here and others and func not in ANY_DEVICE:
        refuse_mixed(func, args, others)
    if wanted is not None and wanted.type == "cuda":
        plain_kwargs["device"] = CPU
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu' (pretended)")
    out = func(*plain_args, **plain_kwargs)
    return on_cuda(out, here) if (here if wanted is None else wanted.type == "cuda") else out


def plain(x: Any, here: dict[int, Pretended], others: list[Tensor]) -> Any:
    """An argument with what is held in the place of what is here; both kinds of tensors are noted."""
    kind = type(x)
    if kind is Pretended:
        here[id(x.held)] = x
        return x.held
    if kind is list or kind is tuple:
        return kind([plain(y, here, others) for y in x])
    if isinstance(x, Tensor):
        others.append(x)
    return x


def on_cuda(x: Any, here: dict[int, Pretended]) -> Any:
    """A result, on CUDA; what was written in place is what was given."""
    if isinstance(x, Tensor):
        return here[id(x)] if id(x) in here else Pretended(x)
    return type(x)([on_cuda(y, here) for y in x]) if type(x) in (list, tuple) else x


def refuse_mixed(func: Any, args: Sequence[Any], others: Sequence[Tensor]) -> None:
    """RuntimeError unless the CPU's tensors are numbers that are only read, or indices of a tensor that is here."""
    if func in INDEXED and isinstance(args[0], Pretended):
        others = [x for x in others if all(x is not index for index in args[1])]
    written = [x for x, spec in zip(args, func._schema.arguments, strict=False) if spec.is_write]
    for x in others:
        if x.dim() or any(x is y for y in written):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func} with a CPU tensor of shape {tuple(x.shape)}, pretended)"
            )


class Pretending(TorchDispatchMode):
    """Sees what makes tensors on CUDA, or brings them there, before any of CUDA's kernels."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and its guard takes longer than `run`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(x, torch.device) for x in args):  # in inference mode `to` comes before it is taken apart
            with self:
                return func.decompose(*args, **kwargs or {})
        return run(func, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[torch.device]:
    """This thread has a CUDA device meanwhile, by all that torch says."""
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "pretended",
        "get_device_capability": (7, 0),
        "is_bf16_supported": True,
        "memory_allocated": 0,
        "mem_get_info": (2**40, 2**40),
        "max_memory_allocated": 0,
        "get_rng_state_all": [],
    }
    silent = ("_lazy_init", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_rng_state_all")
    fakes = {name: mock.Mock(return_value=value) for name, value in {**answers, **dict.fromkeys(silent)}.items()}
    pinned = mock.patch.object(Tensor, "pin_memory", lambda self, *_: self)
    stream = mock.patch.object(torch.accelerator, "current_stream", return_value=mock.Mock(is_capturing=bool))
    workspaces = mock.patch.object(torch._C, "_cuda_clearCublasWorkspaces", return_value=None, create=True)
    lifted, replaced = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=CUDA) is a copy that `Pretending` sees
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot become a `Pretended` one
    for cached in CACHES:
        cached.cache_clear()
    try:
        with (
            mock.patch.multiple(torch.cuda, **fakes),
            mock.patch.dict(os.environ),
            mock.patch.object(Runtime, "captures", return_value=False),  # a graph cannot be pretended
            pinned,
            stream,
            workspaces,
            Pretending(),
        ):
            yield CUDA
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(replaced)
        for cached in CACHES:
            cached.cache_clear()
