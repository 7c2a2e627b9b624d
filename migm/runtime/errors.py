"""Report errors in one line with the value, what is allowed and the key to set; end commands."""

import difflib
import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from migm.runtime.launch import in_sweep, launched


class UserError(ValueError):
    """An error that the user can put right; shown as one line, without a traceback."""


class Stopped(Exception):
    """Raised when a run was ended from outside and has saved its state; `code` is the command's exit code."""

    def __init__(self, why: str, code: int):
        super().__init__(why)
        self.code = code


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """End a command with one line and a non-zero exit code on errors that a user can put right.

    A trial of a sweep raises the error instead: `migm.reporting.sweep` prints the line, and the other trials go on.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with quiet_lightning():
                return main(*args, **kwargs)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            other = isinstance(error, RuntimeError) and not (_out_of_memory(error) or _compiling(error))
            if other or os.environ.get("MIGM_TRACEBACK") or in_sweep():
                raise
            rank, count = launched()
            whose = f"rank {rank}: " if count > 1 else ""
            print(f"error: {whose}{' '.join(_message(error).split())}  (MIGM_TRACEBACK=1 shows where)", file=sys.stderr)
            sys.exit(2)
        except Stopped as stop:
            print(f"stopped: {stop}; the same command goes on from here", file=sys.stderr)
            sys.exit(stop.code)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    return wrapped


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's hints and its warnings about a deprecated torch call, which would bury our own messages."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        logger.setLevel(level)


def _message(error: Exception) -> str:
    """Return an error's message, with advice for a full disk or full memory."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error}; make room, and the same command goes on from here"
    if _out_of_memory(error):
        # Torch's first sentences say how much was asked for and how much is free.
        cause = ". ".join(str(error).split(". ")[:3]).rstrip(".")
        keys = "data.batch_size, data.collect_batch_size, evalset.batch_size or batch_size"
        return f"out of memory ({cause or type(error).__name__}); make the batch smaller by {keys}"
    if _compiling(error):
        # The first line is the cause; what follows is the compiler's command and the way through torch.
        cause = str(error).strip().partition("\n")[0][:300]
        return f"the base could not be compiled here ({cause}); choose runtime.compile=false"
    return str(error)


def _compiling(error: Exception) -> bool:
    # By name, since importing the compiler takes seconds.
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _out_of_memory(error: Exception) -> bool:
    # On CPUs, only the message tells.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def nearest(word: str, options: Iterable[str]) -> str:
    """Return the end of an error about an unknown word: the option closest to it, and all options."""
    names = sorted(options)
    close = difflib.get_close_matches(word, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
