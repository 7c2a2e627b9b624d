"""Coordinate the processes of one run: their ranks, waiting, and sending values."""

import atexit
import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.launch import launched, local_rank

Value = TypeVar("Value")
# Minutes that a process waits for the others: rank 0 alone measures times, which may take hours.
PATIENCE = "MIGM_PATIENCE"


def join(device: torch.device) -> None:
    """Form a process group with the processes that a launcher started beside this one, if any.

    Lightning's own launcher starts the others only in `Trainer.fit`, which then forms the group.
    """
    own_rank, count = launched()
    if count == 1 or dist.is_initialized():
        return
    _set_address()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"  # as in Lightning, which reuses an existing group
    _together(lambda: dist.init_process_group(backend, rank=own_rank, world_size=count))
    atexit.register(_leave)


def rank() -> int:
    """Return the number of this process among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return the number of processes that have joined so far."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first(value: Value) -> Value:
    """Return rank 0's value in every process and ignore the others; any plain value, or tensors on the CPU."""
    if processes() == 1:
        return value
    values = [value]
    _together(lambda: dist.broadcast_object_list(values, src=0, group=_group(dist.group.WORLD)))
    return values[0]


def to_first(value: Value) -> list[Value]:
    """Return at rank 0 the values of all processes in the order of their ranks, and an empty list elsewhere."""
    if processes() == 1:
        return [value]
    values: Any = [None] * processes() if rank() == 0 else None
    _together(lambda: dist.gather_object(value, values, dst=0, group=_group(dist.group.WORLD)))
    return values or []


def wait() -> None:
    """Wait until all processes have called this function."""
    if processes() > 1:
        _together(lambda: dist.barrier(group=_group(dist.group.WORLD)))


def first_console() -> Plain:
    """Return a console that prints at rank 0 only."""
    return Plain(quiet=rank() > 0)


@functools.cache
def _group(_world: Any) -> dist.ProcessGroup:
    """Return a CPU group for waiting and sending values, with a longer timeout than that of a training's gradients."""
    minutes = float(os.environ.get(PATIENCE, "1440"))
    return dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes))  # type: ignore[return-value]


def _together(call: Callable[[], Any]) -> None:
    try:
        call()
    # Raised at once if a process closed its connection, after the timeout if it is silent.
    except RuntimeError as error:
        raise UserError(
            f"another process of this run ended, or was not heard of for too long ({PATIENCE}=<minutes> to wait "
            f"longer); what it printed says why, and the same command goes on from here ({str(error).splitlines()[0]})"
        ) from error


def _set_address() -> None:
    """Set the address of the meeting point: torchrun sets it itself, srun and submitit only what it follows from."""
    if "SLURM_PROCID" in os.environ and "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        _ = slurm.main_address, slurm.main_port  # reading the properties sets the variables
    os.environ.setdefault("LOCAL_RANK", str(local_rank()))
    if "SUBMITIT_LOCAL_NTASKS" in os.environ:  # the job number is that of the process that started all tasks
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(20_000 + int(os.environ["SUBMITIT_LOCAL_JOB_ID"]) % 20_000))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
