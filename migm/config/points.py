"""Build the points of a config: accelerators with their N and B."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from migm.config.building import build, resolved
from migm.config.by_front import AUTO, Decision, against, asked, both, budget, decide, given_overrides, parts
from migm.config.checks import check_below
from migm.config.earlier import former_sampling, former_settings
from migm.config.fitting import fitted
from migm.config.groups import file
from migm.config.roots import Common
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count


class Chosen(NamedTuple):
    """The parts of a sampler that a point names: `Sampler(base, *chosen)`."""

    sampling: Any
    accelerator: Any
    variant: str
    runtime: Any
    decision: Decision | None = None  # of the front that chose it


class Entry(NamedTuple):
    """A point of the config, its sampling and accelerator resolved but not built."""

    sampling: dict[str, Any]
    accelerator: dict[str, Any]
    num_steps: int
    num_full_steps: int | None  # None: as many as the policy plans
    changes: Mapping[str, Any]
    setting: str  # key and value, for errors
    decision: Decision | None = None


def points(cfg: DictConfig, config: Common) -> list[Chosen]:
    """Return the samplers of `points`, or the single one that `accelerator` and `sampling`, or a front, choose.

    Raises UserError before anything runs if an accelerator does not fit N.
    """
    if not asked(config) and not config.points:
        return [point(config)]
    return _built(config, entries(cfg, config))


def point(config: Common, given: Sequence[tuple[str, Any]] | None = None) -> Chosen:
    """Return the sampler that `accelerator` and `sampling` choose, or a front by `speed`, `quality` or `auto`.

    `given` are keys and values that a front's choice may not contradict, by default those of the command line.
    """
    if request := asked(config):
        return _built(config, [_budgeted(config, request, given)])[0]
    accelerator = build(config.accelerator)
    accelerator.plan(config.sampling["num_steps"])  # raises an error if N does not fit
    return Chosen(build(config.sampling), accelerator, "", build(config.runtime))


def _built(config: Common, planned: Iterable[Entry]) -> list[Chosen]:
    """Build the samplers of entries; UserError for a B that the policy does not have."""
    runtime = build(config.runtime)
    built: dict[str, Any] = {}  # equal accelerators are built once: they hold no state of a generation
    chosen = []
    for entry in planned:
        text = json.dumps(entry.accelerator, sort_keys=True)
        accelerator = built[text] = built.get(text) or build(entry.accelerator)
        b, plan = entry.num_full_steps, accelerator.plan(entry.num_steps)
        if b is not None and (plan is None or b != sum(plan)):
            sets = "decides while sampling" if plan is None else f"sets {sum(plan)} full steps"
            raise UserError(f"{entry.setting}: B is {b}, but its policy {sets}; give N alone")
        steps = {"num_steps": entry.num_steps, "num_full_steps": entry.num_steps if b is None else b}
        variant = " ".join(f"{key.split('.')[-1]}={value}" for key, value in entry.changes.items())
        chosen.append(Chosen(build({**entry.sampling, **steps}), accelerator, variant, runtime, entry.decision))
    return chosen


def _budgeted(config: Common, request: str, given: Sequence[tuple[str, Any]] | None = None) -> Entry:
    """Return the entry that a front chooses by `speed` and `quality`; UserError for `given` values against it."""
    decision = decide(config, request, config.speed, config.quality)
    return _of_front(config, against(decision, given_overrides() if given is None else given))


def _of_front(config: Common, decision: Decision) -> Entry:
    """Return the entry of the point that a front chose."""
    chosen, (sampling, accelerator) = decision.point, parts(config, decision)
    setting = f"front={decision.path}: {chosen.accelerator} in {chosen.num_steps} steps"
    return Entry(sampling, accelerator, chosen.num_steps, chosen.num_full_steps, chosen.changes, setting, decision)


def entries(cfg: DictConfig, config: Common) -> list[Entry]:
    """Return the entries of `points`, their accelerators resolved against the whole config with their N and B.

    Where `speed`, `quality` or `accelerator=auto` leave the choice to a front, its point is the only one. A point that
    a front chose, and that is named too or chosen twice, is one entry.
    """
    if request := asked(config):
        return [_budgeted(config, request)]
    merged: list[Entry] = []
    for entry in _listed(cfg, config):
        same = next((i for i, other in enumerate(merged) if _same_point(entry, other)), None)
        if same is None:
            merged.append(entry)
        else:
            merged[same] = merged[same]._replace(decision=both(merged[same].decision, entry.decision))
    return merged


def _same_point(entry: Entry, other: Entry) -> bool:
    """Return whether a front chose one of two entries and both draw the same images."""
    if entry.decision is None and other.decision is None:
        return False
    one, two = ({**each.sampling, "num_steps": each.num_steps, "num_full_steps": 0} for each in (entry, other))
    return entry.accelerator == other.accelerator and one == two


def _listed(cfg: DictConfig, config: Common) -> Iterator[Entry]:
    """Yield an entry for every one of `points`."""
    for name, listed in (config.points or {}).items():
        if name == AUTO:
            for value in listed:
                yield _of_front(config, decide(config, *budget(value)))
            continue
        chosen = cfg.accelerator.get("name") == name  # then with its overrides
        node, copy = cfg.accelerator if chosen else file("accelerator", name, "points"), OmegaConf.create(cfg)
        OmegaConf.set_struct(copy, False)
        for value in listed:
            setting = f"points.{name}={value}"
            n, b, changes = _parsed(name, value)
            copy.accelerator = node
            copy.sampling.num_steps, copy.sampling.num_full_steps = n, n if b is None else b
            for key, changed in changes.items():
                OmegaConf.update(copy, f"accelerator.{key}", changed, force_add=True)
            accelerator = resolved(copy.accelerator, "accelerator")
            check_below("accelerator", accelerator)
            yield Entry(config.sampling, accelerator, n, b, changes, setting)


def former_identities(cfg: DictConfig, config: Common, chosen: Sequence[Chosen]) -> dict[str, str]:
    """Map the hashes that earlier versions wrote for the `chosen` points of a config to the identities of today."""
    nodes = [(entry.sampling, entry.accelerator) for entry in entries(cfg, config)]
    former: dict[str, str] = {}
    for (sampling, accelerator), made in zip(nodes or [(config.sampling, config.accelerator)], chosen, strict=True):
        former[former_sampling(sampling)] = made.sampling.identity
        former[former_settings(accelerator)] = made.accelerator.identity
    return former


def _parsed(name: str, value: Any) -> tuple[int, int | None, dict[str, Any]]:
    """Return N, B or None, and the changes of the accelerator."""
    if not isinstance(value, dict):
        n, b = value if isinstance(value, list) else (value, None)
        return n, b, {}
    changes = dict(value)
    n = fitted(f"points.{name}.num_steps", changes.pop("num_steps", None), Count)
    b = fitted(f"points.{name}.num_full_steps", changes.pop("num_full_steps", None), Count | None)
    return n, b, changes
