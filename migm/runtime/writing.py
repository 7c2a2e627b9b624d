"""Where a command writes is tried before any work starts, and is its own while it runs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from migm.runtime.errors import UserError
from migm.runtime.launch import launched, local_rank

LOCK = ".migm-lock"  # in a folder that is being written


@contextmanager
def writing(
    path: str | Path, named: str, *, folder: bool = False, waiting: Callable[[str], Any] | None = None
) -> Iterator[bool]:
    """Hold a file, or with `folder` a folder, for this command; `named` is its key and value, for errors.

    Where nothing can be written, and where another command is at it, UserError; with `waiting`, which is
    told so, this one waits instead. The system gives the place free also after a kill. Of several
    processes of a run the first, which is told True, holds it for all.
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
            with suppress(OSError):  # while it is held: who opened it before sees that it is gone, and tries again
                os.unlink(lock.lock_file)
            lock.release()


def refuse_unwritable(path: str | Path, named: str, *, folder: bool = False) -> None:
    """UserError unless a file can be made beside `path`, or in it where that is a `folder`, and be added to.

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
    """The folder `inside`, while it is needed: what was made of it and is still empty at the end goes again."""
    with _errors(path, named):
        if inside != path and path.is_dir():
            raise UserError(f"{named} is a folder; name a file in it")
        if inside == path and path.exists() and not path.is_dir():
            raise UserError(f"{named} is a file; choose a folder")
        new = [each for each in (inside, *inside.parents) if not each.exists()]
        inside.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # one that holds something
            for each in new:
                each.rmdir()


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
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)  # the other may have taken it along
        with suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0.5)


def _first() -> bool:
    """Whether this is the one process, or the first of those that a launcher, or Lightning, started."""
    return launched()[0] == 0 and local_rank() == 0 and os.environ.get("NODE_RANK", "0") == "0"
