"""What a run depends on besides its config: device, precision, versions; and errors for people."""

import errno
import functools
import hashlib
import itertools
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

DeviceName = Literal["auto", "cpu", "cuda"]
DTypeName = Literal["auto", "float32", "bfloat16", "float64"]
Full = Literal["64-true", "32-true", "16-true", "bf16-true", "64", "32", "16", "bf16"]
Mixed = Literal["16-mixed", "bf16-mixed", "transformer-engine", "transformer-engine-float16"]
Precision = Literal["auto"] | Full | Mixed  # Lightning's names, the short ones included


class UserError(ValueError):
    """Something the user can put right; shown as one line, without a traceback."""


class Stopped(Exception):
    """A run that was ended from outside and saved what it had; `code` is the command's exit code."""

    def __init__(self, why: str, code: int):
        super().__init__(why)
        self.code = code


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """End a command with one line and a non-zero exit code on errors that a user can put right.

    A trial of a sweep raises instead: `migm.sweep` says the line, and the others go on.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        # Lightning's hints and its use of a deprecated torch call would hide what the command itself says.
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            return main(*args, **kwargs)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            other = isinstance(error, RuntimeError) and not _out_of_memory(error)
            if other or os.environ.get("MIGM_TRACEBACK") or in_sweep():
                raise
            rank, count = launched()
            whose = f"rank {rank}: " if count > 1 else ""
            print(f"error: {whose}{' '.join(_told(error).split())}  (MIGM_TRACEBACK=1 shows where)", file=sys.stderr)
            sys.exit(2)
        except Stopped as stop:
            print(f"stopped: {stop}; the same command goes on from here", file=sys.stderr)
            sys.exit(stop.code)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    return wrapped


def _told(error: Exception) -> str:
    """An error's message, with what helps against a full disk or full memory."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error}; make room, and the same command goes on from here"
    if _out_of_memory(error):
        cause = ". ".join(str(error).split(". ")[:3]).rstrip(".")  # of what torch says: what was wanted, what is free
        keys = "data.batch_size, data.collect_batch_size, evalset.batch_size or batch_size"
        return f"out of memory ({cause or type(error).__name__}); make the batch smaller by {keys}"
    return str(error)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # of CPUs


def in_sweep() -> bool:
    """Whether this is a trial of a multirun."""
    # Here, since everything below the commands imports this file and has nothing to do with Hydra.
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def pick_device(name: DeviceName = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; of several GPUs the one of this process."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no CUDA device here; choose device=cpu or device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())  # srun may show each its own one alone


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


def pick_dtype(name: DTypeName, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it faster than float32, else float32.

    That is CUDA, CPUs with AMX, and AMD's with AVX512-BF16; an Intel with the latter but without AMX
    reached 0.65 of its float32 rate.
    """
    if name == "auto":
        vectors = torch.cpu._is_avx512_bf16_supported() and "Intel" not in _cpu_name()
        fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported() or vectors
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]


def pick_precision(name: Precision, device: torch.device) -> str:
    """Lightning's name of a training's precision; `auto` is autocast to bfloat16 where `pick_dtype` takes that."""
    if name == "auto":
        return "bf16-mixed" if pick_dtype("auto", device) == torch.bfloat16 else "32-true"
    return name


def tensors_hash(tensors: Mapping[str, Tensor], *more: str) -> str:
    """Twelve hexadecimal digits over names, values and further strings."""
    digest = hashlib.sha256("|".join(more).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # Flat, since in other memory formats the last dimension need not have stride 1.
        data = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor.item()).encode()
        digest.update(data)
    return digest.hexdigest()[:12]


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_url(folder: str | Path) -> bool:
    """Whether a folder is reached through fsspec; a plain path is read where it is."""
    return "://" in str(folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` at once, synced, when the block ends, and is gone if it fails.

    It lies in a folder of its own beside `path`: what a kill leaves there, also under names that a
    library chose, the next try removes. What somebody else has under that folder's name stays, and another is taken.
    """
    names = (f"{path.name}{f'.{number}' if number else ''}.tmp" for number in itertools.count())
    folder = next(folder for folder in map(path.with_name, names) if _is_left(folder, path.name))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        with (folder / path.name).open("rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, name: str) -> bool:
    """Whether there is nothing, or what a kill left of a file called `name`: beside it only names of safetensors'."""
    if folder.is_dir() and not folder.is_symlink():
        return all(path.name == name or path.name.startswith(".tmp") for path in folder.iterdir())
    return not os.path.lexists(folder)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` at once, so that a kill leaves either the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@functools.cache
def environment(device: torch.device) -> dict[str, str]:
    """Name of the device and versions, for result records."""
    from migm import __version__

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{_cpu_name()} x {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "migm": __version__, "commit": _commit()}


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit that this package's files are of, by their repository or by pip's record; else `unknown`.

    A repository that only surrounds an installed package says nothing about it.
    """
    return _described(Path(__file__)) or _installed_commit() or "unknown"


def _described(file: Path) -> str:
    """The commit of the repository that holds `file`, with `-dirty` if it was changed; empty without one or git."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's repository
    for task in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty", "--exclude=*"]):
        try:
            done = subprocess.run(
                ["git", *task], cwd=file.parent, env=clean, capture_output=True, text=True, check=False
            )
        except OSError:  # no git, or one that may not be run
            return ""
        if done.returncode:
            return ""
    return done.stdout.strip()


def _installed_commit() -> str:
    """What `pip install git+...` keeps (PEP 610)."""
    try:
        record = json.loads(distribution("migm").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return record.get("vcs_info", {}).get("commit_id", "")[:7]
