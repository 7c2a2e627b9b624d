"""dLLM-Cache: cheap steps compute the rows whose values changed most, chosen anew in every layer."""

from dataclasses import dataclass

from torch import Tensor

from migm.accelerators.runners import VVerify
from migm.bases.base import Branch, Moment
from migm.bases.layers import LayerBase, Runner
from migm.bases.segments import image_span, other_rows
from migm.runtime.kinds import Count, Share


@dataclass(frozen=True)
class PromptResponse:
    """dLLM-Cache (arXiv 2506.06295; docs/originals/methods.md, dLLM-Cache); the response is the rows of the image.

    The prompt is all rows outside the image; it is computed at steps divisible by `prompt_interval` (Kp), whatever the
    policy decides. The response is computed at the policy's full steps (Kr is their interval). On the other steps the
    share `transfer_ratio` (rho) of its rows is computed, those whose values are least similar to the stored ones. Keys,
    values and both additions of every layer are kept for all rows.
    """

    prompt_interval: Count
    transfer_ratio: Share = 0.25

    def start(self, base: LayerBase, branch: Branch) -> "_Segments":
        return _Segments(base, branch, self.prompt_interval, self.transfer_ratio)


class _Segments:
    prompt: Tensor  # (copies * b, p)

    def __init__(self, base: LayerBase, branch: Branch, prompt_interval: int, transfer_ratio: float):
        self.base, self.branch, self.prompt_interval = base, branch, prompt_interval
        self.response = image_span(branch)
        self.num_changed = int(transfer_ratio * self.response.shape[1])
        self.store = VVerify()

    def runner(self, step: int) -> Runner:
        if step % self.prompt_interval == 0:
            return self.store.run
        return lambda blocks, x, ctx: self.store.run_rows(blocks, x, ctx, self.response, self.response, 0)

    def update(self, step: int, features: Tensor) -> None:
        if step == 0:
            self.prompt = other_rows(self.response, self.store.num_rows)

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        x, ctx = self.base.prepare(tokens, self.branch, moment)
        rows = self.prompt if step % self.prompt_interval == 0 and self.prompt.shape[1] else None
        out = self.store.run_rows(self.base.blocks, x, ctx, rows, self.response, self.num_changed)
        return self.base.finalize(out, ctx)
