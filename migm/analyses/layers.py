"""Appendix A: similarity of the features of consecutive steps after each layer."""

from pathlib import Path

import torch
from torch import Tensor

from migm.analyses.recording import Setting, cosine
from migm.bases.base import Base, Branch, Moment, StepRecord, block_image_rows
from migm.bases.layers import layered
from migm.runtime.figures import panels, write_figure
from migm.runtime.kinds import Count


class LayerSimilarity:
    """Cosine similarity of a row between steps i and i + 1 after every layer, mean over image rows of `num_images`.

    Layer 0 is the embedded tokens. `masked` counts only rows that stay masked, whose input does not change.
    """

    def __init__(self, num_images: Count = 10):
        self.num_images = num_images

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        watch = _Layers(setting.vanilla.base)
        setting.watch(setting.vanilla, torch.arange(self.num_images), watch)
        layers, masked = torch.stack(watch.layers, 1), torch.stack(watch.masked, 1)  # (layers, n, b, l, c), (b, n, l)
        alike = cosine(layers[:, 1:], layers[:, :-1])  # (layers, n - 1, b, l)
        stay = masked[:, 1:].transpose(0, 1)  # (n - 1, b, l): still masked before the later step
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
        write_figure(figure, path)


class _Layers:
    """Observer that repeats the step and keeps the output of every layer for the conditional half."""

    def __init__(self, base: Base):
        self.base = base
        self.layers: list[Tensor] = []  # (layers, b, l, c) per step
        self.masked: list[Tensor] = []  # (b, l) before the step

    def on_step(self, record: StepRecord) -> None:
        before, branch = record.tokens_before(self.base.spec.vocab_size), record.branches[0]
        outputs = layer_outputs(self.base, before, branch, record.moment)
        rows = [block_image_rows(x, branch)[: len(before)].float().cpu() for x in outputs]
        self.layers.append(torch.stack(rows))
        self.masked.append((before == self.base.spec.vocab_size).cpu())


def layer_outputs(base: Base, tokens: Tensor, branch: Branch, moment: Moment) -> list[Tensor]:
    """Return the input of the first layer and the output of every layer, (copies * b, t, c) each."""
    layers = layered(base, "analysis=layers")
    x, ctx = layers.prepare(tokens, branch, moment)
    outputs = [x]
    for block in layers.blocks:
        outputs.append(block(outputs[-1], ctx))
    return outputs
