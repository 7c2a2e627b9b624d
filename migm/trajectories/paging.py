"""Advise the kernel about memory-mapped tensors, so that a cold read loads only the pages it needs.

By default, the kernel loads the device's whole read-ahead with a missing page, 8 MB on some disks. A pair lies in a
few places of a shard, and each of them would cost that much.
"""

import ctypes
import mmap
import os
from pathlib import Path

from torch import Tensor

# Advice is optional: a system without this call gets none.
_madvise = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_WILLNEED") else None


def read_start(path: Path, size: int = 4096) -> None:
    """Load the first bytes of a file, where its header is, without read-ahead."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(size)


def read_singly(tensor: Tensor) -> None:
    """Turn read-ahead off for this tensor: a missing page is loaded alone."""
    _advise(tensor.data_ptr(), tensor.nbytes, "MADV_RANDOM")


def will_need(tensor: Tensor, first: int, count: int) -> None:
    """Start loading `count` values of a flat tensor from index `first` on, without waiting for them."""
    _advise(tensor.data_ptr() + first * tensor.itemsize, count * tensor.itemsize, "MADV_WILLNEED")


def _advise(start: int, size: int, advice: str) -> None:
    if _madvise and size:
        page = start - start % mmap.PAGESIZE
        _madvise(ctypes.c_void_p(page), ctypes.c_size_t(start + size - page), ctypes.c_int(getattr(mmap, advice)))
