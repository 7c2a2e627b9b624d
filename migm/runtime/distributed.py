"""Several processes of one run: which one this is, how they wait for one another, and what they tell each other."""

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
# How long one waits for the others, in minutes: rank 0 alone takes times, which may well last hours.
PATIENCE = "MIGM_PATIENCE"


def join(device: torch.device) -> None:
    """Meet the processes that a launcher started beside this one, where there are any.

    Under Lightning's own launcher there are none until `Trainer.fit`, which then brings them together.
    """
    own, count = launched()
    if count == 1 or dist.is_initialized():
        return
    _set_address()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"  # as Lightning, which takes over the group it finds
    _together(lambda: dist.init_process_group(backend, rank=own, world_size=count))
    atexit.register(_leave)


def rank() -> int:
    """The number of this process among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are by now."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first(value: Value) -> Value:
    """Rank 0's value, in every process; what others pass is ignored. Any plain value or tensors on the CPU."""
    if processes() == 1:
        return value
    told = [value]
    _together(lambda: dist.broadcast_object_list(told, src=0, group=_group(dist.group.WORLD)))
    return told[0]


def to_first(value: Value) -> list[Value]:
    """The values of all processes in the order of their ranks, at rank 0; elsewhere nothing."""
    if processes() == 1:
        return [value]
    told: Any = [None] * processes() if rank() == 0 else None
    _together(lambda: dist.gather_object(value, told, dst=0, group=_group(dist.group.WORLD)))
    return told or []


def wait() -> None:
    """Go on when all processes have come this far."""
    if processes() > 1:
        _together(lambda: dist.barrier(group=_group(dist.group.WORLD)))


def first_console() -> Plain:
    """A console that only rank 0 shows."""
    return Plain(quiet=rank() > 0)


@functools.cache
def _group(_world: Any) -> dist.ProcessGroup:
    """A group for waiting and telling: on the CPU, and more patient than that of a training's gradients."""
    minutes = float(os.environ.get(PATIENCE, "1440"))
    return dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes))  # type: ignore[return-value]


def _together(call: Callable[[], Any]) -> None:
    try:
        call()
    except RuntimeError as error:  # a peer's closed connection at once, its silence after a while
        raise UserError(
            f"another process of this run ended, or was not heard of for too long ({PATIENCE}=<minutes> to wait "
            f"longer); what it printed says why, and the same command goes on from here ({str(error).splitlines()[0]})"
        ) from error


def _set_address() -> None:
    """Where the processes meet; torchrun says it, srun and submitit only tell from what it follows."""
    if "SLURM_PROCID" in os.environ and "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        _ = slurm.main_address, slurm.main_port  # sets them
    os.environ.setdefault("LOCAL_RANK", str(local_rank()))
    if "SUBMITIT_LOCAL_NTASKS" in os.environ:  # its job is the process that started all tasks
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(20_000 + int(os.environ["SUBMITIT_LOCAL_JOB_ID"]) % 20_000))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
