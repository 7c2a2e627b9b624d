"""What the kernel is told about memory-mapped tensors, so that a cold read takes what is asked for and no more.

By default a page that is missing brings the device's whole read-ahead with it, 8 MB on some disks, for each of
the few places in a shard that a pair comes from.
"""

import ctypes
import mmap
import os
from pathlib import Path

from torch import Tensor

# Hints only: nothing is told where there is no such call.
_madvise = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_WILLNEED") else None


def read_start(path: Path, size: int = 4096) -> None:
    """Bring the start of a file, where its header is, into memory without what follows."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(size)


def read_singly(tensor: Tensor) -> None:
    """Read a missing page of this tensor alone."""
    _advise(tensor.data_ptr(), tensor.nbytes, "MADV_RANDOM")


def will_need(tensor: Tensor, first: int, count: int) -> None:
    """Begin to read `count` values of a flat tensor from number `first` on, without waiting for them."""
    _advise(tensor.data_ptr() + first * tensor.itemsize, count * tensor.itemsize, "MADV_WILLNEED")


def _advise(start: int, size: int, advice: str) -> None:
    if _madvise and size:
        page = start - start % mmap.PAGESIZE
        _madvise(ctypes.c_void_p(page), ctypes.c_size_t(start + size - page), ctypes.c_int(getattr(mmap, advice)))
