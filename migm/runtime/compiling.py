"""Choose what runs compiled or captured. It changes times, never which tokens a float32 sampler draws."""

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import torch
import torch.fx.experimental._config

from migm.runtime.errors import UserError

Switch = Literal["auto"] | bool
P = ParamSpec("P")
R = TypeVar("R")
MOST_VERSIONS = 256  # of one compiled function: kinds of bases, precisions and numbers of dimensions in one process


@dataclass(frozen=True)
class Runtime:
    """Choices of how a sampler and a training run.

    `compile` fuses the operators of blocks, shortcut, drawing and selection, and of a training's shortcut and loss
    (torch.compile, shapes that vary).
    `cuda_graphs` captures a whole run of one batch size and replays it, with new inputs and noise. "auto" takes either
    on CUDA where it was measured to pay (experiments/020-speed): a small base is captured, since starting its kernels
    takes longer than running them, and one that is not tiny is compiled, which takes a minute when first done.
    In bfloat16 a compiled base rounds differently; draws do not.
    """

    compile: Switch = "auto"
    cuda_graphs: Switch = "auto"

    def compiles(self, device: torch.device, num_parameters: int) -> bool:
        """Return whether functions of a base of this size are compiled; UserError if they have to be and cannot."""
        pays = device.type == "cuda" and num_parameters > TINY
        if not self.compile or (self.compile == "auto" and not pays):
            return False
        lacking = lacking_compiler(device)
        if self.compile != "auto" and lacking:
            raise UserError(f"runtime.compile=true, but {lacking}; choose auto or false")
        return not lacking

    def fast(self, device: torch.device, num_parameters: int) -> "Fast":
        """Return what turns a function into the one to call: compiled, or as it is."""
        return compiled if self.compiles(device, num_parameters) else as_it_is

    def captures(self, device: torch.device, num_parameters: int) -> bool:
        """Return whether whole runs of a base of this size are captured; UserError if they have to be and cannot."""
        if self.cuda_graphs == "auto":
            return device.type == "cuda" and torch.cuda.is_available() and num_parameters < LAUNCH_BOUND
        if self.cuda_graphs and device.type != "cuda":
            raise UserError(f"runtime.cuda_graphs=true, but the base is on {device.type}; choose auto or false")
        return self.cuda_graphs


TINY, LAUNCH_BOUND = 50 * 10**6, 10**9  # parameters of a base
PLAIN = Runtime(False, False)


class Fast(Protocol):
    """A function that turns another into the one to call."""

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...


def as_it_is(function: Callable[P, R]) -> Callable[P, R]:
    return function


@functools.cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function compiled as one graph, in which sizes may vary; it is compiled when first called.

    Rounding to bfloat16 between operators is kept, since draws depend on it.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VERSIONS)
    torch.fx.experimental._config.use_duck_shape = False  # else sizes that are equal at first have to stay equal
    options: dict[str, Any] = {"emulate_precision_casts": True}
    return torch.compile(function, dynamic=True, fullgraph=True, options=options)


@functools.cache  # asked at the start of every generation
def lacking_compiler(device: torch.device) -> str:
    """Return what compiling for this device lacks here, or an empty text."""
    names = (os.environ.get("CC"), os.environ.get("CXX"), "cc", "gcc", "g++", "clang", "clang++")
    if not any(name and shutil.which(name) for name in names):
        return "no C compiler was found (CC names one)"
    if device.type != "cuda":
        return ""
    from torch.utils._triton import has_triton  # imports Triton

    return "" if has_triton() else "Triton does not run on this device"


def notice(fast: Fast) -> str:
    """Return what a command should say before it compiles, or an empty text."""
    if fast is as_it_is:
        return ""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # imports the compiler

    return f"compiles at first: about a minute, less once {cache_dir()} is filled (runtime.compile=false does without)"
