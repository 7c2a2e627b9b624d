"""Let `speed=`, `quality=` and `accelerator=auto` choose a sampler from the front file of the base (docs/fronts.md)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from migm.config.building import asset_path, beside, conf_path, resolved
from migm.config.checks import check_below
from migm.config.fitting import fitted, shown
from migm.config.fronts import Front, FrontPoint, choose, dumped_front, named, read_front, told
from migm.config.groups import file
from migm.config.roots import Common
from migm.runtime.errors import UserError
from migm.runtime.files import content_hash
from migm.runtime.kinds import Positive

AUTO = "auto"
NAME = "front.json"
MADE_BY = "python -m migm.tune makes one"
BUDGET = "{speed: 3}, {quality: 0.98}, both or {}"


def auto(name: str) -> None:
    """Stand in conf/accelerator/auto.yaml for the accelerator that a front chooses; building it is a UserError."""
    raise UserError(
        f"accelerator={name} is chosen in generate, evaluate, bench, plan, analyse and as points.{name}; "
        "name an accelerator here"
    )


@dataclass(frozen=True)
class Decision:
    """The point that a front chose for `asked`, such as speed=3; `origin` says where its file `path` comes from."""

    asked: str
    front: Front
    point: FrontPoint
    path: Path
    origin: str
    also: str = ""  # what of the sampler is not the front's

    @property
    def record(self) -> str:
        """Say what was chosen and why, without a path: the front is named by a hash of its content."""
        of = f"front {content_hash(dumped_front(self.front))} of {self.front.name}"
        return f"{self.asked}: {told(self.front, self.point)}{self._device}{self._paper}; {of}{self.also}"

    @property
    def _device(self) -> str:
        return f" on {self.point.device}" if self.point.device else ""

    @property
    def _paper(self) -> str:
        return f" (of {self.front.name}, from the paper, not measured here)" if self.front.from_paper else ""

    def line(self, here: str) -> str:
        """Return words for people: the choice, its file, and whether the device `here` is another than the front's."""
        other = not self.front.from_paper and self.point.device not in (None, here)
        doubt = f" (not measured on this device, {here})" if other else ""
        told_all = f"{told(self.front, self.point)}{self._device}{self._paper}{doubt}"
        return f"{self.asked}: {told_all}{self.also}; {self.path}, {self.origin}"


def asked(config: Common) -> str:
    """Return the keys by which a config leaves its one sampler to a front, as text; empty where none do."""
    given = {"speed": config.speed, "quality": config.quality}
    texts = [f"{key}={shown(value)}" for key, value in given.items() if value is not None]
    return " ".join(texts) or ("accelerator=auto" if config.draws_by_one and is_auto(config.accelerator) else "")


def is_auto(accelerator: Any) -> bool:
    """Return whether an accelerator's node is that of conf/accelerator/auto.yaml."""
    return accelerator.get("_target_") == f"{__name__}.{auto.__name__}"


def find_front(config: Common) -> tuple[Path, str] | None:
    """Return the front of a config and where it comes from; None if there is none.

    It is `front`, else the one that `migm.tune` wrote under `name`, else the one beside the base's weights, else one
    from a paper for a base of conf/base with these weights.
    """
    if config.front is not None:
        return Path(config.front), "as given"
    tuned, weights = Path(config.paths["output_dir"]) / config.name / NAME, config.base.get("weights")
    if tuned.is_file():
        return tuned, "tuned here"
    if isinstance(near := beside(weights, NAME), str) and Path(near).is_file():
        return Path(near), "bundled with the base"
    for path in sorted((Path(asset_path()) / "fronts").glob("*.json")):
        if OmegaConf.select(OmegaConf.load(Path(conf_path()) / "base" / f"{path.stem}.yaml"), "weights") == weights:
            return path, "bundled"
    return None


def front_of(config: Common) -> Front | None:
    """Return the front of a config; None if there is none."""
    found = find_front(config)
    return read_front(found[0]) if found else None


