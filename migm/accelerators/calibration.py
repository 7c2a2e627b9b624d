"""What some methods need to know of a base: how its features move along vanilla trajectories (`migm.calibrate`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from migm.accelerators.extrapolation import Weights
from migm.bases.base import Base
from migm.runtime.errors import UserError
from migm.runtime.files import replacing, tensors_hash
from migm.runtime.kinds import Count, NotNegative, Whole
from migm.runtime.sealed import check_seal, sealed, write_tensors

POLYNOMIAL_DEGREE = 4  # TeaCache's


FORMAT = "migm-fit/1"


@dataclass
class Calibration:
    """Inner products of the features of all pairs of steps, and TeaCache's polynomials.

    `gram` (n, n) are mean products over images, rows and channels of both guidance halves;
    `polynomials` map an indicator to coefficients, highest first, of the relative change of the
    features that is to be expected where the indicator changed by so much.
    """

    gram: NDArray[np.float64]
    polynomials: dict[str, list[float]]
    base: str  # fingerprint

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {"gram": torch.from_numpy(self.gram)}
        tensors |= {f"polynomial.{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.polynomials.items()}
        with replacing(Path(path)) as temporary:
            write_tensors(tensors, temporary, sealed(tensors, {"format": FORMAT, "base": self.base}))

    @classmethod
    def load(cls, path: str | Path, base: Base, num_steps: int | None, key: str) -> "Calibration":
        """Read a file of `migm.calibrate`; one of another base or another number of steps is refused."""
        if not Path(path).exists():
            raise UserError(f"{key}={path}: no such file; write it by python -m migm.calibrate with the same settings")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except SafetensorError as error:
            raise UserError(f"{key}={path} is not a file of migm.calibrate ({error})") from error
        if about.get("format") != FORMAT:
            raise UserError(f"{key}={path} is not a file of migm.calibrate")
        check_seal(tensors, about, {"format", "base"}, f"{key}={path}")
        if about["base"] != base.fingerprint():
            raise UserError(f"{key}={path} was fitted for base {about['base']}, this one is {base.fingerprint()}")
        n = len(tensors["gram"])
        if num_steps is not None and n != num_steps:
            raise UserError(f"{key}={path} was fitted for sampling.num_steps={n}, this is {num_steps}")
        polynomials = {name.removeprefix("polynomial."): tensors[name].tolist() for name in tensors if name != "gram"}
        return cls(tensors["gram"].numpy(), polynomials, about["base"])

    def fingerprint(self) -> str:
        """Twelve digits that tell two fits apart."""
        known: dict[str, Tensor] = {"gram": torch.from_numpy(self.gram)}
        return tensors_hash(known, str(sorted(self.polynomials.items())))


class LearnedWeights:
    """L2P (arXiv 2604.26365): weights for every step, by least squares on vanilla trajectories.

    Of the `max_order` + 1 last full steps; the best for whichever they are, since all follow from the
    inner products of the features. [inferred from the paper's abstract: its code was not read.]
    """

    def __init__(self, fit: str | Path, num_steps: Count, max_order: Whole = 2, damping: NotNegative = 1e-6):
        self.fit, self.num_steps, self.damping = fit, num_steps, damping
        self.max_order, self.history = max_order, max_order + 1
        self.known: Calibration | None = None

    def fingerprint(self, base: Base) -> str:
        if self.known is None:
            self.known = Calibration.load(self.fit, base, self.num_steps, "accelerator.predictor.rule.fit")
        return self.known.fingerprint()

    def weights(self, times: Sequence[int], step: int) -> Weights:
        assert self.known is not None, "fingerprint reads the file"
        gram = self.known.gram
        inner = gram[np.ix_(times, times)]
        # Neighbouring steps are nearly alike: a little of the diagonal keeps their weights small.
        damped = inner + self.damping * np.diag(np.diag(inner))
        return np.linalg.solve(damped, gram[times, step]).astype(np.float64)
