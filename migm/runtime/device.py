"""Choose the device and the precision of a run."""

import functools
import platform
from pathlib import Path
from typing import Literal

import torch

from migm.runtime.errors import UserError
from migm.runtime.launch import local_rank

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

    bfloat16 is faster on CUDA, on CPUs with AMX, and on AMD's CPUs with AVX512-BF16. An Intel CPU with AVX512-BF16 but
    without AMX reached 0.65 of its float32 rate.
    """
    if name == "auto":
        vectors = torch.cpu._is_avx512_bf16_supported() and "Intel" not in _cpu_name()
        fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported() or vectors
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]


def pick_precision(name: Precision, device: torch.device) -> str:
    """Return Lightning's name of a training's precision; `auto` is bf16-mixed where `pick_dtype` picks bfloat16."""
    if name == "auto":
        return "bf16-mixed" if pick_dtype("auto", device) == torch.bfloat16 else "32-true"
    return name


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
