"""Train the small text-to-image base by masked token prediction from captions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from migm.bases.base import Moment, image_rows
from migm.bases.dimoo import LuminaDiMOO
from migm.bases.layout import padded_ids
from migm.pretraining.fit import step_generator
from migm.pretraining.masked import BaseSettings, MaskedPrediction
from migm.training.module import Frozen


class TextModule(MaskedPrediction):
    """Mask ratio cos(pi/2 u), u uniform; captions dropped with probability 0.1.

    Batches also hold conditions (b, captions, q) of several captions, one of which is drawn.
    """

    inside = "blocks."

    def __init__(self, base: LuminaDiMOO, seed: int):
        super().__init__(base.transformer.requires_grad_(True).train(), seed, BaseSettings())
        self.frozen = Frozen(base)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step)
        (token_pairs, captions), base = batch, self.frozen.base
        b, _, length = token_pairs.shape
        noise = torch.rand(b, length + 4, generator=generator).to(token_pairs.device)
        rows = torch.arange(b, device=token_pairs.device)
        tokens = token_pairs[rows, (noise[:, 0] < 0.5).long()].long()
        conditions = captions[rows, (noise[:, 1] * captions.shape[1]).long()].long()
        unconditional = torch.nn.functional.pad(
            base.unconditional.to(token_pairs.device), (0, conditions.shape[1] - len(base.unconditional)), value=-1
        )
        conditions = torch.where(noise[:, 2:3] < 0.1, unconditional, conditions)
        mask = noise[:, 4:] < torch.cos(noise[:, 3:4] * (math.pi / 2))
        return self.mean_of(token_loss(base, tokens, mask, conditions), mask)


def token_loss(base: LuminaDiMOO, tokens: Tensor, mask: Tensor, conditions: Tensor) -> Tensor:
    """Return the cross-entropy (b, l) in nats of the tokens (b, l) while those in `mask` (b, l) are masked."""
    used = int((conditions >= 0).sum(1).max())
    branch = base.branch(conditions[:, :used])
    moment = Moment.at(0, 1, mask.float().mean(1))  # outside a generation, whose step would mean nothing
    features = base.features(tokens.masked_fill(mask, base.spec.vocab_size), branch, moment)
    logits = base.head(image_rows(features, branch))
    return cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


@torch.inference_mode()
def masked_loss(base: LuminaDiMOO, tokens: Tensor, captions: Sequence[str], mask_ratio: float, seed: int = 0) -> float:
    """Return the cross-entropy in nats of masked tokens at one mask ratio; tokens (n, l) and n captions."""
    generator, total, count = torch.Generator().manual_seed(seed), 0.0, 0
    conditions = padded_ids([base.template(caption) for caption in captions], tokens.device)
    for part, condition in zip(tokens.split(250), conditions.split(250), strict=True):
        mask = torch.rand(part.shape, generator=generator).to(part.device) < mask_ratio
        total += float((token_loss(base, part, mask, condition) * mask).sum())
        count += int(mask.sum())
    return total / count
