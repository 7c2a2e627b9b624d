"""An image tokenizer: a vector-quantised autoencoder between uint8 images and a grid of token ids."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from migm.runtime.kinds import Count, Whole
from migm.runtime.shapes import Images, Tokens


class ResidualConv(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(last.weight)  # begins as the identity, so that it trains without norm layers
        self.body = nn.Sequential(nn.ReLU(), first, nn.ReLU(), last)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.body(x)


class Codebook(nn.Module):
    """The vectors that tokens stand for; a latent becomes the nearest one (van den Oord et al. 2017).

    It equals diffusers' `VectorQuantizer` without remapping, which a start of a command would wait seconds for.
    """

    def __init__(self, num_codes: int, code_channels: int, commitment: float = 0.25):
        super().__init__()
        self.num_codes, self.commitment = num_codes, commitment
        self.embedding = nn.Embedding(num_codes, code_channels)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def nearest(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h*w"]:
        """Return the ids of the nearest codes, row-major, compared in float32."""
        rows = latents.permute(0, 2, 3, 1).flatten(1, 2).float()
        return torch.cdist(rows, self.embedding.weight.float()).argmin(-1)

    def forward(
        self, latents: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, ""], Int[Tensor, "b h*w"]]:
        """Return the nearest codes, the loss of codes and latents, and the ids.

        The codes' gradient goes to the latents. The loss draws codes to their latents, and, `commitment` times as
        strongly, latents to their codes.
        """
        ids = self.nearest(latents)
        codes = self.embedding(ids).unflatten(1, latents.shape[2:]).permute(0, 3, 1, 2)
        loss = mse_loss(codes, latents.detach()) + self.commitment * mse_loss(latents, codes.detach())
        return latents + (codes - latents).detach(), loss, ids


class ConvVQ(nn.Module):
    """Convolutional VQ autoencoder of stride 2 or 4, without norm layers, which would double its time on a CPU.

    Pixels are folded 2x2 into channels first, so that no wide convolution runs at full resolution. Stride 4 halves once
    more, to twice the channels. The networks see images in [-1, 1], and latents of `code_channels` channels, `stride`
    times less high and wide. `depth` is the number of residual blocks of the encoder at the tokens' resolution; the
    decoder has twice as many.
    """

    def __init__(
        self,
        num_codes: Count = 256,
        code_channels: Count = 16,
        channels: Count = 96,
        depth: Whole = 2,
        stride: Literal[2, 4] = 4,
    ):
        super().__init__()
        self.stride, halved = stride, stride == 4
        wide = 2 * channels if halved else channels
        self.pixel_channels = max(channels // 4, 12)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, channels, 3, padding=1),
            *([ResidualConv(channels), nn.ReLU(), nn.Conv2d(channels, wide, 4, 2, padding=1)] if halved else []),
            *(ResidualConv(wide) for _ in range(depth)),
            nn.Conv2d(wide, code_channels, 1),
        )
        self.quantize = Codebook(num_codes, code_channels)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_channels, wide, 3, padding=1),
            *(ResidualConv(wide) for _ in range(depth)),
            *([nn.Conv2d(wide, 4 * channels, 1), nn.PixelShuffle(2)] if halved else []),
            *(ResidualConv(channels) for _ in range(depth)),
            nn.ReLU(),
            nn.Conv2d(channels, 48, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(12, 3, 3, padding=1),
        )

    @torch.inference_mode()
    def to_tokens(self, images: Images) -> Tokens:
        """Encode images as int64 tokens, row-major, l = (h / stride) * (w / stride)."""
        return self.quantize.nearest(self.encoder(self._like_weights(images.float() / 127.5 - 1)))

    @torch.inference_mode()
    def to_images(self, tokens: Tokens, grid: tuple[int, int]) -> Images:
        """Decode int64 tokens to images; pixels are clamped to [-1, 1], then rounded."""
        codes = self.quantize.embedding(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
        pixels = self.decoder(self._like_weights(codes)).float()
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def fine_parts(self) -> list[nn.Module]:
        """Return the decoder's layers, the one of the pixels last."""
        return [*self.decoder]

    def _like_weights(self, x: Tensor) -> Tensor:
        weight = self.quantize.embedding.weight
        return x.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)
