"""Reference files of metrics: statistics or features of real images, in a `.npz`.

`mu` (c,) and `sigma` (c, c) are named as in the files of ADM's evaluation suite and of clean-fid, which
can be read too. `features` (n, c) serve metrics of neighbours and kernels. Our own files also hold
`n`, `protocol`, `extractor` (the hash of its weights) and `hash`, which covers all of these.
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
    """Arrays of real images and their origin; in files of third parties `n` is 0 and the texts are empty."""

    arrays: Mapping[str, Tensor]
    n: int = 0
    protocol: str = ""
    extractor: str = ""

    @property
    def hash(self) -> str:
        return tensors_hash(self.arrays, str(self.n), self.protocol, self.extractor)

    def save(self, path: Path) -> None:
        """Write the file atomically: a kill leaves no partial file."""
        content: Any = {name: np.array(getattr(self, name)) for name in (*FACTS, "hash")}
        content |= {name: array.numpy() for name, array in self.arrays.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **content)


def load_reference(path: str | Path, key: str, arrays: tuple[str, ...]) -> Reference:
    """Read the named arrays of a file, `mu` and `sigma` in float64; `key` names the file in errors.

    Damage and missing arrays raise UserError.
    """
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
    stored_hash = facts.pop("hash", None)
    reference = Reference({k: v if k == "features" else v.double() for k, v in read.items()}, **facts)
    if stored_hash not in (None, reference.hash):
        raise UserError(f"{key}={path} holds {reference.hash}, not {stored_hash} as it says: it was changed or damaged")
    return reference
