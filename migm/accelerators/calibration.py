"""Store how a base's features change along vanilla trajectories, as some methods need (`migm.calibrate`)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from migm.accelerators.extrapolation import Weights
from migm.bases.base import Base
from migm.bases.weights import version
from migm.runtime.errors import UserError
from migm.runtime.files import check_seal, tensors_hash, write_sealed
from migm.runtime.kinds import Count, NotNegative, Whole

POLYNOMIAL_DEGREE = 4  # the degree that TeaCache uses


FORMAT = "migm-fit/1"


@dataclass
class Calibration:
    """Inner products of the features of all pairs of steps, and TeaCache's polynomials.

    `gram` (n, n) are mean products over images, rows and channels of both guidance halves. `polynomials` map an
    indicator to coefficients, highest first. A polynomial gives the expected relative change of the features from the
    relative change of the indicator.
    """

    gram: NDArray[np.float64]
    polynomials: dict[str, list[float]]
    base: str  # the base's fingerprint

    def save(self, path: str | Path) -> None:
        """Write the calibration as a safetensors file."""
        tensors = {"gram": torch.from_numpy(self.gram)}
        tensors |= {f"polynomial.{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.polynomials.items()}
        write_sealed(tensors, Path(path), {"format": FORMAT, "base": self.base})

    @classmethod
    def load(cls, path: str | Path | None, base: Base, num_steps: int | None, key: str) -> "Calibration":
        """Read a file of `migm.calibrate`, refusing another base or another number of steps.

        A file that several points use is read once.
        """
        calibration = _read(path, version(path), key)
        if calibration.base != base.fingerprint():
            raise UserError(f"{key}={path} was calibrated on base {calibration.base}, this one is {base.fingerprint()}")
        n = len(calibration.gram)
        if num_steps is not None and n != num_steps:
            raise UserError(f"{key}={path} was calibrated for sampling.num_steps={n}, this is {num_steps}")
        return calibration

    def fingerprint(self) -> str:
        """Return twelve digits that distinguish calibrations."""
        tensors: dict[str, Tensor] = {"gram": torch.from_numpy(self.gram)}
        return tensors_hash(tensors, str(sorted(self.polynomials.items())))


@functools.lru_cache(maxsize=8)
def _read(path: str | Path | None, _version: object, key: str) -> Calibration:
    if path is None or not Path(path).exists():
        raise UserError(f"{key}={path}: no such file; write it by python -m migm.calibrate with the same settings")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 the file is no mapping
    except SafetensorError as error:
        raise UserError(f"{key}={path} is not a file of migm.calibrate ({error})") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{key}={path} is not a file of migm.calibrate")
    check_seal(tensors, about, {"format", "base"}, f"{key}={path}")
    polynomials = {name.removeprefix("polynomial."): tensors[name].tolist() for name in tensors if name != "gram"}
    return Calibration(tensors["gram"].numpy(), polynomials, about["base"])


@dataclass(frozen=True)
class LearnedWeights:
    """L2P (arXiv 2604.26365): weights for every step, by least squares on vanilla trajectories.

    The weights are those of the last `max_order` + 1 full steps. They are the best ones for any choice of full steps,
    since all follow from the inner products of the features. [inferred from the paper's abstract: its code was not
    read.]
    """

    calibration: str | Path = field(compare=False)
    num_steps: Count
    max_order: Whole = 2
    damping: NotNegative = 1e-6

    @property
    def history(self) -> int:
        return self.max_order + 1

    def fingerprint(self, base: Base) -> str:
        """Return the fingerprint of the file, refusing a file for another base or number of steps."""
        key = "accelerator.predictor.rule.calibration"
        return Calibration.load(self.calibration, base, self.num_steps, key).fingerprint()

    def weights(self, times: Sequence[int], step: int) -> Weights:
        gram = _read(self.calibration, version(self.calibration), "accelerator.predictor.rule.calibration").gram
        inner = gram[np.ix_(times, times)]
        # Features of neighbouring steps are nearly alike; a larger diagonal keeps their weights small.
        damped = inner + self.damping * np.diag(np.diag(inner))
        return np.linalg.solve(damped, gram[times, step]).astype(np.float64)
