"""Folders that this program fills: one that held files of others is refused, and only in our own is anything removed.

A folder is ours if it was new or empty when we first wrote into it. A file in it says so, `.migm-<what>`. Folders of
earlier versions have none: callers know those by what they hold.
"""

import re
from pathlib import Path

from migm.runtime.errors import UserError
from migm.runtime.reading import files_of

MARKER = ".migm-"


def refuse_foreign(folder: Path, what: str, key: str, known: bool = False) -> None:
    """UserError where `folder` holds files and is not marked for `what`, unless it is `known` to be ours."""
    marker = _marker(folder, what)
    if marker.exists():
        return
    held = _held(folder, key)
    if held and not known and not marker.exists():  # another process may have begun it meanwhile
        raise UserError(
            f"{key}={folder} holds {held[0]}, and migm did not begin this folder; choose a new or an empty one "
            f"(or, if it may be filled and its {what} replaced, put an empty file {marker.name} there)"
        )


def own(folder: Path, what: str, key: str, known: bool = False) -> None:
    """Make the folder and mark it as ours; one of others is refused as by `refuse_foreign`."""
    refuse_foreign(folder, what, key, known)
    folder.mkdir(parents=True, exist_ok=True)
    marker = _marker(folder, what)
    if not marker.exists():
        marker.touch()


def refuse_filled(folder: Path, key: str) -> None:
    """UserError where `folder` holds anything at all."""
    if held := _held(folder, key):
        raise UserError(f"{key}={folder} holds {held[0]} already; choose an empty folder")


def only(folder: Path, names: str) -> bool:
    """Whether all that a folder holds has a name that the pattern `names` matches whole."""
    return all(re.fullmatch(names, name) for name in _held(folder, ""))


def _held(folder: Path, key: str) -> list[str]:
    """Names of what a folder holds, without markers and what systems put there; none where there is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}={folder} is a file; choose a folder")
    return [path.name for path in files_of(folder) if not path.name.startswith(MARKER)]


def _marker(folder: Path, what: str) -> Path:
    return folder / f"{MARKER}{what}"
