"""Define the storages of trajectories: a class for each file of conf/data/storage, chosen by `data/storage=`."""

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
    """The way in which `TrajectoryData` provides trajectories for training."""

    @property
    def name(self) -> str:
        """The storage's name in folders and in headers of stores."""
        ...

    stores: bool  # whether `data.folder` holds a store
    in_process: bool  # whether the base makes batches in this process, so that workers cannot

    def costs(self, work: TrainingWork) -> Costs:
        """Return the disk space, memory and time of the base that a training takes with this storage."""
        ...

    def prepare(
        self, sampler: Sampler, data: "TrajectoryData", seed: int, train_steps: int, filling: bool = True
    ) -> Store | None:
        """Fill the store before training and return it; None for a storage without a store.

        Without `filling`, a store is not filled, only refused if it does not match. The costs, also those of a training
        of `train_steps`, are printed first; without enough room they are refused.
        """
        ...

    def verify(self, data: "TrajectoryData") -> None:
        """Read the stored data once and refuse damaged data; called in one process of a machine."""
        ...

    def split(self, data: "TrajectoryData") -> tuple[PairDataset | None, PairDataset]:
        """Return pairs for training, or None if `train_loader` makes them, and pairs for validation."""
        ...

    def train_loader(self, data: "TrajectoryData", rank: int, world_size: int) -> "StatefulLoader | OnlineLoader": ...


class Stored:
    """The common part of storages with a store at `data.folder`.

    A subclass defines `name`, `costs`, and in `kept` the dtype of the stored features, None if there are none.
    """

    name: str
    stores, in_process = True, False

    @property
    def kept(self) -> torch.dtype | None:
        return None

    def header(self) -> dict[str, Any]:
        """Return the entries of a store's header that describe the storage."""
        dtype = {} if self.kept is None else {"dtype": str(self.kept).removeprefix("torch.")}
        return {"storage": self.name, **dtype}

    def prepare(
        self, sampler: Sampler, data: "TrajectoryData", seed: int, train_steps: int, filling: bool = True
    ) -> Store:
        """Return the store, with `filling` after collecting the missing trajectories."""
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
        val = PairDataset(store, data.first_val, data.num_images, data.together, data.gaps)
        val.window = 1  # shards are read in order
        return PairDataset(store, 0, data.first_val, data.together, data.gaps), val

    def train_loader(self, data: "TrajectoryData", rank: int, world_size: int) -> StatefulLoader:
        return StatefulLoader(data.train, data.batch_size, data.seed, rank, world_size, data.num_workers)


@dataclass(frozen=True)
class Features(Stored):
    """Storage of the features of every step in `dtype`; int8 has a scale for each row."""

    dtype: DTypeName = "bfloat16"
    name: str = "features"

    @property
    def kept(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def costs(self, work: TrainingWork) -> Costs:
        return Costs(work.feature_bytes(work.images, self.kept), before=work.images * work.seconds_an_image)


@dataclass(frozen=True)
class Tokens(Stored):
    """Storage of tokens and their order alone; the base computes features while training, a pass for each
    step of a pair."""

    name: str = "tokens"

    def costs(self, work: TrainingWork) -> Costs:
        during = work.steps_a_pair * work.seconds / work.copies * work.pairs
        return Costs(work.token_bytes(), before=work.images * work.seconds_an_image, during=during)
