"""Let several processes write shards in any order, and list the shards in the order of their numbers.

A process that has written a shard notes its manifest entry in a file beside the shard, `NNNNNN.json`. Rank 0, in this
run or a later one, turns the notes that are next in order into lines of the manifest. So a kill loses at most the
shards being written, and the finished store is the same as that of a single process.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from migm.runtime.files import write_atomic
from migm.trajectories.store import Store


class Planned(NamedTuple):
    """A planned shard: its number in the store, and its images `first`...`last` - 1."""

    number: int
    first: int
    last: int


class Unlisted:
    """The shards that `store` still needs to list to hold `num_images`; some may be written already."""

    def __init__(self, store: Store, num_images: int, shard_images: int):
        self.store = store
        starts = range(len(store), num_images, shard_images)
        numbers = range(len(store.shards), len(store.shards) + len(starts))
        ends = (min(start + shard_images, num_images) for start in starts)
        self.planned = [Planned(*shard) for shard in zip(numbers, starts, ends, strict=True)]
        self.lacking = max(num_images - len(store), 0)

    def note(self, shard: Planned, entry: dict[str, Any]) -> None:
        """Note that a shard is completely written."""
        write_atomic(self._path(shard.number), json.dumps({"first": shard.first, **entry}))

    def missing(self) -> list[Planned]:
        """List the noted shards, remove other notes, and return the shards that are not written yet.

        For the start of a run only, when no process is writing.
        """
        notes = {path for path in self.store.folder.glob("*.json") if re.fullmatch(r"\d{6,}\.json", path.name)}
        if self.store.manifest.exists():  # without a manifest, the notes may be those of other trajectories
            self.list_noted()
            notes -= {self._path(shard.number) for shard in self.planned if self._noted(shard)}
        for path in notes:
            path.unlink(missing_ok=True)  # notes of another plan, or of shards listed just before a kill
        return [shard for shard in self.planned if not self._path(shard.number).exists()]

    def list_noted(self) -> None:
        """List the written shards that are next in order, and remove their notes."""
        while self.planned and (entry := self._noted(self.planned[0])):
            self.store.add(entry)
            self._path(self.planned.pop(0).number).unlink()

    def written(self) -> int:
        """Return how many of the images that were missing at first are written by now."""
        return self.lacking - sum(shard.last - shard.first for shard in self.planned if not self._noted(shard))

    def _noted(self, shard: Planned) -> dict[str, Any] | None:
        try:
            entry = json.loads(self._path(shard.number).read_text(encoding="utf-8"))
            size = (self.store.folder / entry["file"]).stat().st_size
            noted = (entry.pop("first"), entry["count"], entry["bytes"])
        except (OSError, ValueError, KeyError, TypeError):  # no note, or one cut off by a power failure
            return None
        return entry if noted == (shard.first, shard.last - shard.first, size) else None

    def _path(self, number: int) -> Path:
        return self.store.folder / f"{number:06d}.json"
