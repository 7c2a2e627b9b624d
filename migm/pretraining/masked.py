"""Train a base by masked token prediction, and the class-conditional base so."""

import math
from dataclasses import dataclass
from typing import Annotated

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.cifar10.classes import augment
from migm.pretraining.fit import step_generator
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.kinds import Count, Limits, Positive, Share, Whole
from migm.training.optimizer import MuonAdamW
from migm.training.schedule import trapezoid


@dataclass(frozen=True)
class BaseSettings:
    """Settings of the training of a class-conditional base.

    With `shift`, every photo is cropped anew each time, up to so many pixels beside its middle, and turned into tokens
    by the tokenizer as it comes; without, all tokens are made once. `average` is the decay of the averaged weights,
    `decay` the share of the steps, the last ones, over which the learning rate falls to zero. `clip` bounds the norm of
    the gradient that AdamW sees.
    """

    batch_size: Count = 128
    learning_rate: Positive = 2e-3
    average: Share = 0.999
    decay: Annotated[float, Limits(above=0, most=1)] = 0.4
    shift: Whole = 0
    clip: Positive | None = None


class MaskedPrediction(L.LightningModule):
    """Base class for cross-entropy on all tokens (b, 2, l) of each photo and its mirror image.

    Unmasked tokens count too, as in the original (docs/originals/maskgit.md, Base training). Predicting them is
    easy, but makes their rows of the hidden state say which token stands there. A shortcut can read the
    context from these rows.

    The learning rate warms up, stays, and falls linearly to zero over the last `decay` share of the steps. Muon takes
    the matrices with `inside` in their names.
    """

    inside: str

    def __init__(self, net: nn.Module, seed: int, settings: BaseSettings, weight_decay: float = 0.02):
        super().__init__()
        self.net, self.seed, self.settings, self.weight_decay = net, seed, settings, weight_decay

    def mean_of(self, losses: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the losses (b, l); log those of masked and of known tokens apart."""
        self.log("train/masked", (losses.detach() * mask).sum() / mask.sum().clamp(min=1), prog_bar=True)
        self.log("train/known", (losses.detach() * ~mask).sum() / (~mask).sum().clamp(min=1), prog_bar=True)
        return losses.mean()

    def configure_optimizers(self):
        optimizer = MuonAdamW(self.net.named_parameters(), self.inside, self.settings.learning_rate, self.weight_decay)
        schedule = trapezoid(optimizer, int(self.trainer.max_steps), warmup_steps=200, decay=self.settings.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: MuonAdamW, *_: object, **__: object) -> None:  # type: ignore[override]
        if self.settings.clip is not None:  # Muon's update has a size of its own
            nn.utils.clip_grad_norm_(optimizer.by_adamw, self.settings.clip)


class MaskedModule(MaskedPrediction):
    """Mask ratio arccos(u) 2/pi, u uniform; class dropped with probability 0.1. Batches also hold labels (b,).

    With `settings.shift`, batches hold uint8 photos (b, 3, h, w) in place of tokens, and `vq` makes the tokens. `fast`
    compiles network and loss.
    """

    net: MaskTransformer
    inside = "transformer."

    def __init__(
        self, net: MaskTransformer, seed: int, settings: BaseSettings, vq: ConvVQ | None = None, fast: Fast = as_it_is
    ):
        super().__init__(net, seed, settings)
        self.vq, self.fast = [vq], fast  # a list keeps the tokenizer out of the checkpoint
        # The first layer's norm removes the table's scale from the input; a small scale keeps the first logits small.
        nn.init.normal_(net.tok_emb.weight, std=0.02)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step)
        (photos, labels), net = batch, self.net
        noise = torch.rand(len(labels), net.num_tokens + 3, generator=generator).to(labels.device)
        if self.settings.shift:
            assert self.vq[0] is not None  # for the type checker
            cropped = augment(photos, generator, self.settings.shift)
            # A gradient may not need a tensor of inference mode.
            tokens = self.vq[0].to(photos.device).to_tokens(cropped).clone()
        else:
            tokens = photos[torch.arange(len(photos)), (noise[:, 0] < 0.5).long()].long()
        labels = torch.where(noise[:, 1] < 0.1, net.num_classes, labels)
        mask = noise[:, 3:] < torch.arccos(noise[:, 2:3]) * (2 / math.pi)
        ids = net.sequence(tokens.masked_fill(mask, net.vocab_size), labels)
        return self.mean_of(self.fast(token_losses)(net, ids, tokens), mask)


def token_losses(net: MaskTransformer, ids: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy (b, l) in nats of the tokens (b, l), from the ids (b, l + 1) that the network reads."""
    logits = net.head(net(ids)[:, : net.num_tokens])
    return cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


@torch.inference_mode()
def masked_loss(net: MaskTransformer, tokens: Tensor, labels: Tensor, mask_ratio: float, seed: int = 0) -> float:
    """Return the cross-entropy in nats of masked tokens at one mask ratio; tokens (n, l), labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    total, count = 0.0, 0
    for part, label in zip(tokens.split(250), labels.split(250), strict=True):
        mask = torch.rand(part.shape, generator=generator).to(part.device) < mask_ratio
        ids = net.sequence(part.masked_fill(mask, net.vocab_size), label)
        logits = net.head(net(ids)[:, : net.num_tokens]).float()
        total += float(cross_entropy(logits[mask], part[mask], reduction="sum"))
        count += int(mask.sum())
    return total / count
