"""Tell which processes a launcher started for this run, and whether the run is a trial of a sweep."""

import os


def in_sweep() -> bool:
    """Return whether this process runs a trial of a multirun."""
    # Imported here, since modules that do not use Hydra import this file too.
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def launched() -> tuple[int, int]:
    """Return the rank of this process and the number of processes that torchrun, submitit or srun started for this run.

    Processes that Lightning starts in `Trainer.fit` do not count: before fitting there is one process.
    """
    launchers = ("RANK", "WORLD_SIZE"), ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS")
    for rank, count in (*launchers, ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and count in os.environ:
            return int(os.environ[rank]), int(os.environ[count])
    return 0, 1


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    names = ("LOCAL_RANK", "SUBMITIT_LOCAL_LOCALID", "SLURM_LOCALID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)
