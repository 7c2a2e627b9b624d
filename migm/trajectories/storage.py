"""How trajectories are kept for training: a class for each file of conf/data/storage, chosen by `data/storage=`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler
from migm.trajectories.collect import collect, header
from migm.trajectories.dataset import PairDataset
from migm.trajectories.estimate import Costs, TrainingWork
from migm.trajectories.loader import StatefulLoader
from migm.trajectories.store import Store

if TYPE_CHECKING:
    from migm.trajectories.datamodule import TrajectoryData
    from migm.trajectories.online import OnlineLoader

DTypeName = Literal["bfloat16", "float32", "int8"]
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}


class Storage(Protocol):
    """What `TrajectoryData` asks of its `storage`."""

    @property
    def name(self) -> str:
        """Its name in folders and in headers of stores."""
        ...

    stores: bool  # whether `data.folder` holds a store
    in_process: bool  # whether the base runs where batches are made, so that no worker process can make them

    def costs(self, work: TrainingWork) -> Costs:
        """Disk, memory and time of the base that a training takes by this storage."""
        ...

    def prepare(
        self, sampler: Sampler, data: "TrajectoryData", seed: int, train_steps: int, filling: bool = True
    ) -> Store | None:
        """Before training: fill the store, or without `filling` refuse one that does not fit; None where there is none.

        What it takes, also for a training of `train_steps`, is said first, and refused where there is no room.
        """
        ...

    def verify(self, data: "TrajectoryData") -> None:
        """Read what is stored once and refuse damage; called in one process of a machine."""
        ...

    def split(self, data: "TrajectoryData") -> tuple[PairDataset | None, PairDataset]:
        """Pairs to train on, None where `train_loader` makes them, and pairs to validate with."""
        ...

    def train_loader(self, data: "TrajectoryData", rank: int, world_size: int) -> "StatefulLoader | OnlineLoader": ...


class Stored:
    """The part that storages with a store in `data.folder` share.

    A subclass says the `name`, in which dtype features are `kept` (None: they are not), and the `costs`.
    """

    name: str
    stores, in_process = True, False

    @property
    def kept(self) -> torch.dtype | None:
        return None

    def header(self) -> dict[str, Any]:
        """The keys of a store's header that say how trajectories are kept."""
        dtype = {} if self.kept is None else {"dtype": str(self.kept).removeprefix("torch.")}
        return {"storage": self.name, **dtype}

    def prepare(
        self, sampler: Sampler, data: "TrajectoryData", seed: int, train_steps: int, filling: bool = True
    ) -> Store:
        """Collect what the store lacks."""
        return collect(sampler, data, seed, train_steps) if filling else data.store(header(sampler, data, seed))

    def verify(self, data: "TrajectoryData") -> None:
        data.store().verify()

    def split(self, data: "TrajectoryData") -> tuple[PairDataset, PairDataset]:
        store = data.store()
        store.verify(contents=False)
        if len(store) < data.num_images:
            raise UserError(
                f"data.num_images={data.num_images}, but {data.folder} holds {len(store)}; run migm.collect"
            )
        val = PairDataset(store, data.first_val, data.num_images)
        val.window = 1  # read in order
        return PairDataset(store, 0, data.first_val), val

    def train_loader(self, data: "TrajectoryData", rank: int, world_size: int) -> StatefulLoader:
        return StatefulLoader(data.train, data.batch_size, data.seed, rank, world_size, data.num_workers)


@dataclass(frozen=True)
class Features(Stored):
    """Features of every step in `dtype`; int8 has a scale for each row."""

    dtype: DTypeName = "bfloat16"
    name: str = "features"

    @property
    def kept(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def costs(self, work: TrainingWork) -> Costs:
        return Costs(work.feature_bytes(work.images, self.kept), before=work.images * work.seconds_an_image)


@dataclass(frozen=True)
class Tokens(Stored):
    """No features: tokens and their order, of which the base computes features in training, two passes for a pair."""

    name: str = "tokens"

    def costs(self, work: TrainingWork) -> Costs:
        during = 2 * work.seconds / work.copies * work.pairs
        return Costs(work.token_bytes(), before=work.images * work.seconds_an_image, during=during)
