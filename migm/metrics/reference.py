"""What generated images are compared with: statistics or features of real ones, in a `.npz`.

`mu` (c,) and `sigma` (c, c) are called as in the files of ADM's evaluation suite and of clean-fid, which
can be read too; `features` (n, c) are for metrics of neighbours and kernels. Our own files also say
`n`, `protocol`, `extractor` (the hash of its weights) and `hash`, which covers all of them.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.files import replacing, tensors_hash

FACTS = ("n", "protocol", "extractor")


@dataclass(frozen=True)
class Reference:
    """Arrays of real images and where they come from; `n` is 0 and the rest empty in files of others."""

    arrays: Mapping[str, Tensor]
    n: int = 0
    protocol: str = ""
    extractor: str = ""

    @property
    def hash(self) -> str:
        return tensors_hash(self.arrays, str(self.n), self.protocol, self.extractor)

    def save(self, path: Path) -> None:
        """Write the file at once, so that a kill leaves no half of one."""
        content: Any = {name: np.array(getattr(self, name)) for name in (*FACTS, "hash")}
        content |= {name: array.numpy() for name, array in self.arrays.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **content)


def load_reference(path: str | Path, key: str, arrays: tuple[str, ...]) -> Reference:
    """The named arrays of a file, `mu` and `sigma` in float64; damage and missing arrays are refused by `key`."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{key}={path}: no such file; make it with `python -m migm.metric_reference`, or see `python -m migm.needs`"
        )
    try:
        with np.load(path, allow_pickle=False) as opened:
            missing = [name for name in arrays if name not in opened]
            if missing:
                raise UserError(f"{key}={path} has no {' and no '.join(missing)}, only {', '.join(opened)}")
            read = {name: torch.from_numpy(opened[name]) for name in arrays}
            facts = {name: opened[name].item() for name in (*FACTS, "hash") if name in opened}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{key}={path} is not a complete .npz of arrays ({error})") from error
    wanted = facts.pop("hash", None)
    reference = Reference({k: v if k == "features" else v.double() for k, v in read.items()}, **facts)
    if wanted not in (None, reference.hash):
        raise UserError(f"{key}={path} holds {reference.hash}, not {wanted} as it says: it was changed or damaged")
    return reference
