"""Choices of a search: methods that run here, their full steps, the sampler's values; and samplers of choices."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from migm.accelerators.refresh import AdaptivePolicy, Always, Policy
from migm.bases.base import Base
from migm.config.candidates import CandidateParts
from migm.config.fitting import fitted
from migm.config.roots import Span, TuneConfig
from migm.runtime.errors import UserError
from migm.runtime.files import content_hash
from migm.runtime.kinds import Length
from migm.sampling.sampler import Sampler
from migm.tuning.full_steps import FullSteps, placements

LONGEST = 60  # characters of a value in a label
STEPS = (0.5, 0.75, 1.0, 1.5)  # N to try, as factors of the sampling's


@dataclass(frozen=True)
class Candidate:
    """A sampler by names: as a point of a front file, without what it reached."""

    accelerator: str
    num_steps: int
    num_full_steps: int | None = None  # None: the policy sets B
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """The changes, for labels and names of files, thus a long list by its length and a hash."""
        return " ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in self.changes.items())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _short(value: Any) -> str:
    text = str(value).replace(" ", "")
    return text if len(text) <= LONGEST else f"{len(value)}of{content_hash(text, digits=8)}"


@dataclass(frozen=True)
class Method:
    """An accelerator that runs here at each of `steps`; `cheap` is a cheap step's time in full steps."""

    name: str
    policy: Policy
    choices: Mapping[str, Sequence[Any]]  # key below `accelerator.` -> values
    steps: tuple[int, ...]  # ascending
    cheap: float = 1.0

    @property
    def is_vanilla(self) -> bool:
        return isinstance(self.policy, Always)

    def placed(self, n: int, limit: float, chosen: Mapping[str, Any], first: int, warp: float) -> FullSteps | None:
        """Return the most full steps of N that take at most `limit` full steps with the cheap ones, if any do."""
        own = {key.removeprefix("policy."): value for key, value in chosen.items() if key.startswith("policy.")}
        policy = replace(self.policy, **own)  # type: ignore[type-var]
        fitting = [p for p in placements(policy, n, first, warp) if self.cost(n, p.full_steps) <= limit + 1e-9]
        return fitting[-1] if fitting else None

    def cost(self, num_steps: int, full_steps: int) -> float:
        """Return the predicted time in full steps."""
        return full_steps + (num_steps - full_steps) * self.cheap


class Builder:
    """Build the samplers of candidates for a base."""

    def __init__(self, parts: CandidateParts, base: Base):
        self.parts, self.base, self.num_steps = parts, base, parts.config.sampling["num_steps"]

    def sampler(self, candidate: Candidate) -> Sampler:
        """Return the sampler; UserError for a value that its accelerator or the sampling does not take."""
        c = candidate
        return Sampler(
            self.base, *self.parts.chosen(c.accelerator, c.num_steps, c.num_full_steps, c.changes, c.variant)
        )

    def vanilla(self) -> Candidate:
        """The reference: the base at every step of the sampling as it is."""
        return Candidate("vanilla", self.num_steps)


def methods_here(builder: Builder, config: TuneConfig) -> tuple[list[Method], list[str]]:
    """Return the methods that can run on this base, and a line for each that cannot, or not at every N.

    Raises UserError for an unknown name, and for choices that an accelerator does not take.
    """
    found, lines, steps = [], [], steps_of(builder, config)
    for name, choices in config.methods.items():
        keys = leaves(f"methods.{name}", choices or {}, Annotated[list[Any], Length()])
        policy = _policy(builder, name, keys)
        if isinstance(policy, AdaptivePolicy):
            lines.append(f"{name} is left out: it decides while sampling, so that its time cannot be chosen")
            continue
        runs, why = [], ""
        for n in [builder.num_steps] if isinstance(policy, Always) else steps:
            try:
                sampler = builder.sampler(Candidate(name, n, 1))
                sampler.accelerator.origin(builder.base)
                sampler.accelerator.fingerprint(builder.base)
                runs.append(n)
            except (UserError, FileNotFoundError) as error:
                why = why or f"{error}"
        if why:
            lines.append(f"{name} is left out{f' at N other than {runs}' if runs else ''}: {why}")
        if runs:
            found.append(Method(name, policy, keys, tuple(runs)))
    if not found:
        raise UserError(f"methods: none can run here; {'; '.join(lines)}")
    return found, lines


