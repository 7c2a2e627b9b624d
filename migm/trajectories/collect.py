"""Fill a trajectory store with runs of the vanilla base."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.base import Base
from migm.bases.inputs import review
from migm.runtime.console import Plain
from migm.runtime.distributed import first_console, from_first, processes, rank, wait
from migm.runtime.errors import UserError
from migm.runtime.files import is_url
from migm.runtime.progress import progress
from migm.runtime.resources import readable, refuse_full_disk, refuse_full_memory
from migm.runtime.writing import LOCK, refuse_unwritable, writing
from migm.sampling.loop import Sampling
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.estimate import Work, comparison, duration, measure
from migm.trajectories.record import record
from migm.trajectories.store import MANIFEST, Store
from migm.trajectories.unlisted import Planned, Unlisted


def header(base: Base, sampling: Sampling, data: TrajectoryData, seed: int, sampling_config: Any) -> dict[str, Any]:
    """What the first manifest line says, and what a store has to match to be used."""
    branches = base.encode(data.inputs(torch.zeros(1, dtype=torch.long)), guided=sampling.guidance is not None)
    dtype = {} if data.kept is None else {"dtype": str(data.kept).removeprefix("torch.")}
    return {
        "base": base.fingerprint(),
        "storage": data.storage,
        **dtype,
        "copies": sum(branch.copies for branch in branches),
        "num_steps": sampling.num_steps,
        "inputs": data.inputs.fingerprint(),
        "seed": seed,
        "sampling": sampling_config,
    }


def trajectory_sampling(sampling_config: dict[str, Any]) -> dict[str, Any]:
    """What of the sampling shapes a trajectory: all but B, since the vanilla base makes it."""
    return {key: value for key, value in sampling_config.items() if key != "num_full_steps"}


def collect(
    base: Base, sampling: Sampling, data: TrajectoryData, seed: int, sampling_config: Any, train_steps: int = 0
) -> Store:
    """Fill the store of `data` up to its `num_images`; inputs and noise depend on (seed, image) alone.

    The processes of a run share the shards; what is stored is the same whatever their number. What other storage
    would take is said for a training of `train_steps`.
    """
    review(base, data.inputs(torch.arange(data.num_images)), "data.inputs")
    described, console = header(base, sampling, data, seed, sampling_config), first_console()
    store = data.store(described)
    if store.remote:
        return complete(store, data, console)
    with filling(store, data, console):
        _fill(base, sampling, data, seed, described, train_steps, console)
    return Store(data.folder, described)


def filling(store: Store, data: TrajectoryData, console: Plain) -> AbstractContextManager[bool | None]:
    """Of commands that want one store the first fills it, the others wait; a whole one may be read only."""
    if len(store) >= data.num_images and not (store.folder / LOCK).exists():  # a kill leaves one
        return nullcontext()
    return writing(store.folder, f"data.folder={data.folder}", folder=True, waiting=console.print)


def refuse_unwritable_store(data: dict[str, Any]) -> None:
    """UserError where the store that the config's `data` names is to be made and cannot."""
    folder = data.get("folder")
    if data.get("storage") != "online" and folder and not is_url(folder) and not (Path(folder) / MANIFEST).exists():
        refuse_unwritable(folder, f"data.folder={folder}", folder=True)


def _fill(
    base: Base, sampling: Sampling, data: TrajectoryData, seed: int, described: Any, train_steps: int, console: Plain
) -> None:
    store = data.store(described)  # as it is now that nobody else writes
    store.verify(contents=False)  # nothing is added to what cannot be used
    unlisted = Unlisted(store, data.num_images, data.shard_images)
    # Only rank 0 looks, so that all processes go by the same plan.
    missing = from_first(unlisted.missing() if rank() == 0 else [])
    if not missing:
        console.print(f"{len(store)} trajectories in {data.folder}: nothing to collect")
    else:
        if rank() == 0:
            work = measure(base, sampling, data, train_steps * data.batch_size * processes())
            announce(work, data, sum(shard.last - shard.first for shard in missing), console)
            store.begin()
        wait()
        make(missing[rank() :: processes()], unlisted, base, sampling, data, seed, console)
    wait()
    if rank() == 0:
        unlisted.list_noted()
    wait()


def complete(store: Store, data: TrajectoryData, console: Plain) -> Store:
    """A store at a URL, which has to hold everything: nothing is collected there."""
    if len(store) < data.num_images:
        raise UserError(
            f"data.folder={data.folder} holds {len(store)} of data.num_images={data.num_images} trajectories and is "
            "read only; collect into a folder and publish it (migm.collect publish_to=...)"
        )
    console.print(f"{len(store)} trajectories in {data.folder}: nothing to collect")
    return store


def announce(work: Work, data: TrajectoryData, images: int, console: Plain) -> None:
    """Say what so many trajectories will take, and other storage, and refuse it where the disk is too small."""
    size = work._replace(images=images).bytes(data.storage, data.dtype)
    about = duration(images * work.num_steps * work.seconds / processes())
    shared = f" in {processes()} processes" if processes() > 1 else ""
    if work.pairs:
        console.print(comparison(work, Path(data.folder)))
    console.print(f"collecting {images} trajectories: {readable(size)} into {data.folder}, about {about}{shared}")
    choices = "lower data.num_images or choose another data.folder or data.storage"
    refuse_full_disk(Path(data.folder), size, f"data.num_images={data.num_images}: the store", choices)
    refuse_full_shard(data, size // images)


def make(
    shards: Sequence[Planned],
    unlisted: Unlisted,
    base: Base,
    sampling: Sampling,
    data: TrajectoryData,
    seed: int,
    console: Plain,
) -> None:
    """Write and note the shards of this process; rank 0 lists those of all meanwhile."""
    vanilla = Accelerator(Always())
    with progress(console, "images") as bar:
        task = bar.add_task("collect", total=unlisted.lacking)
        for shard in shards:
            images = torch.arange(shard.first, shard.last)
            how = (data.inputs, data.collect_batch_size, data.kept)
            made = record(base, sampling, vanilla, images, seed, *how)
            unlisted.note(shard, unlisted.store.write(shard.number, made))
            if rank() == 0:
                unlisted.list_noted()
                bar.update(task, completed=unlisted.written())


def announce_online(base: Base, sampling: Sampling, data: TrajectoryData, train_steps: int) -> None:
    """Say what storage "online" will take, which has nothing to collect."""
    review(base, data.inputs(torch.arange(data.num_images)), "data.inputs")
    work, console = measure(base, sampling, data, train_steps * data.batch_size * processes()), first_console()
    size = work.bytes("online", data.dtype)
    refuse_full_shard(data, size // data.shard_images)
    console.print(comparison(work, Path(data.folder)))
    console.print(
        f"data.storage=online: nothing to collect; {data.shard_images} images at a time are generated while training, "
        f"{readable(size)} of memory and about {duration(data.shard_images * work.num_steps * work.seconds)} each time"
    )


def refuse_full_shard(data: TrajectoryData, image: int) -> None:
    """Stop before anything is generated when memory cannot hold a shard, twice while its batches are joined."""
    what = f"data.shard_images={data.shard_images}: a shard of features"
    refuse_full_memory(
        2 * min(data.shard_images, data.num_images) * image, what, "lower it, or choose data.storage=tokens"
    )


def follow(what: str, counts: Iterator[int], total: int | None = None) -> None:
    """Run an import or export to its end, showing the images done."""
    with progress(Plain(), "images") as bar:
        task = bar.add_task(what, total=total)
        for count in counts:
            bar.advance(task, count)
