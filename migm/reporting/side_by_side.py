"""One HTML page with the same images by several methods, and what each method took."""

import json
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from rich.table import Table

from migm.bases.footprint import footprint
from migm.bases.inputs import captioned, review
from migm.config.building import build
from migm.config.points import Chosen
from migm.config.roots import SideBySideConfig
from migm.evaluation.turns import Lane, Wanted, as_inputs, lanes, rounds
from migm.reporting.pictures import encoded
from migm.runtime.compiling import notice
from migm.runtime.console import Plain
from migm.runtime.device import pick_device
from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.markup import filled
from migm.runtime.owned import only, own
from migm.runtime.pictures import as_picture
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.sampling.generation import wanted_inputs
from migm.sampling.sampler import Sampler, say_weights

PAGE, NUMBERS = "index.html", "side_by_side.json"
FEW = "So few do not measure quality: python -m migm.evaluate does."
SMALL = 100  # pixels, below which images are enlarged without smoothing


def run(config: SideBySideConfig, chosen: Sequence[Chosen]) -> Path:
    """Make the images of all `chosen` points in turns and write the page after every round -> its path."""
    folder, console = Path(config.folder), Plain()
    inputs, memory = wanted_inputs(config), footprint(config.base)
    own(folder, "side_by_side", "folder", only(folder, rf"{PAGE}|{NUMBERS}"))
    if memory:
        memory.refuse_too_large(pick_device(config.device), config.batch_size or len(inputs))
    base = build(config.base)
    samplers = [Sampler(base, *parts) for parts in chosen]
    say_weights(samplers, console)
    review(base, as_inputs(inputs))
    wanted = [Wanted(shown, number) for number in config.seeds or [0] for shown in inputs]
    if note := notice(samplers[0].fast):
        console.print(note)
    with torch.inference_mode(), progress(console, "full steps") as bar:
        compared, batch = lanes(samplers, wanted), config.batch_size or len(inputs)
        for done in rounds(compared, wanted, batch, config.seed, bar, config.max_seconds):
            write(folder, config, compared, wanted[:done], len(wanted))
    console.print(table(compared))
    console.print(f"page in {folder / PAGE}")
    return folder / PAGE


def refuse_few(chosen: Sequence[Chosen]) -> None:
    """UserError for fewer than two points."""
    if len(chosen) < 2:
        raise UserError(
            f"points names {len(chosen)} to compare: name at least two, the first to compare others with, "
            "such as points={vanilla: [32], taylorseer: [32]}"
        )


