"""`python -m migm.plan`: at which steps the base runs, and what a run would take, before anything is built."""

import hydra
from omegaconf import DictConfig
from rich.table import Table

from migm.config.building import conf_path, load
from migm.config.points import points
from migm.config.roots import PlanConfig
from migm.evaluation.cost import Point, planned_seconds
from migm.runtime.console import Plain
from migm.runtime.errors import command


def planned(point: Point, full: float, cheap: float, baseline: int | None = None) -> list[str]:
    """Label, full steps, their number, seconds and speed-up of a point; blanks where it is decided while sampling.

    The speed-up is over `baseline` full steps, by default as many as it has steps.
    """
    if not point.full_steps:
        return [point.label, "decided while sampling", "", "", ""]
    n, plan = point.sampling.num_steps, point.accelerator.policy.plan(point.sampling.num_steps)  # type: ignore[union-attr]
    seconds = planned_seconds(sum(plan), n, full, full * cheap)
    steps = "all" if all(plan) else " ".join(str(i) for i, is_full in enumerate(plan) if is_full)
    speed = (baseline or n) * full / seconds
    return [point.label, steps, str(sum(plan)), f"{seconds:.2f}", f"{speed:.2f}"]


@hydra.main(config_path=conf_path(), config_name="plan", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Print a table of `points`; nothing is loaded, built or written."""
    config = load(cfg, PlanConfig)
    table = Table("point", "full steps", "B", "seconds", "speed-up")
    found = points(cfg, config)
    vanilla = max((point.sampling.num_steps for point in found if point.accelerator.name == "vanilla"), default=None)
    for point in found:
        table.add_row(*planned(point, config.full, config.cheap, vanilla))
    Plain().print(table)


if __name__ == "__main__":
    main()
