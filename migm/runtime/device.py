"""Choose the device and the precision of a run."""

import functools
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from migm.runtime.errors import UserError
from migm.runtime.launch import local_rank

CLEARLY_FASTER = 1.2  # below, bfloat16 does not pay for its rounding, and the choice would depend on chance

DeviceName = Literal["auto", "cpu", "cuda"]
DTypeName = Literal["auto", "float32", "bfloat16", "float64"]
Full = Literal["64-true", "32-true", "16-true", "bf16-true", "64", "32", "16", "bf16"]
Mixed = Literal["16-mixed", "bf16-mixed", "transformer-engine", "transformer-engine-float16"]
Precision = Literal["auto"] | Full | Mixed  # Lightning's names, including the short ones


def pick_device(name: DeviceName = "auto") -> torch.device:
    """Return the device of a name; `auto` is CUDA if available, else the CPU; of several GPUs, that of this process."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no CUDA device here; choose device=cpu or device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())  # srun may show each process only its own GPU


def pick_dtype(name: DTypeName, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; `auto` is bfloat16 where the device multiplies it faster than float32, else float32.

    It is faster on CUDA. A CPU that has instructions for it is measured: with AMX it is several times as fast, with
    AVX512-BF16 it reached between 0.65 and 2 times the rate of float32.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or multiplies_bfloat16_faster() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]


def pick_precision(name: Precision, device: torch.device) -> str:
    """Return Lightning's name of a training's precision; `auto` is bf16-mixed where `pick_dtype` picks bfloat16."""
    if name == "auto":
        return "bf16-mixed" if pick_dtype("auto", device) == torch.bfloat16 else "32-true"
    return name


def multiplies_bfloat16_faster() -> bool:
    """Return whether this CPU multiplies bfloat16 clearly faster than float32.

    A CPU without instructions for it is not measured.
    """
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return False
    wide, narrow = product_seconds((torch.float32, torch.bfloat16))
    return wide > CLEARLY_FASTER * narrow


@functools.cache  # once in a process, well under a second
def product_seconds(dtypes: tuple[torch.dtype, ...], rounds: int = 5) -> list[float]:
    """Return the fewest seconds of a matrix product in each dtype, which take turns, so that other jobs slow down all.

    Its size is that of a feed-forward layer of a small base, since small products gain less.
    """
    pairs = [(torch.randn(1024, 768, dtype=dtype), torch.randn(768, 768, dtype=dtype)) for dtype in dtypes]
    taken: list[list[float]] = [[] for _ in pairs]
    for _ in range(1 + rounds):  # the first one of each kind prepares its kernels
        for (a, b), seconds in zip(pairs, taken, strict=True):
            start = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - start)
    return [min(seconds[1:]) for seconds in taken]


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def without_values() -> Iterator[None]:
    """Make the modules and tensors of the block on the device `meta`, where they have shapes and no values.

    With `torch.device("meta")` alone, torch draws their random initial values by functions in Python, and imports its
    compiler for them, which takes a second.
    """
    with torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_ or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
