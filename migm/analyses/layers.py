"""Appendix A: how much the features of consecutive steps agree after each layer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.analyses.drawing import panels, save
from migm.analyses.recording import Setting, cosine
from migm.bases.base import Base, Branch, StepRecord, image_rows
from migm.bases.layers import layered
from migm.runtime.kinds import Count
from migm.sampling.loop import generate_images


class LayerSimilarity:
    """Cosine similarity of a row between steps i and i + 1 after every layer, mean over image rows of `num_images`.

    Layer 0 is the embedded tokens; `masked` counts the rows alone that stay masked, whose input does not change.
    """

    def __init__(self, num_images: Count = 10):
        self.num_images = num_images

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        images, watch = torch.arange(self.num_images), _Layers(setting.base)
        rest: dict[str, Any] = {
            "sampling": setting.sampling,
            "accelerator": Accelerator(Always()),
            "observers": [watch],
        }
        generate_images(setting.base, setting.inputs(images), images, setting.seed, **rest)
        layers, masked = torch.stack(watch.layers, 1), torch.stack(watch.masked, 1)  # (layers, n, b, l, c), (b, n, l)
        alike = cosine(layers[:, 1:], layers[:, :-1])  # (layers, n - 1, b, l)
        stay = masked[:, 1:].transpose(0, 1)  # (n - 1, b, l): still masked in the later step
        all_rows = alike.mean((2, 3))
        of_masked = (alike * stay).sum((2, 3)) / stay.sum((1, 2))
        self._draw(all_rows, of_masked, figure)
        depth = all_rows.mean(1)
        return {
            "by_layer": depth.tolist(),
            "by_layer_masked": of_masked.nanmean(1).tolist(),
            "least_alike_layer": int(depth.argmin()),
        }

    def _draw(self, all_rows: Tensor, of_masked: Tensor, path: Path) -> None:
        figure, (left, right) = panels(2)
        depth = range(len(all_rows))
        left.plot(depth, all_rows.mean(1), "o-", color="#d1495b", label="all image rows")
        left.plot(depth, of_masked.nanmean(1), "s-", color="#2e86ab", label="rows that stay masked")
        left.set(
            xlabel="layer (0: embedded tokens)", ylabel="cosine similarity", title="steps i and i + 1, mean over i"
        )
        left.legend(frameon=False, fontsize=8)
        shown = right.imshow(all_rows, cmap="magma", origin="lower", aspect="auto")
        figure.colorbar(shown, ax=right, label="cosine similarity", shrink=0.85)
        right.set(xlabel="step i", ylabel="layer", title="all image rows")
        save(figure, path)


class _Layers:
    """An observer that runs the step again and keeps what every layer makes of the conditional half."""

    def __init__(self, base: Base):
        self.base = base
        self.layers: list[Tensor] = []  # one (layers, b, l, c) a step
        self.masked: list[Tensor] = []  # (b, l) before the step

    def on_step(self, record: StepRecord) -> None:
        before, branch = record.tokens_before(self.base.spec.vocab_size), record.branches[0]
        outputs = layer_outputs(self.base, before, branch, record.mask_ratio)
        rows = [image_rows(x, branch)[: len(before)].float().cpu() for x in outputs]
        self.layers.append(torch.stack(rows))
        self.masked.append((before == self.base.spec.vocab_size).cpu())


def layer_outputs(base: Base, tokens: Tensor, branch: Branch, mask_ratio: Tensor) -> list[Tensor]:
    """The input of the first layer and the output of every one, (copies * b, t, c) each."""
    own = layered(base, "analysis=layers")
    x, ctx = own.prepare(tokens, branch, mask_ratio)
    outputs = [x]
    for block in own.blocks:
        outputs.append(block(outputs[-1], ctx))
    return outputs
