"""Train a base by masked token prediction, and the class-conditional base so."""

import math

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from migm.bases.transformer import MaskTransformer
from migm.pretraining.fit import step_generator
from migm.training.optimizer import MuonAdamW
from migm.training.schedule import trapezoid


class MaskedPrediction(L.LightningModule):
    """Base class for cross-entropy on all tokens (b, 2, l) of each photo and its mirror image.

    Unmasked tokens count too, as in the original (docs/originals/maskgit.md, Base training). Predicting them is
    easy, but makes their rows of the hidden state say which token stands there. A shortcut can read the
    context from these rows.

    The learning rate warms up, stays, and falls linearly to zero over the last `decay` share of the steps. Muon takes
    the matrices with `inside` in their names.
    """

    inside: str

    def __init__(self, net: nn.Module, seed: int, learning_rate: float, weight_decay: float, decay: float = 0.4):
        super().__init__()
        self.net = net
        self.seed, self.learning_rate, self.weight_decay, self.decay = seed, learning_rate, weight_decay, decay

    def mean_of(self, losses: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the losses (b, l); log those of masked and of known tokens apart."""
        self.log("train/masked", (losses.detach() * mask).sum() / mask.sum().clamp(min=1), prog_bar=True)
        self.log("train/known", (losses.detach() * ~mask).sum() / (~mask).sum().clamp(min=1), prog_bar=True)
        return losses.mean()

    def configure_optimizers(self):
        optimizer = MuonAdamW(self.net.named_parameters(), self.inside, self.learning_rate, self.weight_decay)
        schedule = trapezoid(optimizer, int(self.trainer.max_steps), warmup_steps=200, decay=self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class MaskedModule(MaskedPrediction):
    """Mask ratio arccos(u) 2/pi, u uniform; class dropped with probability 0.1. Batches also hold labels (b,)."""

    net: MaskTransformer
    inside = "transformer."

    def __init__(self, net: MaskTransformer, seed: int, learning_rate: float, weight_decay: float):
        super().__init__(net, seed, learning_rate, weight_decay)
        # The first layer's norm removes the table's scale from the input; a small scale keeps the first logits small.
        nn.init.normal_(net.tok_emb.weight, std=0.02)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step)
        (token_pairs, labels), net = batch, self.net
        b, _, length = token_pairs.shape
        noise = torch.rand(b, length + 3, generator=generator).to(token_pairs.device)
        tokens = token_pairs[torch.arange(b), (noise[:, 0] < 0.5).long()].long()
        labels = torch.where(noise[:, 1] < 0.1, net.num_classes, labels)
        mask = noise[:, 3:] < torch.arccos(noise[:, 2:3]) * (2 / math.pi)
        ids = net.sequence(tokens.masked_fill(mask, net.vocab_size), labels)
        logits = net.head(net(ids)[:, :length])
        losses = cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view(b, length)
        return self.mean_of(losses, mask)


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
