"""Errors for people: one line, with the value, what is allowed and the key to set; and how a command ends."""

import difflib
import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from migm.runtime.launch import in_sweep, launched


class UserError(ValueError):
    """Something the user can put right; shown as one line, without a traceback."""


class Stopped(Exception):
    """A run that was ended from outside and saved what it had; `code` is the command's exit code."""

    def __init__(self, why: str, code: int):
        super().__init__(why)
        self.code = code


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """End a command with one line and a non-zero exit code on errors that a user can put right.

    A trial of a sweep raises instead: `migm.reporting.sweep` says the line, and the others go on.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        # Lightning's hints and its use of a deprecated torch call would hide what the command itself says.
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            return main(*args, **kwargs)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            other = isinstance(error, RuntimeError) and not _out_of_memory(error)
            if other or os.environ.get("MIGM_TRACEBACK") or in_sweep():
                raise
            rank, count = launched()
            whose = f"rank {rank}: " if count > 1 else ""
            print(f"error: {whose}{' '.join(_told(error).split())}  (MIGM_TRACEBACK=1 shows where)", file=sys.stderr)
            sys.exit(2)
        except Stopped as stop:
            print(f"stopped: {stop}; the same command goes on from here", file=sys.stderr)
            sys.exit(stop.code)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    return wrapped


def _told(error: Exception) -> str:
    """An error's message, with what helps against a full disk or full memory."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error}; make room, and the same command goes on from here"
    if _out_of_memory(error):
        cause = ". ".join(str(error).split(". ")[:3]).rstrip(".")  # of what torch says: what was wanted, what is free
        keys = "data.batch_size, data.collect_batch_size, evalset.batch_size or batch_size"
        return f"out of memory ({cause or type(error).__name__}); make the batch smaller by {keys}"
    return str(error)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # of CPUs


def nearest(word: str, options: Iterable[str]) -> str:
    """The end of an error about a word that is none of the options: what may be meant, and all of them."""
    known = sorted(options)
    close = difflib.get_close_matches(word, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"
