"""Train the image tokenizer: reconstruction, a perceptual distance and VQ-VAE's codebook losses."""

from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss, normalize

from migm.bases.tokenizer import ConvVQ
from migm.cifar10.classes import to_unit
from migm.cifar10.net import CifarNet
from migm.pretraining.fit import step_generator
from migm.runtime.kinds import Count, NotNegative


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of the training of an image tokenizer; without `perceptual_weight` no classifier is needed."""

    batch_size: Count = 128
    perceptual_weight: NotNegative = 0.3
    revive_every: Count = 100


class VQModule(L.LightningModule):
    """L1 + 2 MSE + `settings.perceptual_weight` x distance in a frozen classifier's activations + codebook loss.

    Codes that no patch of the last `settings.revive_every` batches chose are moved onto random encoder
    outputs, so that the whole codebook is used.
    """

    def __init__(
        self,
        vq: ConvVQ,
        perceptual: CifarNet | None,
        seed: int,
        settings: TokenizerSettings,
        learning_rate: float = 1e-3,
    ):
        super().__init__()
        self.vq = vq.to(memory_format=torch.channels_last)
        # A list keeps the classifier out of the checkpoint.
        self.perceptual = [] if perceptual is None else [perceptual.eval().requires_grad_(False)]
        self.seed, self.settings, self.learning_rate = seed, settings, learning_rate
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(vq.quantize.num_codes))

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step)
        images = batch[0]
        flip = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flip.to(images.device)[:, None, None, None], images.flip(-1), images)
        x = to_unit(images).contiguous(memory_format=torch.channels_last)
        latents = self.vq.encoder(x).float()
        if self.global_step % self.settings.revive_every == 0 and self.global_step < 0.8 * self.trainer.max_steps:
            self._revive(latents.detach(), generator)
        with torch.autocast(x.device.type, enabled=False):
            quantized, codebook_loss, indices = self.vq.quantize(latents)
        self.usage += torch.bincount(indices.flatten(), minlength=len(self.usage))
        output = self.vq.decoder(quantized).float()
        perceptual = self._perceptual(output, x) if self.perceptual else output.new_zeros(())
        weighted = self.settings.perceptual_weight * perceptual
        loss = l1_loss(output, x) + 2 * mse_loss(output, x) + weighted + codebook_loss
        psnr = 10 * torch.log10(4 / mse_loss(output.detach(), x))
        log = {"train/psnr": psnr, "train/perceptual": perceptual, "train/commit": codebook_loss}
        self.log_dict(log, prog_bar=True)
        return loss

    def _perceptual(self, output: Tensor, target: Tensor) -> Tensor:
        net = self.perceptual[0].to(output.device)
        with torch.no_grad():
            target_activations = net.activations(target)
        pairs = zip(net.activations(output), target_activations, strict=True)
        distances = [(normalize(a.float()) - normalize(b.float())).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).sum()

    @torch.no_grad()
    def _revive(self, latents: Tensor, generator: torch.Generator) -> None:
        dead = (self.usage == 0).nonzero()[:, 0]
        rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        chosen = torch.randperm(len(rows), generator=generator)[: len(dead)]
        self.vq.quantize.embedding.weight[dead] = rows[chosen.to(rows.device)]
        self.usage.zero_()

    def configure_optimizers(self):
        codebook = list(self.vq.quantize.parameters())
        rest = [p for n, p in self.vq.named_parameters() if not n.startswith("quantize.")]
        groups = [{"params": rest}, {"params": codebook, "lr": 3 * self.learning_rate}]
        optimizer = torch.optim.AdamW(groups, self.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
        total = int(self.trainer.max_steps)
        peak = [group["lr"] for group in optimizer.param_groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total, pct_start=0.05, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.inference_mode()
def reconstruct(vq: ConvVQ, images: Tensor, batch_size: int = 250) -> Tensor:
    """Map uint8 images (n, 3, h, w) to their uint8 reconstructions of the same shape."""
    grid = (images.shape[2] // vq.stride, images.shape[3] // vq.stride)
    return torch.cat([vq.to_images(vq.to_tokens(part), grid).cpu() for part in images.split(batch_size)])
