"""Read and publish stores on any file system of fsspec (s3://, hf://, file://, ...), through a cache of bounded size.

The file system takes credentials and endpoints from the environment (AWS_ENDPOINT_URL, HF_TOKEN, ...).
"""

import fcntl
import os
import re
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.extras import install
from migm.runtime.files import file_hash, is_url, replacing
from migm.runtime.jsonl import dumped, parse_lines
from migm.runtime.launch import launched
from migm.runtime.owned import only, own, refuse_foreign

if TYPE_CHECKING:
    from migm.trajectories.store import Store

Shard = dict[str, Any]  # a line of the manifest
Tensors = dict[str, Tensor]
DIGEST = "[0-9a-f]{64}"
NAMES = rf"lock|{DIGEST}\.(safetensors|tmp|safetensors\.tmp)"  # of all files in a cache
CACHE = ("shards", "data.cache")  # the content of a cache, and its key


class Place:
    """The folder at `url`; any error becomes a UserError that names `key`."""

    def __init__(self, url: str, key: str):
        self.url, self.key = url.rstrip("/"), key
        self._reach()  # raises at once if the protocol is unknown or a package is missing

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the objects of a JSON-lines file; an empty list if there is no such file."""
        with self._reached() as (system, root):
            try:
                data = cast(bytes, system.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return []
        return parse_lines(data, f"{self.url}/{name}")

    def sizes(self) -> dict[str, int]:
        """Return the size of every file in bytes, by name."""
        with self._reached() as (system, root):
            system.invalidate_cache()
            entries = cast(dict[str, Any], system.find(root, detail=True))
        return {name.rpartition("/")[2]: entry["size"] for name, entry in entries.items()}

    def get(self, name: str, local: Path) -> None:
        with self._reached() as (system, root):
            system.get_file(f"{root}/{name}", str(local))

    def put(self, local: Path) -> None:
        """Upload a file under its own name."""
        with self._reached() as (system, root):
            if isinstance(system, LocalFileSystem):
                system.makedirs(root, exist_ok=True)  # elsewhere this would create a bucket if the name is wrong
            system.put_file(str(local), f"{root}/{local.name}")

    def write(self, name: str, text: str) -> None:
        with self._reached() as (system, root):
            system.pipe_file(f"{root}/{name}", text.encode())

    def _reach(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the file system and the path in it.

        Both are looked up at every call, since a forked process needs a file system of its own; fsspec keeps the file
        systems of a process.
        """
        try:
            return fsspec.url_to_fs(self.url)
        except ImportError as error:
            raise UserError(f"{self.key}={self.url}: {error}; for s3:// that is {install('remote')}") from error
        except ValueError as error:
            raise UserError(f"{self.key}={self.url}: {error}") from error

    @contextmanager
    def _reached(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """Yield what `_reach` returns; any exception becomes a UserError, as every system has exceptions of its own."""
        place = self._reach()
        try:
            yield place
        except Exception as error:
            raise UserError(f"{self.key}={self.url} failed ({type(error).__name__}: {error})") from error


class Remote:
    """The shards of the store at `url`, with local copies in the folder `cache`, at most `limit` bytes.

    Any number of processes of a machine and several stores may share the cache: a shard's name there is its hash. One
    process downloads at a time, under a temporary name, and the download is compared with the manifest. To make room,
    the least recently opened shards are removed. A shard that a process has open is locked and stays, even if the cache
    exceeds its limit until the shard is closed. A folder that held other files is refused. Only shards and their
    temporary files are ever removed.
    """

    def __init__(self, url: str, cache: str | Path, limit: int):
        self.place, self.cache, self.limit = Place(url, "data.folder"), Path(cache), limit
        refuse_foreign(self.cache, *CACHE, only(self.cache, NAMES))

    def verify(self, shards: Sequence[Shard], contents: bool) -> None:
        """Refuse shards whose size differs from the manifest; with `contents`, drop damaged copies from the cache.

        All other shards are compared with their hashes when they are downloaded.
        """
        sizes = self.place.sizes()
        for shard in shards:
            name, size = shard["file"], sizes.get(shard["file"])
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} of {shard['bytes']} bytes"
                raise UserError(f"data.folder: shard {self.place.url}/{name} {state}; publish the store again")
            path = self._path(shard)
            if contents and path.exists() and file_hash(path) != shard["sha256"]:
                warnings.warn(f"{path} is damaged; {self.place.url}/{name} will be fetched again", stacklevel=2)
                self._drop(path)

    def need(self, shards: Sequence[Shard], count: int) -> None:
        """Refuse a cache that cannot hold `count` shards at once."""
        most = sum(sorted((shard["bytes"] for shard in shards), reverse=True)[:count])
        if self.limit < most:
            raise UserError(
                f"data.cache_bytes={self.limit} is too little for {self.place.url}: {min(count, len(shards))} shards "
                f"that are read together take {most} bytes; raise it, or collect with fewer data.shard_images"
            )

    def open(self, shard: Shard, read: Callable[[Path], Tensors]) -> Tensors:
        """Return `read` of the local copy, which stays in the cache as long as the tensor `features` is in use."""
        path, lock = self._locked(shard)
        try:
            tensors = read(path)
        except BaseException:
            os.close(lock)
            raise
        weakref.finalize(tensors["features"], os.close, lock)
        return tensors

    def _locked(self, shard: Shard) -> tuple[Path, int]:
        """Return the path of a shard's local copy and the open lock that keeps it in the cache."""
        path = self._path(shard)
        while True:
            try:
                lock = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                self._download(shard)
                continue
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.fstat(lock).st_size != shard["bytes"]:
                self._drop(path)
            elif path.exists():  # not removed between opening and locking
                os.utime(path)
                return path, lock
            os.close(lock)

    def _download(self, shard: Shard) -> None:
        path, name = self._path(shard), f"{self.place.url}/{shard['file']}"
        own(self.cache, *CACHE, only(self.cache, NAMES))
        with self._alone():
            if path.exists():
                return  # another process was faster
            for rest in self._cached(r"(safetensors\.)?tmp"):  # left by a kill, since only this process downloads now
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()  # earlier versions left a file
            self._make_room(shard["bytes"])
            with replacing(path) as temporary:
                self.place.get(shard["file"], temporary)
                size, digest = temporary.stat().st_size, file_hash(temporary)
                if (size, digest) != (shard["bytes"], shard["sha256"]):
                    wrong = "its SHA-256 differs" if size == shard["bytes"] else f"{size} of {shard['bytes']} bytes"
                    raise UserError(f"data.folder: shard {name} arrived damaged ({wrong}); publish the store again")

    def _make_room(self, size: int) -> None:
        """Remove shards that no process has open, the least recently opened first, until `size` bytes fit."""
        files = sorted(((path.stat(), path) for path in self._cached("safetensors")), key=lambda x: x[0].st_mtime_ns)
        used = sum(stat.st_size for stat, _ in files)
        for stat, path in files:
            if used + size <= self.limit:
                return
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                used -= stat.st_size
            except BlockingIOError:
                pass  # a process has it open
            finally:
                os.close(lock)

    def _cached(self, ending: str) -> list[Path]:
        return [path for path in self.cache.iterdir() if re.fullmatch(rf"{DIGEST}\.{ending}", path.name)]

    def _path(self, shard: Shard) -> Path:
        return self.cache / f"{shard['sha256']}.safetensors"

    def _drop(self, path: Path) -> None:
        with self._alone():
            path.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.cache / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def publish(store: "Store", url: str) -> Iterator[int]:
    """Copy a local store to `url`, where it is read-only; yield the number of images of each shard.

    The manifest is written after every new shard, so that there is a valid store at any moment. If started again,
    shards that are listed there and have the right size are not sent again. A store of other trajectories is refused.
    """
    if (count := launched()[1]) > 1:
        raise UserError(f"publish_to: {count} processes were started; use one")
    if store.remote or not is_url(url):
        raise UserError(
            f"publish_to={url}: data.folder={store.name} goes from a folder to a URL such as s3://bucket/prefix"
        )
    place, manifest, wanted = Place(url, "publish_to"), store.manifest.name, [store.header, *store.shards]
    published, sizes = place.lines(manifest), place.sizes()
    if published != wanted[: len(published)]:
        raise UserError(f"publish_to={url} holds other trajectories; choose another")
    for number, shard in enumerate(store.shards, 1):
        listed = number < len(published)
        if not listed or sizes.get(shard["file"]) != shard["bytes"]:
            store.check(shard)
            place.put(store.folder / shard["file"])
        if not listed:
            place.write(manifest, dumped(wanted[: number + 1]))
        yield shard["count"]
