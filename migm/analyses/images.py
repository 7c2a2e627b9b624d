"""Fig. 5: images of several methods for equal inputs and seeds, with the saving of each method."""

import textwrap
from pathlib import Path

import torch

from migm.analyses.recording import Setting
from migm.bases.inputs import captioned
from migm.evaluation.cost import LatencyProtocol, costs, latency
from migm.runtime.errors import UserError
from migm.runtime.figures import plt, write_figure
from migm.runtime.kinds import Count, Whole


class MethodGrid:
    """A row of images for every point, with the speed-up over the first point, timed on the row's batch.

    The time is the median of `repeats` rounds in which points take turns, decoding excluded; FFE are counted. With
    `repeats` 0, as on a machine with other work, speed-ups are by FFE alone and labelled so.
    """

    needs_points = True

    def __init__(self, num_images: Count = 10, repeats: Whole = 3):
        self.num_images, self.repeats = num_images, repeats

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        points, images = setting.samplers, torch.arange(self.num_images)
        if not points:
            raise UserError("analysis=images needs points, the first of which the others are compared with")
        inputs = setting.inputs(images)
        protocol = LatencyProtocol.named(f"batch{self.num_images}_amortised")
        seconds = latency(points, setting.inputs, protocol, self.repeats) if self.repeats else []
        equivalents = [each.ffe for each in costs(points, setting.inputs)]
        width, height = self.num_images * 0.95 + 1.9, len(points) * 0.95 + 0.35
        drawn, axes = plt.subplots(len(points), self.num_images, figsize=(width, height), squeeze=False)
        drawn.subplots_adjust(left=1.75 / width, right=1 - 0.05 / width, bottom=0.05 / height, top=1 - 0.4 / height)
        drawn.subplots_adjust(wspace=0.06, hspace=0.06)
        cost, unit = (seconds, "faster") if seconds else (equivalents, "by FFE")
        for row, point in enumerate(points):
            pixels = point.images(inputs, setting.seed, images).cpu()
            for axis, image in zip(axes[row], pixels, strict=True):
                axis.imshow(image.permute(1, 2, 0), interpolation="nearest")
                axis.set_axis_off()
            speed = f"{cost[0] / cost[row]:.1f}x {unit}"
            saved = f"{speed}, {equivalents[row]:.1f} FFE" if row else f"{equivalents[row]:.1f} FFE"
            place = {"transform": axes[row, 0].transAxes, "ha": "right", "va": "center", "fontsize": 8.5}
            axes[row, 0].text(-0.08, 0.5, f"{point.label}\n{saved}", **place)
        for axis, text in zip(axes[0], captioned(inputs), strict=True):
            axis.set_title("\n".join(textwrap.wrap(text, 20)[:3]), fontsize=5.5)
        write_figure(drawn, figure)
        seconds_by_label = {p.label: s for p, s in zip(points, seconds, strict=bool(seconds))}
        return {
            "ffe": dict(zip([point.label for point in points], equivalents, strict=True)),
            "seconds_per_image": seconds_by_label,
            "speed_up": {label: seconds[0] / s for label, s in seconds_by_label.items()},
        }
