"""Full steps that a policy may have, from the fewest to the most: a search takes the most for which there is time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from migm.accelerators.refresh import Policy


@dataclass(frozen=True)
class FullSteps:
    """B full steps: `num_full_steps` for the point, None where the policy sets it, and changes of `policy.` keys."""

    full_steps: int
    num_full_steps: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


INTERVALS = ("interval", "refresh_interval")  # keys of policies that move their number of full steps


def placements(policy: Policy, num_steps: int, first: int = 1, warp: float = 1.0) -> Iterator[FullSteps]:
    """Yield placements of 1 to N - 1 full steps, ascending; one of its own for a policy without a key to move.

    `first` and `warp` are those of `table`, for a policy with a list of `steps`.
    """
    keys, n = {each.name for each in fields(policy)}, num_steps  # type: ignore[arg-type]
    if "steps" in keys:
        for b in range(first, n):
            yield FullSteps(b, None, {"policy.steps": table(n, b, first, warp)})
    elif "num_full_steps" in keys:
        for b in range(max(1, getattr(policy, "u", 0) + 1), n):
            yield FullSteps(b, b)
    elif moved := next((key for key in INTERVALS if key in keys), None):
        before = 0
        for value in range(n, 1, -1):
            b = sum(replace(policy, **{moved: value}).plan(n))  # type: ignore[type-var]
            if before < b < n:
                yield FullSteps(b, None, {f"policy.{moved}": value})
                before = b
    else:
        yield FullSteps(sum(policy.plan(n)))


def table(num_steps: int, full_steps: int, first: int, warp: float) -> list[int]:
    """Return B ascending full steps of N: steps 0 to `first` - 1, then as (j / m) ** warp of the rest, j = 1...m-1.

    Above 1, `warp` puts more of them early, at 1 they are even; none is named twice.
    """
    steps = list(range(min(first, full_steps)))
    last, others = steps[-1], full_steps - len(steps)
    for j in range(1, others + 1):
        wished = round(last + (num_steps - last) * (j / (others + 1)) ** warp)
        # Each after the one before, with room for those to come.
        steps.append(min(max(wished, steps[-1] + 1), num_steps - 1 - (others - j)))
    return steps
