"""Define predictors, which replace the base on cheap steps."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from migm.bases.base import Base, Branch, Moment
from migm.bases.layers import Runner
from migm.runtime.compiling import Fast
from migm.runtime.shapes import Positions, Tokens


class PredictorState(Protocol):
    """The state of a predictor for one branch of one generation."""

    def update(self, step: int, features: Float[Tensor, "cb t c"]) -> None:
        """Receive the features of a full step."""
        ...

    def predict(self, step: int, tokens: Tokens, new_positions: Positions, moment: Moment) -> Float[Tensor, "cb t c"]:
        """Return the features of a cheap step; `new_positions` were revealed by the step before."""
        ...


@runtime_checkable
class LayerState(PredictorState, Protocol):
    """A state that uses the layers of the base: its runner replaces a full step's pass and may keep their values."""

    def runner(self, step: int) -> Runner:
        """Return a runner of all rows through all blocks, equal to the base's; `update` with the features follows."""
        ...


@runtime_checkable
class TargetedState(LayerState, Protocol):
    """A layer state whose cheap steps reveal positions that the last full step has ranked."""

    def target(self, positions: Positions) -> None: ...


@runtime_checkable
class CompiledState(PredictorState, Protocol):
    """A state whose cheap step is worth compiling; `fast` turns a function into the one to call."""

    fast: Fast


@runtime_checkable
class Learned(Protocol):
    """A policy or predictor with learned or calibrated weights."""

    def fingerprint(self, base: Base) -> str:
        """Return a hash of the weights, empty without any."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """A policy or predictor that was made for one base, predictor, sampling or N."""

    def suits(self, base: Base, predictor: "Predictor | None", sampling: str, num_steps: int) -> None:
        """Raise a UserError for others than these; `sampling` is an identity."""
        ...


@runtime_checkable
class Sourced(Protocol):
    """A policy or predictor whose weights may be one of several files."""

    def origin(self, base: Base) -> str:
        """Return which file runs and where it comes from, empty without a file; refuse what is not there."""
        ...


class Predictor(Protocol):
    """A rule that replaces the base on cheap steps; a frozen dataclass.

    One whose predictions depend on more than the last full step says on how many by an attribute `history`.
    """

    def start(self, base: Base, branch: Branch) -> PredictorState: ...