def decide(config: Common, request: str, speed: float | None, quality: float | None) -> Decision:
    """Return the point that the config's front chooses; UserError without a front or for what it does not reach."""
    found = find_front(config)
    if found is None:
        raise UserError(f"{request}: there is no front of this base; {MADE_BY}, and front=<file> names one")
    path, origin = found
    front = read_front(path)
    return Decision(request, front, choose(front, speed, quality), path, origin)


def budget(value: Any) -> tuple[str, float | None, float | None]:
    """Return an entry of points.auto as text, its speed and its quality; UserError for another entry."""
    keys = value if isinstance(value, dict) else {"": value}
    text = ", ".join(f"{key}: {shown(each)}" for key, each in keys.items()) if isinstance(value, dict) else value
    setting = f"points.{AUTO}={{{text}}}" if isinstance(value, dict) else f"points.{AUTO}={text}"
    if set(keys) - {"speed", "quality"}:
        raise UserError(f"{setting}: entries of points.{AUTO} are {BUDGET}")
    speed, quality = (fitted(f"points.{AUTO}.{k}", keys.get(k), Positive | None) for k in ("speed", "quality"))
    return setting, speed, quality


def both(one: Decision | None, other: Decision | None) -> Decision | None:
    """Return one decision for a point that two requests chose."""
    if one is None or other is None:
        return one or other
    return replace(one, asked=f"{one.asked} and {other.asked}")


def parts(config: Common, decision: Decision) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configs of the sampling and the accelerator of the chosen point, resolved and checked."""
    point, where = decision.point, f"front={decision.path}"
    context = OmegaConf.create(asdict(config))
    context.accelerator = file("accelerator", point.accelerator, where)
    steps = point.num_steps if point.num_full_steps is None else point.num_full_steps
    context.sampling.num_steps, context.sampling.num_full_steps = point.num_steps, steps
    for key, value in point.changes.items():
        OmegaConf.update(context, key, _beside(decision.path, value), force_add=True)
    try:
        made = [resolved(context[group], group) for group in ("sampling", "accelerator")]
        for group, node in zip(("sampling", "accelerator"), made, strict=True):
            check_below(group, node)
    except UserError as error:
        raise UserError(f"{where}: {named(point)}: {error}") from error
    return made[0], made[1]


def _beside(path: Path, value: Any) -> Any:
    """Return a value of `changes`; ./ at its beginning stands for the folder of the front."""
    return str(path.parent / value) if isinstance(value, str) and value.startswith("./") else value


def given_overrides() -> list[tuple[str, Any]]:
    """Return the keys and values that the command line of this job overrides; empty outside of a command."""
    task = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    parsed = OverridesParser.create().parse_overrides(task) if task else []
    return [(each.key_or_group, each.value()) for each in parsed if not each.is_delete()]


def against(decision: Decision, overrides: Sequence[tuple[str, Any]]) -> Decision:
    """Refuse keys and values beside `speed=` that contradict what was chosen; note a sampler other than the front's.

    Raises UserError for another accelerator, N or B, and for any value of the accelerator or of the point's changes.
    """
    point, others = decision.point, []
    own = {"sampling.num_steps": point.num_steps, "sampling.num_full_steps": point.num_full_steps, **point.changes}
    for key, value in overrides:
        group = key.replace("/", ".").partition(".")[0]
        right = value in (point.accelerator, AUTO) if key == "accelerator" else key in own and own[key] == value
        if group not in ("accelerator", "sampling") or right:
            continue
        if group == "accelerator" or key in own:
            raise UserError(
                f"{key}={shown(value)} contradicts {decision.asked}, which chose {named(point)}; leave one out"
            )
        others.append(f"{key}={shown(value)}")
    also = f"; {', '.join(others)} is not the sampler that was measured" if others else ""
    return replace(decision, also=also)
