"""Fill a trajectory store with runs of the vanilla base."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from migm.bases.inputs import review
from migm.config.groups import alternatives
from migm.runtime.console import Plain
from migm.runtime.distributed import first_console, from_first, processes, rank, wait
from migm.runtime.errors import UserError
from migm.runtime.progress import progress
from migm.runtime.resources import readable, refuse_full_disk, refuse_full_memory
from migm.runtime.writing import LOCK, refuse_unwritable, writing
from migm.sampling.sampler import Sampler
from migm.trajectories.estimate import TrainingWork, comparison, duration, measure_work
from migm.trajectories.record import record
from migm.trajectories.store import MANIFEST, Store
from migm.trajectories.unlisted import Planned, Unlisted

if TYPE_CHECKING:
    from migm.trajectories.datamodule import TrajectoryData
    from migm.trajectories.storage import Stored


def header(sampler: Sampler, data: "TrajectoryData", seed: int) -> dict[str, Any]:
    """Return the facts that the first line of a manifest states; an old store has to match them."""
    guided = sampler.sampling.guidance is not None
    branches = sampler.base.encode(data.inputs(torch.zeros(1, dtype=torch.long)), guided)
    return {
        "base": sampler.base.fingerprint(),
        **stored(data).header(),
        "copies": sum(branch.copies for branch in branches),
        "num_steps": sampler.num_steps,
        "inputs": data.inputs.fingerprint(),
        "seed": seed,
        "sampling": sampler.sampling.identity,  # without B, since the vanilla base collects
    }


def stored(data: "TrajectoryData") -> "Stored":
    """Return the storage of `data`; UserError if it has no store."""
    if not data.storage.stores:
        raise UserError(
            f"data/storage={data.storage.name} has no store; for import_from, export_to and publish_to choose features "
            "or tokens"
        )
    return cast("Stored", data.storage)


def collect(sampler: Sampler, data: "TrajectoryData", seed: int, train_steps: int = 0) -> Store:
    """Fill the store of `data` up to its `num_images` and return it.

    The inputs of an image depend on its number alone, its noise on (seed, number). The processes of a run share the
    work by shards; the stored data is the same for any number of processes. The printed comparison with other storages
    is for a training of `train_steps`; at 0 steps there is no comparison.
    """
    review(sampler.base, data.inputs(torch.arange(data.num_images)), "data.inputs")
    expected, console = header(sampler, data, seed), first_console()
    store = data.store(expected)
    if data.source.read_only:
        return complete(store, data, console)
    with filling(store, data, console):
        _fill(sampler, data, seed, expected, train_steps, console)
    return Store(data.folder, expected)


@contextmanager
def filling(store: Store, data: "TrajectoryData", console: Plain) -> Iterator[None]:
    """Return a context in which only this command fills the store; other commands wait until it ends.

    A complete store without a lock file is not locked, so that it may lie in a read-only folder.
    """
    if len(store) >= data.num_images and not (store.folder / LOCK).exists():  # a kill leaves the lock file
        yield
        return
    named = f"data.folder={data.folder}"
    with writing(store.folder, named, folder=True, waiting=console.print) as first:
        if first:
            with writing(store.manifest, named, waiting=console.print):
                pass  # this removes the lock of a command that was killed while it appended
        yield


def refuse_unwritable_store(data: "TrajectoryData") -> None:
    """Raise a UserError if the store of `data` has yet to be made and cannot be written."""
    if data.storage.stores and not data.source.read_only and not (Path(data.folder) / MANIFEST).exists():
        refuse_unwritable(data.folder, f"data.folder={data.folder}", folder=True)


def _fill(sampler: Sampler, data: "TrajectoryData", seed: int, expected: Any, train_steps: int, console: Plain) -> None:
    store = data.store(expected)  # read again, now that no other command writes
    store.verify(contents=False)  # nothing is added to a damaged store
    unlisted = Unlisted(store, data.num_images, data.shard_images)
    # Only rank 0 looks for missing shards, so that all processes follow the same plan.
    missing = from_first(unlisted.missing() if rank() == 0 else [])
    if not missing:
        console.print(f"{len(store)} trajectories in {data.folder}: nothing to collect")
    else:
        if rank() == 0:
            work = measure_work(sampler, data, train_steps * data.batch_size * processes())
            announce(work, data, sum(shard.last - shard.first for shard in missing), console)
            store.begin()
        wait()
        make(missing[rank() :: processes()], unlisted, sampler, data, seed, console)
    wait()
    if rank() == 0:
        unlisted.list_noted()
    wait()


def complete(store: Store, data: "TrajectoryData", console: Plain) -> Store:
    """Return a store at a URL; UserError unless it is complete, since nothing is collected there."""
    if len(store) < data.num_images:
        raise UserError(
            f"data.folder={data.folder} holds {len(store)} of data.num_images={data.num_images} trajectories and is "
            "read only; collect into a folder and publish it (migm.collect publish_to=...)"
        )
    console.print(f"{len(store)} trajectories in {data.folder}: nothing to collect")
    return store


def announce(work: TrainingWork, data: "TrajectoryData", images: int, console: Plain) -> None:
    """Print the disk space and time for `images` trajectories; UserError if the disk or the memory is too small.

    If the work has pairs, a table of the costs of all storages comes first.
    """
    size = data.storage.costs(work._replace(images=images)).disk
    about = duration(images * work.seconds_an_image / processes())
    shared = f" in {processes()} processes" if processes() > 1 else ""
    if work.pairs:
        console.print(comparison(work, Path(data.folder), alternatives("data/storage")))
    console.print(f"collecting {images} trajectories: {readable(size)} into {data.folder}, about {about}{shared}")
    choices = "lower data.num_images or choose another data.folder or data/storage"
    refuse_full_disk(Path(data.folder), size, f"data.num_images={data.num_images}: the store", choices)
    refuse_full_shard(data, size // images)


def make(
    shards: Sequence[Planned], unlisted: Unlisted, sampler: Sampler, data: "TrajectoryData", seed: int, console: Plain
) -> None:
    """Write and note the shards of this process; rank 0 also lists the noted shards of all processes."""
    with progress(console, "images", part="collect") as bar:
        task = bar.add_task("collect", total=unlisted.lacking)
        for shard in shards:
            images = torch.arange(shard.first, shard.last)
            options = (data.inputs, data.collect_batch_size, stored(data).kept)
            trajectories = record(sampler, images, seed, *options)
            unlisted.note(shard, unlisted.store.write(shard.number, trajectories))
            if rank() == 0:
                unlisted.list_noted()
                bar.update(task, completed=unlisted.written())


def announce_online(sampler: Sampler, data: "TrajectoryData", train_steps: int) -> None:
    """Print the costs of a training that collects nothing but generates a shard at a time.

    Raises UserError if the memory is too small.
    """
    review(sampler.base, data.inputs(torch.arange(data.num_images)), "data.inputs")
    work, console = measure_work(sampler, data, train_steps * data.batch_size * processes()), first_console()
    size, seconds = data.storage.costs(work).memory, data.shard_images * work.seconds_an_image
    refuse_full_shard(data, size // data.shard_images)
    console.print(comparison(work, Path(data.folder), alternatives("data/storage")))
    console.print(
        f"data/storage={data.storage.name}: nothing to collect; {data.shard_images} images at a time are generated "
        f"while training, {readable(size)} of memory and about {duration(seconds)} each time"
    )


def refuse_full_shard(data: "TrajectoryData", image: int) -> None:
    """Raise a UserError before anything is generated if memory cannot hold a shard of `image` bytes an image.

    A shard is in memory twice while its batches are joined.
    """
    what = f"data.shard_images={data.shard_images}: a shard of features"
    refuse_full_memory(
        2 * min(data.shard_images, data.num_images) * image, what, "lower it, or choose data/storage=tokens"
    )


def follow(what: str, counts: Iterator[int], total: int | None = None) -> None:
    """Run an import, export or upload to its end and show how many images are done."""
    with progress(Plain(), "images") as bar:
        task = bar.add_task(what, total=total)
        for count in counts:
            bar.advance(task, count)
