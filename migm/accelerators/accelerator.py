"""Join a refresh policy (when the base runs) and a predictor (what replaces the base at other steps)."""

from collections.abc import Sequence
from dataclasses import dataclass

from migm.accelerators.predictor import Fitted, Learned, Predictor, Sourced
from migm.accelerators.refresh import AdaptivePolicy, Policy
from migm.accelerators.runs import AdaptiveRun, PlannedRun, Run
from migm.bases.base import Base, Branch
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.errors import UserError
from migm.runtime.identity import identity


@dataclass(frozen=True)
class Accelerator:
    """Decide the features of every step, without state of a generation and without random numbers.

    Labels and figures show `name`; it is not part of the identity.
    """

    policy: Policy | AdaptivePolicy
    predictor: Predictor | None = None
    name: str = "vanilla"

    def __post_init__(self) -> None:
        if isinstance(self.policy, AdaptivePolicy):
            policy, predictor = type(self.policy).__name__, self.predictor
            if predictor is None:
                raise UserError(f"accelerator.predictor is missing: {policy} leaves steps to one")
            if getattr(predictor, "ranks_ahead", False):
                raise UserError(
                    f"accelerator.predictor {type(predictor).__name__} ranks at a full step what is revealed until the "
                    f"next one, which accelerator.policy {policy} does not know in advance"
                )

    @property
    def identity(self) -> str:
        """The parts by name and parameters; learned weights have a `fingerprint` instead."""
        return ", ".join(identity(part) for part in (self.policy, self.predictor) if part is not None)

    def fingerprint(self, base: Base) -> str:
        """Return the hashes of learned or calibrated weights, joined by "+"; empty if there are none."""
        learned = [part for part in (self.policy, self.predictor) if isinstance(part, Learned)]
        return "+".join(filter(None, (part.fingerprint(base) for part in learned)))

    def origin(self, base: Base) -> str:
        """Return a line "<name>: <file and where it comes from>" for each part whose weights say so, else no text."""
        words = [part.origin(base) for part in (self.policy, self.predictor) if isinstance(part, Sourced)]
        return "\n".join(f"{self.name}: {each}" for each in words if each)

    def suits(self, base: Base, sampling: str, num_steps: int) -> None:
        """Refuse a base, a sampling, given by its identity, or an N that a part is not for."""
        for part in (self.policy, self.predictor):
            if isinstance(part, Fitted):
                part.suits(base, self.predictor, sampling, num_steps)

    @property
    def captured(self) -> bool:
        """Whether nothing in a run waits for the device, so that it can be captured."""
        return self.predictor is None or getattr(self.predictor, "captured", False)

    def plan(self, num_steps: int) -> list[bool] | None:
        """Return True at the full steps, or None if they are decided while sampling."""
        return None if isinstance(self.policy, AdaptivePolicy) else self.policy.plan(num_steps)

    def start(self, base: Base, branches: Sequence[Branch], counts: Sequence[int], fast: Fast = as_it_is) -> Run:
        """Return the state of one generation.

        `counts` are the numbers of tokens that the steps are to reveal; `fast` compiles functions.
        """
        if isinstance(self.policy, AdaptivePolicy):
            assert self.predictor is not None  # for the type checker: refused above
            return AdaptiveRun(base, branches, counts, self.policy, self.predictor, self.name, fast)
        plan = self.policy.plan(len(counts))
        if self.predictor is None and not all(plan):
            raise UserError("accelerator.predictor is missing: this policy leaves steps that the base does not compute")
        return PlannedRun(base, branches, counts, plan, self.predictor, self.name, fast)
