"""Mark the folders that migm fills; refuse folders with other files, and remove files only in marked ones.

A folder is ours if it was new or empty when migm first wrote into it. The file `.migm-<what>` marks it. Earlier
versions wrote no such file: callers recognise their folders by the files in them.
"""

import re
from pathlib import Path

from migm.runtime.errors import UserError
from migm.runtime.reading import files_of

MARKER = ".migm-"


def refuse_foreign(folder: Path, what: str, key: str, known: bool = False) -> None:
    """Raise a UserError if `folder` holds files and is not marked for `what`, unless it is `known` to be ours."""
    marker = _marker(folder, what)
    if marker.exists():
        return
    held = _held(folder, key)
    if held and not known and not marker.exists():  # another process may have marked the folder meanwhile
        raise UserError(
            f"{key}={folder} holds {held[0]}, and migm did not begin this folder; choose a new or an empty one "
            f"(or, if it may be filled and its {what} replaced, put an empty file {marker.name} there)"
        )


def own(folder: Path, what: str, key: str, known: bool = False) -> None:
    """Make the folder and mark it as ours; a folder with other files is refused as by `refuse_foreign`."""
    refuse_foreign(folder, what, key, known)
    folder.mkdir(parents=True, exist_ok=True)
    marker = _marker(folder, what)
    if not marker.exists():
        marker.touch()


def refuse_filled(folder: Path, key: str) -> None:
    """Raise a UserError if `folder` holds anything."""
    if held := _held(folder, key):
        raise UserError(f"{key}={folder} holds {held[0]} already; choose an empty folder")


def only(folder: Path, names: str) -> bool:
    """Return whether every name in a folder fully matches the pattern `names`."""
    return all(re.fullmatch(names, name) for name in _held(folder, ""))


def _held(folder: Path, key: str) -> list[str]:
    """Return the names in a folder, without markers and system files; an empty list if there is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}={folder} is a file; choose a folder")
    return [path.name for path in files_of(folder) if not path.name.startswith(MARKER)]


def _marker(folder: Path, what: str) -> Path:
    return folder / f"{MARKER}{what}"
