"""Image tokenizer: a vector-quantised autoencoder between uint8 images and a grid of token ids."""

import torch
from diffusers.models.autoencoders.vae import VectorQuantizer
from torch import Tensor, nn

from migm.runtime.kinds import Count, Whole


class ResidualConv(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(last.weight)  # starts as the identity: trains without norm layers
        self.body = nn.Sequential(nn.ReLU(), first, nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvVQ(nn.Module):
    """Convolutional VQ autoencoder with stride 4 and no norm layers, which on a CPU would double its time.

    Pixels are folded 2x2 into channels first, so no convolution runs wide at full resolution.
    Images in [-1, 1], (b, 3, h, w) <-> latents (b, code_channels, h / 4, w / 4) <-> ids (b, l).
    """

    stride = 4

    def __init__(self, num_codes: Count = 256, code_channels: Count = 16, channels: Count = 96, depth: Whole = 2):
        super().__init__()
        wide = 2 * channels
        self.pixel_channels = max(channels // 4, 12)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, channels, 3, padding=1),
            ResidualConv(channels),
            nn.ReLU(),
            nn.Conv2d(channels, wide, 4, stride=2, padding=1),
            *(ResidualConv(wide) for _ in range(depth)),
            nn.Conv2d(wide, code_channels, 1),
        )
        self.quantize = VectorQuantizer(num_codes, code_channels, beta=0.25, legacy=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_channels, wide, 3, padding=1),
            *(ResidualConv(wide) for _ in range(depth)),
            nn.Conv2d(wide, 4 * channels, 1),
            nn.PixelShuffle(2),
            *(ResidualConv(channels) for _ in range(depth)),
            nn.ReLU(),
            nn.Conv2d(channels, 48, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(12, 3, 3, padding=1),
        )

    @torch.inference_mode()
    def to_tokens(self, images: Tensor) -> Tensor:
        """uint8 images (b, 3, h, w) -> int64 tokens (b, l), row-major, l = (h / stride) * (w / stride)."""
        latents = self.encoder(self._like_weights(images.float() / 127.5 - 1))
        rows = latents.permute(0, 2, 3, 1).flatten(1, 2).float()
        return torch.cdist(rows, self.quantize.embedding.weight.float()).argmin(-1)

    @torch.inference_mode()
    def to_images(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """int64 tokens (b, l) -> uint8 images (b, 3, h, w); pixels are clamped to [-1, 1], then rounded."""
        codes = self.quantize.embedding(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
        pixels = self.decoder(self._like_weights(codes)).float()
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def _like_weights(self, x: Tensor) -> Tensor:
        weight = self.quantize.embedding.weight
        return x.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)
