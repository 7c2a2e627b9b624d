"""Store how a base's features change along vanilla trajectories, as some methods need (`migm.calibrate`)."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from migm.accelerators.extrapolation import Weights
from migm.accelerators.predictor import Predictor
from migm.bases.base import Base
from migm.bases.weights import version
from migm.config.retraining import calibrating_command
from migm.runtime.errors import UserError
from migm.runtime.files import check_seal, tensors_hash, write_sealed
from migm.runtime.kinds import Count, NotNegative, Whole
from migm.shortcuts.checkpoint import BETWEEN
from migm.shortcuts.choosing import Choice

POLYNOMIAL_DEGREE = 4  # the degree that TeaCache uses
FORMAT = "migm-fit/1"


@dataclass
class Calibration:
    """Inner products of the features of all pairs of steps, and TeaCache's polynomials.

    `gram` (n, n) are mean products over images, rows and channels of both guidance halves. `polynomials` map an
    indicator to coefficients, highest first. A polynomial gives the expected relative change of the features from the
    relative change of the indicator. `base` has the fingerprints of one base, joined by commas if in several
    precisions; `sampling` is an identity, empty in files of earlier versions. `card` says how it was made.
    """

    gram: NDArray[np.float64]
    polynomials: dict[str, list[float]]
    base: str
    sampling: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the calibration as a safetensors file."""
        tensors = {"gram": torch.from_numpy(self.gram)}
        tensors |= {f"polynomial.{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.polynomials.items()}
        about = {"sampling": self.sampling, "card": json.dumps(self.card) if self.card else ""}
        about = {key: text for key, text in about.items() if text}
        write_sealed(tensors, Path(path), {"format": FORMAT, "base": self.base, **about})

    @classmethod
    def load(cls, path: str | Path | None, base: Base, num_steps: int | None, key: str) -> "Calibration":
        """Read a file of `migm.calibrate`, refusing another base or another number of steps.

        The one of a base with plain linears holds for its other kinds. A file that several points use is read once.
        """
        calibration, here = _read(path, version(path), key), base.fingerprint()
        plain = getattr(base, "plain_fingerprint", base.fingerprint)()
        if not {here, plain} & set(calibration.base.split(BETWEEN)):
            known = calibration.base.replace(BETWEEN, " or ")
            raise UserError(f"{key}={path} was calibrated on base {known}, this one is {here}")
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
    check_seal(tensors, about, {"format", "base", "sampling", "card"}, f"{key}={path}")
    polynomials = {name.removeprefix("polynomial."): tensors[name].tolist() for name in tensors if name != "gram"}
    card = json.loads(about.get("card", "{}"))
    return Calibration(tensors["gram"].numpy(), polynomials, about["base"], about.get("sampling", ""), card)


class Fit:
    """The calibration that a part of an accelerator runs by, chosen at its first use and kept.

    It is the file `calibration`. Where that is the one that `migm.calibrate` writes, `written`, and not there, it is
    `bundled`, which came with the base. `sampling` "any" lets one pass that was made for other draws, guidance or
    schedules. Refusals begin with the key `where`.calibration, and name the command that makes another.
    """

    def __init__(self, where: str, part: Any):
        self.where, self.key, self.sampling = where, f"{where}.calibration", part.sampling
        self.calibration, self.written, self.bundled = part.calibration, part.written, part.bundled
        self._choice: Choice | None = None

    def command(self, num_steps: int | None) -> str:
        """Return the command that calibrates this base at N."""
        return calibrating_command(Path(self.written or self.calibration or "").parent.name, num_steps)

    @property
    def choice(self) -> Choice:
        """The file, and words for people about it; None and no words where there is none yet."""
        found = self._choice or self._found()
        self._choice = found if found.file is not None else None
        return found

    def _found(self) -> Choice:
        path, bundled = self.calibration, self.bundled
        if path is not None and Path(path).is_file():
            return Choice(path, f"{path}, calibrated here" if path == self.written else f"{path}")
        if path is not None and path == self.written and bundled is not None and Path(bundled).is_file():
            known = _read(bundled, version(bundled), self.key)
            data = f" ({known.card['data']})" if "data" in known.card else ""
            own = f"to calibrate your own: {self.command(len(known.gram))}"
            return Choice(bundled, f"{bundled}, bundled with the base{data}; {own}")
        return Choice(None, "")

    def load(self, base: Base, num_steps: int | None = None) -> Calibration:
        """Read the file; UserError without one, for another base, and for another N if N is given."""
        if (file := self.choice.file) is None:
            raise UserError(f"{self.key}={self.calibration}: no such file; write it by {self.command(num_steps)}")
        _read(file, version(file), self.key)  # a damaged one is refused by its own line
        try:
            return Calibration.load(file, base, num_steps, self.key)
        except UserError as error:
            raise UserError(f"{error}; make one for it by {self.command(num_steps)}") from error

    def suits(self, base: Base, num_steps: int, sampling: str) -> None:
        """Refuse a file for another base, N or sampling, given by its identity; a missing one is refused when read."""
        if self.choice.file is None:
            return
        made_for = self.load(base, num_steps).sampling
        if self.sampling == "same" and made_for not in ("", sampling):
            raise UserError(
                f"{self.key}={self.choice.file} was calibrated for {made_for}, this is {sampling}; make one for it by "
                f"{self.command(num_steps)}, or take this one by {self.where}.sampling=any"
            )


@dataclass(frozen=True)
class LearnedWeights:
    """L2P (arXiv 2604.26365): weights for every step, by least squares on vanilla trajectories.

    The weights are those of the last `max_order` + 1 full steps. They are the best ones for any choice of full steps,
    since all follow from the inner products of the features. [inferred from the paper's abstract: its code was not
    read.] The inner products are those of a file: `Fit` says which.
    """

    calibration: str | Path = field(compare=False)
    num_steps: Count
    max_order: Whole = 2
    damping: NotNegative = 1e-6
    written: str | Path | None = field(default=None, compare=False)
    bundled: str | Path | None = field(default=None, compare=False)
    sampling: Literal["same", "any"] = field(default="same", compare=False)

    @functools.cached_property
    def _fit(self) -> Fit:
        return Fit("accelerator.predictor.rule", self)

    @property
    def history(self) -> int:
        return self.max_order + 1

    def fingerprint(self, base: Base) -> str:
        """Return the fingerprint of the file, refusing a file for another base or number of steps."""
        return self._fit.load(base, self.num_steps).fingerprint()

    def origin(self, base: Base) -> str:
        """Say which file runs and where it comes from."""
        self._fit.load(base, self.num_steps)
        return self._fit.choice.words

    def suits(self, base: Base, predictor: Predictor | None, sampling: str, num_steps: int) -> None:
        """Refuse a file for another base, N or sampling, given by its identity."""
        self._fit.suits(base, self.num_steps, sampling)

    def weights(self, times: Sequence[int], step: int) -> Weights:
        file = self._fit.choice.file
        gram = _read(file, version(file), self._fit.key).gram
        inner = gram[np.ix_(times, times)]
        # Features of neighbouring steps are nearly alike; a larger diagonal keeps their weights small.
        damped = inner + self.damping * np.diag(np.diag(inner))
        return np.linalg.solve(damped, gram[times, step]).astype(np.float64)
