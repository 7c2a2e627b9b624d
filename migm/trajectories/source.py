"""Define the places of a store: a class for each file of conf/data/source, chosen by `data/source=`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from migm.runtime.errors import UserError
from migm.runtime.files import is_url
from migm.runtime.kinds import Whole
from migm.trajectories.dataset import PairDataset
from migm.trajectories.store import Store


class Source(Protocol):
    """The kind of place from which `TrajectoryData` reads its store."""

    read_only: bool  # whether nothing is collected there, so that a store has to be complete

    def store(self, folder: str | Path, header: dict[str, Any] | None = None) -> Store:
        """Return the store at `data.folder`; an old store has to match `header`, a new one gets it."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    read_only = False

    def store(self, folder: str | Path, header: dict[str, Any] | None = None) -> Store:
        if is_url(folder):
            raise UserError(f"data.folder={folder} is a URL, which data/source=url reads; add it")
        return Store(folder, header)


@dataclass(frozen=True)
class Url:
    """A URL of any file system of fsspec, read through the folder `cache`.

    The cache holds at most `cache_bytes` of shards. A store is refused if the shards that are read together take more.
    """

    cache: str | Path
    cache_bytes: Whole = 100_000_000_000
    read_only = True

    def store(self, folder: str | Path, header: dict[str, Any] | None = None) -> Store:
        if not is_url(folder):
            raise UserError(f"data.folder={folder} is no URL such as s3://bucket/prefix; leave out data/source=url")
        from migm.trajectories.remote import Remote  # imported here, since its locks do not exist on every system

        remote = Remote(str(folder), self.cache, self.cache_bytes)
        store = Store(folder, header, remote)
        # A training batch may read from two windows, and a validation batch from two shards.
        remote.need(store.shards, 2 * PairDataset.window + 2)
        return store