def write(
    folder: Path, config: SideBySideConfig, compared: Sequence[Lane], wanted: Sequence[Wanted], total: int
) -> None:
    """Write the page of `wanted`, the images so far of `total`, and its numbers."""
    about = environment(compared[0].sampler.base.device)
    numbers = [
        {**lane.sampler.identity, "label": lane.sampler.label, "ffe": lane.cost.ffe, "full_steps": lane.cost.full_steps}
        | {"seconds_per_image": lane.seconds, "median_seconds": lane.median, "speed_up": lane.times(compared[0])}
        for lane in compared
    ]
    images = [{"input": each.shown, "seed": each.number} for each in wanted]
    shared = {"run_seed": config.seed, "batch_size": config.batch_size, "images": images, **about}
    lines = {"points": numbers, **shared, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
    write_atomic(folder / NUMBERS, json.dumps(lines, indent=1) + "\n")
    write_atomic(folder / PAGE, page(config.name, compared, wanted, how(config, compared, len(wanted), total, about)))


def how(
    config: SideBySideConfig, compared: Sequence[Lane], done: int, total: int, about: dict[str, str]
) -> list[tuple[str, str]]:
    """Return how times were taken and what the page does not show, as pairs of a heading and a text."""
    taken, first = len(compared[0].seconds), compared[0].sampler.label
    rounds_ = f"the median of {taken} rounds in which the methods took turns"
    one = "one run of each method, so another job may have disturbed any of them"
    size = min(config.batch_size or done, done)
    at_once = "one image at a time" if size == 1 else f"{size} images at a time, divided by {size}"
    limit = "so far" if config.max_seconds is None else f"within max_seconds={config.max_seconds:g}"
    short = "" if done == total else f" {done} of {total} images were made {limit}."
    timed = f"of an image from label or prompt to picture, {at_once}: {one if taken == 1 else rounds_}."
    ratios = "" if taken == 1 else ": median of the rounds' ratios"
    known = [("Known", config.note)] if config.note else []
    return [
        *known,
        ("Time", f"{timed} The warm-up is not counted.{short} Machine: {about['device']}, torch {about['torch']}."),
        ("Speed-up", f"over {first}, the first of points{ratios}."),
        ("FFE", "the cost in full steps of both guidance halves in a run of the same N, counted in FLOPs, not timed."),
        ("Images", f"of the same labels or prompts, seeds and noise. {FEW}"),
    ]


def page(name: str, compared: Sequence[Lane], wanted: Sequence[Wanted], notes: Sequence[tuple[str, str]]) -> str:
    """Return the whole document, which opens without network and without a script."""
    document = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    captions = [f"{text}, seed {each.number}" for each, text in zip(wanted, named(wanted), strict=True)]
    longest = max(lane.median for lane in compared)
    rows = "\n".join(row(lane, compared[0], longest, captions) for lane in compared)
    about = "\n".join(f"<dt>{escape(heading)}</dt><dd>{escape(text)}</dd>" for heading, text in notes)
    return filled(document, {"name": name, "title": title(compared)}, None, rows=rows, notes=about)


def title(compared: Sequence[Lane]) -> str:
    """Return the page's heading: how many times as fast as the first method the others are."""
    most = max(lane.times(compared[0]) for lane in compared[1:])
    return f"The same seeds, up to {most:.1f} times as fast as {compared[0].sampler.label}"


def row(lane: Lane, first: Lane, longest: float, captions: Sequence[str]) -> str:
    """Return one method: its figures, a bar as long as its time, and its images."""
    full, n = lane.cost.full_steps, lane.sampler.num_steps
    facts = f"{full:.3g} of {n} steps run the base<br>{lane.cost.ffe:.1f} FFE"
    speed = f"{lane.times(first):.1f}&times;"
    small = lane.images[0].shape[-1] < SMALL
    pictures = "\n".join(
        f'<figure><img src="{encoded(as_picture(image))}" alt="{escape(f"{lane.sampler.label}: {caption}")}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in zip(lane.images, captions, strict=True)
    )
    grid = f'class="images {"small" if small else "large"}" style="--columns:{min(len(captions), 10 if small else 3)}"'
    return (
        f'<section><div class="facts"><h2>{escape(lane.sampler.label)}</h2><p class="speed">{speed}</p>'
        f'<p class="time">{duration(lane.median)} an image</p><p class="cost">{facts}</p></div>'
        f'<div class="made"><div class="bar"><i style="width:{100 * lane.median / longest:.1f}%"></i></div>'
        f"<div {grid}>{pictures}</div></div></section>"
    )


def named(wanted: Sequence[Wanted]) -> list[str]:
    """Return labels or prompts as texts."""
    return captioned(as_inputs([each.shown for each in wanted]))


def duration(seconds: float) -> str:
    """Return seconds as a text of three digits, in milliseconds below one second."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def table(compared: Sequence[Lane]) -> Table:
    """Return the page's figures for the console."""
    shown = Table("point", "full steps", "FFE", "an image", "speed-up")
    for lane in compared:
        figures = f"{lane.cost.full_steps:.3g}", f"{lane.cost.ffe:.2f}", duration(lane.median)
        shown.add_row(lane.sampler.label, *figures, f"{lane.times(compared[0]):.2f}")
    return shown
