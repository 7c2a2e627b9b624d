"""Weights & Biases, enabled by `logger=wandb`: runs for the points of a study and for reports, and a dashboard.

Runs of an experiment share a group. `evaluate` and `report` are their job types, beside Lightning's
`train`. A point or report that is logged again replaces its run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migm.evaluation.results import file_name
from migm.reporting.summary import Row, Summary, summarise, table
from migm.runtime.extras import optional, refuse_missing
from migm.runtime.files import content_hash, write_atomic
from migm.runtime.reading import files_of

KEPT = ("project", "entity", "group", "tags", "notes")  # settings of Lightning's logger that are passed on
CURVES = ("train/feature_mse", "val/feature_mse")  # of the dashboard
QUIET = {"silent": True, "console": "off", "x_disable_stats": True}


class Tracker:
    """Write runs; `settings` is the config's `logger.wandb`, `config` the resolved config, stored in every run."""

    def __init__(self, settings: Mapping[str, Any], config: Mapping[str, Any]):
        self.wandb: Any = optional("wandb", "logger=wandb")
        self.settings, self.config = settings, config
        self.folder, self.offline = Path(settings["save_dir"]), bool(settings["offline"])

    def log_points(self, records: Sequence[dict[str, Any]], previews: Path, live: Any = None) -> None:
        """Log each point of `records`, with its preview if any, as a run of its own or all in the run `live`."""
        if not records:
            return
        summary = summarise(records)
        for row in summary.rows:
            values: dict[str, Any] = point_values(row)
            preview = previews / f"{file_name(row.label)}.png"
            if preview.exists():
                values["preview"] = self.wandb.Image(str(preview), caption=row.label)
            about = {"label": row.label, "method": row.accelerator, "variant": row.variant, **summary.about}
            steps = {"num_steps": row.num_steps, "num_full_steps": row.num_full_steps}
            point = {"point": {**about, **steps}}
            if live:
                live.config.update(point, allow_val_change=True)
                live.log(values)
            else:
                self._log("evaluate", row.label, values, point)

    def log_report(self, name: str, summary: Summary, baseline: Row, folder: Path) -> None:
        """Log a run with a study's table, plots of quality against cost, and the figures in `folder`."""
        headings, cells = table(summary, baseline)
        values: dict[str, Any] = {"table": self.wandb.Table(columns=headings, data=cells)}
        for metric in summary.metrics():
            rows = [(row, point_values(row)) for row in summary.rows if metric in row.quality]
            for cost in cost_keys(summary):
                points = [[v[cost], row.mean(metric), row.accelerator, row.label] for row, v in rows if cost in v]
                if points:
                    data = self.wandb.Table(columns=[cost, metric, "method", "point"], data=points)
                    title = f"{metric} against {cost}"
                    values[f"pareto/{metric}/{cost}"] = self.wandb.plot.scatter(data, cost, metric, title=title)
        for figure in files_of(folder, ".png"):
            values[f"figures/{figure.stem}"] = self.wandb.Image(str(figure))
        self._log("report", name, values, {"study": summary.about})

    def write_dashboard(self, summaries: Sequence[Summary], path: Path) -> None:
        """Write the experiment's dashboard as JSON, and create it in W&B unless offline."""
        metrics = list(dict.fromkeys(metric for summary in summaries for metric in summary.metrics()))
        costs = list(dict.fromkeys(key for summary in summaries for key in cost_keys(summary)))
        group = self.settings["group"]
        dashboard = workspace(self.settings.get("entity") or "", self.settings["project"], group, metrics, costs)
        write_atomic(path, spec(dashboard))
        if not self.offline:
            dashboard.entity = dashboard.entity or self.wandb.Api().default_entity
            dashboard.save()

    def _log(self, job: str, name: str, values: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # else W&B writes elsewhere
        kept = {key: self.settings[key] for key in KEPT if self.settings.get(key) is not None}
        owner = self.settings.get("name") or kept.get("group")  # trials of a sweep share the group
        digest = content_hash("|".join([str(owner), job, name]), digits=16)
        with self.wandb.init(
            **kept,
            name=name,
            id=digest,
            resume="allow",
            job_type=job,
            dir=str(self.folder),
            mode="offline" if self.offline else None,
            config={"resolved": dict(self.config), **config},
            settings=self.wandb.Settings(**QUIET),
        ) as run:
            run.log(dict(values))


def refuse_untracked(logger: Mapping[str, Any]) -> None:
    """Raise UserError where W&B is chosen but a package is missing, even one needed only at the end."""
    if "wandb" in logger:
        refuse_missing("wandb", "wandb_workspaces", wanted_by="logger=wandb (logger=csv does without)")


def tracker(logger: Mapping[str, Any], config: Mapping[str, Any]) -> Tracker | None:
    """Return the tracker of a config's `logger`; None where W&B is not chosen."""
    refuse_untracked(logger)
    return Tracker(logger["wandb"], config) if "wandb" in logger else None


def point_values(row: Row) -> dict[str, float]:
    """Return the logged values of a point: `quality/<metric>`, its deviation over seed sets, `cost/<metric>`."""
    logged: dict[str, float] = {}
    for metric in row.quality:
        logged[f"quality/{metric}"] = row.mean(metric)
        logged[f"quality/{metric}/deviation"] = row.deviation(metric)
    logged |= {f"cost/seconds_per_image/{name}": value for name, value in row.timings.items()}
    logged |= {f"cost/peak_bytes/{name}": value for name, value in row.peaks.items()}
    single = {"cost/ffe": row.ffe, "cost/cache_bytes_per_image": row.cached}
    return logged | {key: value for key, value in single.items() if value is not None}


def cost_keys(summary: Summary) -> list[str]:
    """Return the costs to plot quality against: time by every protocol, and FFE."""
    names = [name for name in summary.protocols() if any(name in row.timings for row in summary.rows)]
    measured = any(row.ffe is not None for row in summary.rows)
    return [f"cost/seconds_per_image/{name}" for name in names] + ["cost/ffe"] * measured


def workspace(entity: str, project: str, group: str, metrics: Sequence[str], costs: Sequence[str]) -> Any:
    """Return a workspace on the runs of `group`: quality against cost, bars, previews and training curves.

    `costs` are keys of `point_values`. Nothing is sent before the workspace's `save()`.
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


def spec(unsaved: Any) -> str:
    """Write a workspace as JSON, deterministically: panels are numbered instead of named at random."""
    # The package has no public way to write what `save()` would send.
    content = unsaved._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    panels = [p for section in content["spec"]["section"]["panelBankConfig"]["sections"] for p in section["panels"]]
    for number, panel in enumerate(panels):
        panel["__id__"] = f"panel{number}"
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
