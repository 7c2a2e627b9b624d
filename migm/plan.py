"""`python -m migm.plan`: at which steps the base runs, and what a run and its base would take, before it is loaded."""

import hydra
from omegaconf import DictConfig
from rich.table import Table

from migm.bases.footprint import footprint
from migm.config.building import class_of, conf_path, load
from migm.config.points import Chosen, points
from migm.config.roots import PlanConfig
from migm.evaluation.cost import planned_seconds
from migm.runtime.console import Plain
from migm.runtime.errors import command
from migm.sampling.sampler import point_label


def planned(chosen: Chosen, full: float, cheap: float, baseline: int | None = None) -> list[str]:
    """Return label, full steps, their number, seconds and speed-up of a point; blanks if decided while sampling.

    The speed-up compares with `baseline` full steps, by default with all N steps.
    """
    n, plan = chosen.sampling.num_steps, chosen.accelerator.plan(chosen.sampling.num_steps)
    label = point_label(chosen.accelerator.name, n, sum(plan or ()), chosen.variant)
    if plan is None:
        return [label, "decided while sampling", "", "", ""]
    seconds = planned_seconds(sum(plan), n, full, full * cheap)
    steps = "all" if all(plan) else " ".join(str(i) for i, is_full in enumerate(plan) if is_full)
    return [label, steps, str(sum(plan)), f"{seconds:.2f}", f"{(baseline or n) * full / seconds:.2f}"]


@hydra.main(config_path=conf_path(), config_name="plan", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Print a table of `points` and the memory of the base; no base is loaded and nothing is written."""
    config = load(cfg, PlanConfig)
    table = Table("point", "full steps", "B", "seconds", "speed-up")
    chosen = points(cfg, config)
    vanilla = max((each.sampling.num_steps for each in chosen if each.accelerator.name == "vanilla"), default=None)
    for point in chosen:
        if point.decision:
            Plain().print(point.decision.record)
        table.add_row(*planned(point, config.full, config.cheap, vanilla))
    Plain().print(table)
    memory = footprint(config.base)
    Plain().print(str(memory or f"memory: not known before a {class_of(config.base).__name__} is built"))


if __name__ == "__main__":
    main()