def steps_of(builder: Builder, config: TuneConfig) -> list[int]:
    """Return the N to try, ascending; UserError for more steps than the base has tokens."""
    most = builder.base.spec.num_tokens
    if config.num_steps is None:
        return sorted({min(most, max(2, round(factor * builder.num_steps))) for factor in STEPS})
    if max(config.num_steps) > most:
        raise UserError(f"num_steps={config.num_steps}: N is at most {most}, the tokens of an image of this base")
    return sorted(set(config.num_steps))


def _policy(builder: Builder, name: str, choices: Mapping[str, Sequence[Any]]) -> Any:
    """Return the policy of a method, after building it with each of its choices."""
    start = Candidate(name, builder.num_steps, 1)
    policy = builder.sampler(start).accelerator.policy
    for key, values in choices.items():
        for value in values:
            try:
                builder.sampler(replace(start, changes={f"accelerator.{key}": value}))
            except UserError as error:
                raise UserError(f"methods.{name}.{key}={value}: {error}") from error
    return policy


def leaves(path: str, node: Mapping[str, Any], hint: Any) -> dict[str, Any]:
    """Return the lists in a group of groups by their dotted keys; UserError for one that does not fit `hint`."""
    found = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": each for inner, each in leaves(f"{path}.{key}", value, hint).items()}
        else:
            found[key] = fitted(f"{path}.{key}", value, hint)
    return found


def factors(config: TuneConfig) -> dict[str, list[float]]:
    """Return the least and most factor of each key of the sampling."""
    return leaves("sampler", config.sampler, Span)


def sampler_values(parts: CandidateParts) -> tuple[dict[str, float], list[str]]:
    """Return the sampling's own values of the keys of `sampler`, and a line for each that it lacks."""
    found, lines = {}, []
    for key, (least, most) in factors(parts.config).items():
        if least > most:
            raise UserError(f"sampler.{key}={[least, most]} must be the least and the most factor")
        value = parts.own(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value:
            found[key] = float(value)
        else:
            lines.append(f"sampling.{key} is left out: the sampling has {'no such key' if value is None else value}")
    return found, lines


class Space:
    """Turn what an optimiser suggests into candidates that take at most a share of vanilla's time."""

    def __init__(self, methods: Sequence[Method], config: TuneConfig, own: Mapping[str, float], num_steps: int):
        self.methods, self.own, self.num_steps = {method.name: method for method in methods}, own, num_steps
        self.factors = {key: span for key, span in factors(config).items() if key in own}
        self.first, self.warp, self.shares = config.first, config.warp, config.shares

    def suggest(self, trial: Any, share: float, method: str | None) -> tuple[Candidate, float] | None:
        """Return a candidate and its predicted share of vanilla's time; None if nothing of the method fits `share`.

        `trial` is Optuna's: it is asked for the same names of each method whatever fits.
        """
        trial.suggest_categorical("share", self.shares)
        chosen = self.methods[method or trial.suggest_categorical("method", list(self.methods))]
        changes = {}
        for key, (least, most) in self.factors.items():
            factor = trial.suggest_float(key, least, most)
            if factor != 1:
                changes[f"sampling.{key}"] = float(f"{factor * self.own[key]:.4g}")
        limit = share * self.num_steps
        if chosen.is_vanilla:
            n = int(limit + 1e-9)
            return (Candidate(chosen.name, n, None, changes), n / self.num_steps) if n else None
        name = chosen.name
        values = {key: trial.suggest_categorical(f"{name}:{key}", list(each)) for key, each in chosen.choices.items()}
        first, warp = 1, 1.0
        if hasattr(chosen.policy, "steps"):
            first = trial.suggest_int(f"{name}:first", *self.first)
            warp = trial.suggest_float(f"{name}:warp", *self.warp)
        where = trial.suggest_float(f"{name}:steps", 0.0, 1.0)
        placed = [(n, chosen.placed(n, limit, values, first, warp)) for n in chosen.steps]
        fitting = [(n, placement) for n, placement in placed if placement]
        if not fitting:
            return None
        n, placement = fitting[min(int(where * len(fitting)), len(fitting) - 1)]
        own = {f"accelerator.{key}": value for key, value in {**values, **placement.changes}.items()}
        candidate = Candidate(name, n, placement.num_full_steps, {**own, **changes})
        return candidate, chosen.cost(n, placement.full_steps) / self.num_steps
