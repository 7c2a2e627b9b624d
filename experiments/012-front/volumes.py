"""Write how much of each bundled base's box of time and quality every method beats: table.md and a figure.

    python experiments/012-front/volumes.py

The fronts are those that ship in migm/assets, and those that runs of `migm.tune` left here (tuned_*.json). The box of a
base is in boxes.yaml: from no time to a share of vanilla's, from 0 to a value of its metric. The hypervolume is the
share of that box that a method's points beat; fewer steps of the base are a method like any other.
"""

from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from migm.config.fronts import Front, FrontPoint, read_front
from migm.reporting.pareto import front as pareto
from migm.reporting.pareto import hypervolume
from migm.reporting.tables import markdown
from migm.runtime.figures import panels, plain_ticks, write_figure
from migm.runtime.files import write_atomic

HERE = Path(__file__).parent
PLACES = ("_uniform", "_interval", "_table", "_placed")  # where full steps lie: one predictor, several names
SHARES = (0.15, 0.20, 0.27, 0.33, 0.50)


class Box(NamedTuple):
    """The corner that points are measured from: a share of vanilla's time, and a value."""

    share: float
    value: float


def method(point: FrontPoint) -> str:
    """Return the predictor's name, without where its full steps lie."""
    name = point.accelerator
    for place in PLACES:
        name = name.removesuffix(place)
    return name


def volume(points: list[FrontPoint], box: Box) -> float:
    """Return the share of the box that the points beat."""
    area = hypervolume([1 / p.speed for p in points], [p.value for p in points], box)
    return area / (box.share * box.value)


def best_within(points: list[FrontPoint], share: float) -> str:
    """Return the best value of points that take at most a share of vanilla's time, to half a percent of it."""
    fast = [p.value for p in points if 1 / p.speed <= share + 0.005]
    return f"{min(fast):.3f}" if fast else ""


def grouped(front: Front) -> dict[str, list[FrontPoint]]:
    """Return the points of every method."""
    groups: dict[str, list[FrontPoint]] = {}
    for point in front.points:
        groups.setdefault(method(point), []).append(point)
    return groups


def rows(front: Front, box: Box) -> list[list[str]]:
    """Return a line for every method, best first, and one for all together."""
    groups = {**grouped(front), "all together": front.points}
    known = sorted(((volume(points, box), name, points) for name, points in groups.items()), reverse=True)
    return [[name, f"{part:.3f}", *(best_within(points, s) for s in SHARES)] for part, name, points in known]


def draw(front: Front, box: Box, path: Path) -> None:
    """Draw every method's points, joined where no other of the method beats them."""
    figure, (axes,) = panels(1, 7.5, 5)
    for name, points in grouped(front).items():
        shares, values = [1 / p.speed for p in points], [p.value for p in points]
        kept = pareto(shares, values)
        (line,) = axes.plot([shares[i] for i in kept], [values[i] for i in kept], marker="o", ms=4, label=name)
        axes.plot(shares, values, ".", ms=4, alpha=0.5, color=line.get_color())
    axes.axhline(front.vanilla.value, color="0.5", lw=0.8, ls="--")
    axes.set(xlabel="share of vanilla's time", ylabel=front.metric, yscale="log", xlim=(0, box.share))
    axes.set_ylim(top=box.value)
    axes.set_title(f"{front.name}; dashed: vanilla N = {front.vanilla.num_steps}")
    axes.legend(fontsize=8, frameon=False)
    plain_ticks(axes.yaxis)
    write_figure(figure, path)


def main() -> None:
    """Read the fronts and the boxes, write table.md and a figure for each."""
    text = []
    for name, known in OmegaConf.to_container(OmegaConf.load(HERE / "boxes.yaml")).items():
        front, box = read_front(HERE / known["front"]), Box(known["share"], known["value"])
        measured = str(front.about.get("device") or front.points[0].device)
        headings = ["method", "hypervolume", *(f"best within {share:.0%}" for share in SHARES)]
        text.append(
            f"## {name}\n{front.metric} on {measured}; vanilla N = {front.vanilla.num_steps}: "
            f"{front.vanilla.value:.3f}; box to {box.share:.0%} of its time and {box.value:g}.\n\n"
            f"{markdown(headings, rows(front, box))}"
        )
        draw(front, box, HERE / f"{name}.png")
    write_atomic(HERE / "table.md", "# Hypervolumes\n" + "\n".join(text))


if __name__ == "__main__":
    main()
