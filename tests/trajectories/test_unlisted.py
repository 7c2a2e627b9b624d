"""Shards noted by several processes end in the store of one, byte for byte, whatever stops them."""

import random
from pathlib import Path

import pytest
from tiny_parts import synthetic

from migm.trajectories.store import Store
from migm.trajectories.unlisted import Planned, Unlisted

HEADER = {"base": "abc", "storage": "features", "num_steps": 4, "copies": 2}
IMAGES, SHARD = 23, 4


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What one process writes, shard by shard."""
    store = Store(tmp_path_factory.mktemp("whole"), HEADER)
    for start in range(0, IMAGES, SHARD):
        store.append(synthetic(range(start, min(start + SHARD, IMAGES))))
    return files(store.folder)


class Killed(Exception):
    """Stands for a kill: nothing that follows in the process runs."""


def start(folder: Path, processes: int, chance: random.Random | None = None) -> bool:
    """One start of so many processes, taking turns; where `chance` says so, a kill in the midst of one's work."""
    store = Store(folder, HEADER)
    unlisted = Unlisted(store, IMAGES, SHARD)
    missing = unlisted.missing()
    store.begin()

    def maybe_killed(among: int) -> None:
        if chance and chance.randrange(among) == 0:
            raise Killed

    try:
        turns = [(shard, number % processes) for number, shard in enumerate(missing)]
        if chance:
            chance.shuffle(turns)
        for shard, turn in turns:
            maybe_killed(4)
            entry = store.write(shard.number, synthetic(range(shard.first, shard.last)))
            maybe_killed(4)
            unlisted.note(shard, entry)
            maybe_killed(4)
            if turn == 0:
                unlisted.list_noted()
        maybe_killed(2)
    except Killed:
        if chance and chance.randrange(2):  # or between the manifest's line and the end of the note
            last = unlisted.planned[0] if unlisted.planned else None
            entry = unlisted._noted(last) if last else None
            if entry:
                store.add(entry)
        return False
    unlisted.list_noted()
    return True


@pytest.mark.parametrize("seed", range(20))
def test_any_kills_and_numbers_of_processes_end_in_the_same_store(whole, tmp_path, seed):
    chance, starts = random.Random(seed), 0
    while not start(tmp_path, chance.choice([1, 2, 3]), chance):
        starts += 1
        assert starts < 200
        for name, content in files(tmp_path).items():  # what is listed is never written again or lost
            assert name != "manifest.jsonl" or whole[name].startswith(content)
    assert files(tmp_path) == whole


def test_a_start_makes_only_what_nobody_noted(whole, tmp_path):
    store = Store(tmp_path, HEADER)
    store.append(synthetic(range(4)))
    for number in (2, 4):
        shard = Planned(number, 4 * number, 4 * number + 4)
        Unlisted(store, IMAGES, SHARD).note(shard, store.write(number, synthetic(range(shard.first, shard.last))))
    again = Unlisted(Store(tmp_path, HEADER), IMAGES, SHARD)
    assert [shard.number for shard in again.missing()] == [1, 3, 5]
    assert again.written() == 8
    assert start(tmp_path, 2)
    assert files(tmp_path) == whole


@pytest.mark.parametrize("damage", ["cut", "other size", "other plan", "no manifest"])
def test_a_note_of_something_else_is_not_believed(tmp_path, damage):
    store = Store(tmp_path, HEADER)
    store.append(synthetic(range(4)))
    planned = Unlisted(store, IMAGES, SHARD)
    planned.note(Planned(2, 8, 12), store.write(2, synthetic(range(8, 12))))
    shard_images = SHARD
    if damage == "cut":
        (tmp_path / "000002.json").write_text('{"first": 8, "fi')
    elif damage == "other size":
        (tmp_path / "000002.safetensors").write_bytes(b"short")
    elif damage == "other plan":
        shard_images = 5
    else:
        (tmp_path / "manifest.jsonl").unlink()
    missing = Unlisted(Store(tmp_path, HEADER), IMAGES, shard_images).missing()
    assert 2 in [shard.number for shard in missing]
    assert not list(tmp_path.glob("*.json"))
