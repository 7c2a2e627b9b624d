"""Where a store of trajectories is read: a class for each file of conf/data/source, chosen by `data/source=`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from migm.runtime.errors import UserError
from migm.runtime.files import is_url
from migm.runtime.kinds import Whole
from migm.trajectories.dataset import PairDataset
from migm.trajectories.store import Store


class Source(Protocol):
    """What `TrajectoryData` asks of its `source`."""

    read_only: bool  # whether a store there has to be whole, since nothing is collected into it

    def store(self, folder: str | Path, header: dict[str, Any] | None = None) -> Store:
        """The store at `data.folder`; refused where it does not match `header`, what a new one is for."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of a file system of this machine."""

    read_only = False

    def store(self, folder: str | Path, header: dict[str, Any] | None = None) -> Store:
        if is_url(folder):
            raise UserError(f"data.folder={folder} is a URL, which data/source=url reads; add it")
        return Store(folder, header)


@dataclass(frozen=True)
class Url:
    """A URL of any file system that fsspec knows, read through the folder `cache`.

    The cache holds at most `cache_bytes` of shards; a store whose shards that are read together take more is refused.
    """

    cache: str | Path
    cache_bytes: Whole = 100_000_000_000
    read_only = True

    def store(self, folder: str | Path, header: dict[str, Any] | None = None) -> Store:
        if not is_url(folder):
            raise UserError(f"data.folder={folder} is no URL such as s3://bucket/prefix; leave out data/source=url")
        from migm.trajectories.remote import Remote  # its locks are not to be had on every system

        remote = Remote(str(folder), self.cache, self.cache_bytes)
        store = Store(folder, header, remote)
        # A batch may lie across two windows, and a validating one across two shards.
        remote.need(store.shards, 2 * PairDataset.window + 2)
        return store
