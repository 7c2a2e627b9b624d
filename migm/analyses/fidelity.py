"""Fidelity: how far an accelerator's predictions are from the base, step by step along true trajectories."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.analyses.feature_error import looks
from migm.analyses.forcing import MEASURES, Measured, Truth, Walk, batches, opened
from migm.analyses.recording import Setting
from migm.reporting.tables import markdown
from migm.runtime.errors import UserError
from migm.runtime.figures import panels, write_figure
from migm.runtime.files import write_atomic
from migm.runtime.jsonl import dumped
from migm.runtime.kinds import Count, Whole
from migm.sampling.sampler import Sampler, vanilla
from migm.trajectories.record import Recorder
from migm.trajectories.replay import replayed
from migm.trajectories.store import Store

Row = dict[str, Any]  # of the JSON lines: a point's values at a number of steps since the last full one, or at a step


class Fidelity:
    """Predictions along true trajectories, by the steps since the last full one (g), over all masked rows.

    The trajectories are vanilla ones: the first `num_images` of `store`, a folder of `migm.collect`, or without one the
    images from number 0 on of the config's seed. The accelerator gets their tokens in their order. At full steps it
    gets the true features; what it predicts from there on goes on as in sampling. ReCAP ranks as the trajectory does,
    and its rows that are not ranked stand still. A full step of dLLM-Cache may leave the prompt as it was, so that it
    has errors too.

    - `error`: squared distance from the true features over their squared length, both guidance halves.
    - `kl`: KL(true, predicted) of the distributions by guided logits, in nats.
    - `entropy`: mean entropy of the predicted distributions less that of the true ones, in nats.
    - `equal_top`: share of rows at which both have the same most likely token.
    - `marginal_entropy`: the same as `entropy` for the mean of an image's distributions, which is its distribution of
      tokens.

    A value is the mean over an image's steps, from `first_step` on, then over images; its standard error is over
    images. Points without a predictor are left out: all their values are those of a full step.
    """

    needs_points = True

    def __init__(
        self, num_images: Count = 32, batch_size: Count = 8, first_step: Whole = 0, store: str | Path | None = None
    ):
        self.num_images, self.batch_size, self.first_step, self.store = num_images, batch_size, first_step, store

    @torch.inference_mode()
    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        points = [sampler for sampler in setting.samplers if sampler.accelerator.predictor is not None]
        store = self._store(points)
        groups = [[p for p in points if p.num_steps == n] for n in dict.fromkeys(p.num_steps for p in points)]
        total = self.num_images * sum(group[0].num_steps for group in groups)
        advance, rows = setting.advance("fidelity", total), []
        for group in groups:
            parts: list[list[Measured]] = []
            for truth in self._trajectories(setting, group, store):
                walk = Walk(group, truth.order)
                for record in truth.records:
                    walk.on_step(record)
                    advance(len(record.tokens))
                parts.append(walk.measured())
            for point, measured in zip(group, zip(*parts, strict=True), strict=True):
                joined = Measured(*(torch.cat(column) for column in zip(*measured, strict=True)))
                rows += [{**point.identity, "label": point.label, **row} for row in self._rows(joined)]
        origin = f"stored in {Path(self.store).name}" if self.store else f"sampled, seed {setting.seed}"
        about = {"trajectories": origin, "num_images": self.num_images, "first_step": self.first_step}
        write_atomic(figure.with_suffix(".jsonl"), dumped({**row, **about} for row in rows))
        write_atomic(figure.with_suffix(".md"), page(points, rows, about))
        draw(points, rows, figure)
        values = {p.label: [row for row in rows if row["label"] == p.label and "since_full" in row] for p in points}
        names = ("since_full", *MEASURES)
        return {**about, **{label: [{k: r[k] for k in names} for r in found] for label, found in values.items()}}

    def _store(self, points: Sequence[Sampler]) -> Store | None:
        """Return the store, if one is named; UserError for points that do not fit."""
        if not points:
            raise UserError("analysis=fidelity needs points with a predictor: vanilla is what they are compared with")
        for point in points:
            if self.first_step >= point.num_steps:
                limits = f"must be from 0 to {point.num_steps - 1} for {point.label}"
                raise UserError(f"analyses.fidelity.first_step={self.first_step} {limits}")
        return None if self.store is None else opened(self.store, self.num_images, points)

    def _trajectories(self, setting: Setting, points: Sequence[Sampler], store: Store | None) -> Iterator[Truth]:
        """Yield the trajectories batch by batch."""
        sampler = vanilla(points[0])
        # By rule `cutoff` images differ in the number of tokens that a step reveals.
        size = 1 if sampler.sampling.select.rule == "cutoff" else self.batch_size
        if store is not None:
            for tensors in batches(store, self.num_images, size):
                yield self._replayed(tensors, sampler)
            return
        ahead = any(getattr(point.accelerator.predictor, "ranks_ahead", False) for point in points)
        for numbers in torch.arange(self.num_images).split(size):
            inputs, noise = setting.inputs(numbers), sampler.noise(setting.seed, numbers)
            if not ahead:
                yield Truth(sampler.start(inputs, noise))
                continue
            recorder = Recorder(None)
            sampler.tokens(inputs, noise, [recorder])
            yield self._replayed(recorder.trajectories(numbers).tensors(), sampler)

    def _replayed(self, tensors: dict[str, Tensor], sampler: Sampler) -> Truth:
        return Truth(replayed(tensors, sampler.base), tensors["order"].long().to(sampler.base.device))

    def _rows(self, measured: Measured) -> Iterator[Row]:
        """Yield the values by steps since the last full one, then by step."""
        made = measured.since >= 0
        later = made & (torch.arange(made.shape[1]) >= self.first_step)
        for since in measured.since[later].unique().tolist():
            yield {"since_full": since, **averaged(measured, later & (measured.since == since))}
        for step in made.any(0).nonzero()[:, 0].tolist():
            chosen = torch.zeros_like(made)
            chosen[:, step] = made[:, step]
            yield {"step": step, "full": bool((measured.since[:, step] == 0).all()), **averaged(measured, chosen)}


def averaged(measured: Measured, chosen: Tensor) -> Row:
    """Return each measure's mean over images at the chosen (i, n) steps, its standard error over images, and counts.

    An image's value is the mean over its chosen steps. The standard error is None for a single image.
    """
    images = chosen.any(1)
    weights = chosen[images].double()
    values = (measured.values[images] * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)  # (i, m)
    n = len(values)
    errors = (values.std(0) / n**0.5).tolist() if n > 1 else [None] * len(MEASURES)
    means = dict(zip(MEASURES, values.mean(0).tolist(), strict=True))
    spread = {f"{name}_se": error for name, error in zip(MEASURES, errors, strict=True)}
    return {"images": n, "steps": int(chosen.sum()), "rows": int(measured.rows[chosen].sum()), **means, **spread}


def page(points: Sequence[Sampler], rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return the Markdown of both tables."""
    headings = ["point", "g", "steps", "error", "KL", "entropy", "equal top", "entropy of the marginal"]
    by_since = [
        [row["label"], str(row["since_full"]), str(row["steps"]), *(shown(row, name) for name in MEASURES)]
        for row in rows
        if "since_full" in row
    ]
    of_step = {(row["label"], row["step"]): row for row in rows if "step" in row}
    by_step = []
    for step in sorted({step for _, step in of_step}):
        found = [of_step.get((point.label, step)) for point in points]
        by_step.append([str(step), *("" if row is None else short(row) for row in found)])
    where = ", from step {first_step} on".format(**about) if about["first_step"] else ""
    return (
        f"{about['num_images']} true trajectories ({about['trajectories']}); means ± standard errors over images.\n"
        "KL(true, predicted) and entropies less the true ones in nats, of guided logits at masked rows.\n\n"
        f"By g, the steps since the last full one{where}:\n\n{markdown(headings, by_since)}\n"
        "By step: KL, entropy less the true one, share of equal top tokens.\n\n"
        f"{markdown(['step', *(point.label for point in points)], by_step)}"
    )


def shown(row: Row, name: str) -> str:
    """Return a value with its standard error; differences have a sign."""
    sign = "+" if name.endswith("entropy") else ""
    error = row[f"{name}_se"]
    return f"{row[name]:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def short(row: Row) -> str:
    """Return what is most important of a step."""
    return "full" if row["full"] else f"{row['kl']:.3f}, {row['entropy']:+.2f}, {row['equal_top']:.2f}"


def draw(points: Sequence[Sampler], rows: Sequence[Row], path: Path) -> None:
    """Draw KL by the steps since the last full one, a line for each point, with standard errors."""
    figure, (axis,) = panels(1, 7.0, 4.6)
    for point, look in zip(points, looks(points), strict=True):
        own = [row for row in rows if row["label"] == point.label and "since_full" in row]
        errors = [row["kl_se"] or 0.0 for row in own]
        x, y = [row["since_full"] for row in own], [row["kl"] for row in own]
        axis.errorbar(x, y, errors, capsize=2, elinewidth=1, **look)
    axis.set(xlabel="steps since the last full one", ylabel="KL(true, predicted) in nats", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    write_figure(figure, path)
