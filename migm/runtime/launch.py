"""Which processes a launcher started for this run, and whether the run is a trial of a sweep."""

import os


def in_sweep() -> bool:
    """Whether this is a trial of a multirun."""
    # Here, since everything below the commands imports this file and has nothing to do with Hydra.
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def launched() -> tuple[int, int]:
    """Rank and number of the processes that a launcher (torchrun, submitit, srun) started for this run.

    Those that Lightning starts while fitting do not count: before that there was one.
    """
    launchers = ("RANK", "WORLD_SIZE"), ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS")
    for rank, count in (*launchers, ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and count in os.environ:
            return int(os.environ[rank]), int(os.environ[count])
    return 0, 1


def local_rank() -> int:
    """The number of this process among those of its machine."""
    names = ("LOCAL_RANK", "SUBMITIT_LOCAL_LOCALID", "SLURM_LOCALID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)
