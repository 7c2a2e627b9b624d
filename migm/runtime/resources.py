"""Check for room on the disk and in memory before long work; keep memory that is needed again."""

import ctypes
import os
import shutil
from pathlib import Path

from migm.runtime.errors import UserError

UNITS = {1e12: "TB", 1e9: "GB", 1e6: "MB", 1e3: "kB"}
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # the limit of a container or job, cgroup version 2
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's numbers of settings, from malloc.h


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the activations of the next step.

    New pages take the kernel a quarter of a full step of a large batch on a CPU (experiments/LOG.md). It works with
    glibc alone, and leaves settings of the environment (MALLOC_..., GLIBC_TUNABLES) as they are.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)


def readable(size: int) -> str:
    """Return bytes as text, in the largest unit of which there is at least one."""
    unit = next((unit for unit in UNITS if size >= unit), None)
    return f"{size / unit:.2f} {UNITS[unit]}" if unit else f"{size} bytes"


def refuse_full_disk(folder: Path, size: int, what: str, remedy: str) -> None:
    """Raise an error before anything is written if the disk cannot hold `what`."""
    free = free_disk(folder)
    if size > 0.95 * free:
        raise UserError(f"{what} needs {readable(size)}, {folder} has {readable(free)} free; {remedy}")


def free_disk(folder: Path) -> int:
    """Return the free bytes where a folder is or will be."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def refuse_full_memory(size: int, what: str, remedy: str) -> None:
    """Raise an error before the work if main memory cannot hold `what`; go on if the free memory is unknown."""
    free = available_memory()
    if free is not None and size > 0.95 * free:
        raise UserError(f"{what} needs {readable(size)} of memory, {readable(free)} are free; {remedy}")


def available_memory() -> int | None:
    """Return the bytes available without swapping, within the machine and this process's group; None if unknown."""
    limits = [value for value in (_machine(), _group()) if value is not None]
    return min(limits) if limits else None


def _machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def _group() -> int | None:
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        caches = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(caches["inactive_file"]))
    except (OSError, KeyError, ValueError):  # there is no such file, or it says "max"
        return None
