"""The dashboard of an experiment in Weights & Biases, as code (`wandb-workspaces`)."""

import json
from collections.abc import Sequence
from typing import Any

from migm.runtime.extras import optional


def workspace(entity: str, project: str, group: str, metrics: Sequence[str], costs: Sequence[str]) -> Any:
    """Return a workspace on the runs of `group`: quality against cost, bars, previews and training curves.

    `costs` are keys of `migm.reporting.wandb.point_values`. Nothing is sent before the workspace's `save()`.
    """
    wr: Any = optional("wandb_workspaces.reports.v2", "logger=wandb")
    ws: Any = optional("wandb_workspaces.workspaces", "logger=wandb")
    planes: list[Any] = [
        wr.ScatterPlot(
            title=f"{metric} against {cost.removeprefix('cost/')}",
            x=wr.SummaryMetric(cost),
            y=wr.SummaryMetric(f"quality/{metric}"),
            log_x=True,
        )
        for metric in metrics
        for cost in costs
    ]
    keys = [*(f"quality/{metric}" for metric in metrics), *costs]
    bars: list[Any] = [wr.BarPlot(title=key, metrics=[wr.SummaryMetric(key)], orientation="h") for key in keys]
    curves: list[Any] = [wr.LinePlot(title=key, x="trainer/global_step", y=[key], log_y=True) for key in CURVES]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{group}: quality and cost",
        sections=[
            ws.Section(name="Quality against cost", panels=planes, is_open=True),
            ws.Section(name="Points", panels=bars, is_open=True),
            ws.Section(name="Images", panels=[wr.MediaBrowser(media_keys=["preview"])], is_open=True),
            ws.Section(name="Training", panels=curves),
        ],
        runset_settings=ws.RunsetSettings(filters=f"Group = {group!r}"),
    )


CURVES = ("train/feature_mse", "val/feature_mse")


def spec(unsaved: Any) -> str:
    """Write a workspace as JSON, deterministically: panels are numbered instead of named at random."""
    # The package has no public way to write what `save()` would send.
    content = unsaved._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    panels = [p for section in content["spec"]["section"]["panelBankConfig"]["sections"] for p in section["panels"]]
    for number, panel in enumerate(panels):
        panel["__id__"] = f"panel{number}"
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
