"""Check before any work that a command can write its files, and lock them while it runs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from migm.runtime.errors import UserError
from migm.runtime.launch import launched, local_rank

LOCK = ".migm-lock"  # name of the lock in a folder that is being written


@contextmanager
def writing(
    path: str | Path, named: str, *, folder: bool = False, waiting: Callable[[str], Any] | None = None
) -> Iterator[bool]:
    """Lock a file, or with `folder` a folder, for this command; `named` is its key and value, for errors.

    Raises UserError if nothing can be written there, or if another command holds the lock. With `waiting`, which is
    called with a message, this command waits for the lock instead. The system releases the lock also after a kill. In a
    run of several processes, the first one holds the lock for all; it gets True, the others False.
    """
    if not _first():
        yield False
        return
    path = Path(path)
    inside = path if folder else path.parent
    with _made(path, inside, named):
        lock = FileLock(inside / (LOCK if folder else f".{path.name}.lock"))
        with _errors(path, named):
            _acquire(lock, named, waiting)
        try:
            yield True
        finally:
            # Removed while held: a command that has opened the file already sees that it is gone, and tries again.
            with suppress(OSError):
                os.unlink(lock.lock_file)
            lock.release()


def refuse_unwritable(path: str | Path, named: str, *, folder: bool = False) -> None:
    """Raise a UserError unless a file can be made beside `path`, or inside a `folder`; an old file must be writable.

    Nothing remains of the trial.
    """
    if not _first():
        return
    path = Path(path)
    inside = path if folder else path.parent
    with _made(path, inside, named), _errors(path, named), TemporaryFile(dir=inside):
        if path.is_file():
            path.open("ab").close()


@contextmanager
def _made(path: Path, inside: Path, named: str) -> Iterator[None]:
    """Make the folder `inside` for the block; new folders that are still empty at the end are removed."""
    with _errors(path, named):
        if inside != path and path.is_dir():
            raise UserError(f"{named} is a folder; name a file in it")
        if inside == path and path.exists() and not path.is_dir():
            raise UserError(f"{named} is a file; choose a folder")
        new = [parent for parent in (inside, *inside.parents) if not parent.exists()]
        inside.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that holds something stays
            for parent in new:
                parent.rmdir()


@contextmanager
def _errors(path: Path, named: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or path
        below_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is where a folder should be" if below_file else error.strerror or type(error).__name__
        raise UserError(f"{named} cannot be written ({place}: {reason}); choose another place") from error


def _acquire(lock: FileLock, named: str, waiting: Callable[[str], Any] | None) -> None:
    held = f"{named} is being written by another command"
    try:
        lock.acquire(blocking=False)
        return
    except Timeout as error:
        if waiting is None:
            raise UserError(f"{held}; wait for it, or choose another place") from error
    waiting(f"{held}: waiting for it")
    while not lock.is_locked:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)  # the other command may have removed the folder
        with suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0.5)


def _first() -> bool:
    """Return whether this is the only process, or the first of those that a launcher or Lightning started."""
    return launched()[0] == 0 and local_rank() == 0 and os.environ.get("NODE_RANK", "0") == "0"
