"""Build the MAGVIT-v2 of Show-o and MMaDA of diffusers' blocks (docs/originals/mmada.md, Image tokenizer)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from migm.bases.vqgan import RENAMED
from migm.bases.weights import assign_strictly, read_tensors
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Length
from migm.runtime.shapes import Images, Tokens

COMPUTED = ("quantize.embedding", "quantize.power_vals")  # of the published file: functions of the number of bits


@dataclass(frozen=True)
class Levels:
    """Sizes of an encoder or decoder, the level of the image first: `channels` times a factor, and residual blocks."""

    channels: Count
    factors: Annotated[Sequence[Count], Length()]
    blocks: Annotated[Sequence[Count], Length()]

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.blocks):
            raise UserError(
                f"base.tokenizer: factors={list(self.factors)} and blocks={list(self.blocks)} differ in length"
            )

    @property
    def widths(self) -> list[int]:
        """The channels of every level."""
        return [self.channels * factor for factor in self.factors]


class MagvitV2(nn.Module):
    """Convert uint8 images to ids and back, one id per square of `stride` pixels, by look-up-free quantisation.

    An id is `bits` signs of a latent, that of channel 0 the most significant bit; there is no codebook. The stride is
    2 ** (levels - 1). Weights are the published `pytorch_model` file, pickled or as safetensors, under its own names.
    """

    def __init__(self, encoder: Levels, decoder: Levels, bits: Count = 13, norm_groups: Count = 32):
        super().__init__()
        if len(encoder.factors) != len(decoder.factors):
            sides = f"{len(encoder.factors)} and {len(decoder.factors)}"
            raise UserError(f"base.tokenizer: encoder and decoder have {sides} levels, which must be as many")
        self.stride, self.bits, self.num_codes = 2 ** (len(encoder.factors) - 1), bits, 2**bits
        self.pixel_channels = max(decoder.widths[:2])
        self.encoder = MagvitEncoder(encoder, bits, norm_groups)
        self.decoder = MagvitDecoder(decoder, bits, norm_groups)

    def load(self, path: str | Path | None, key: str) -> None:
        """Load a published file; anything but exactly its tensors is refused by name, beginning with `key`."""
        assign_strictly(self, self.from_published(read_tensors(path, key)[0]), f"{key}={path}", mapped=True)

    def from_published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from Show-o's names, which are taming's, to this module's; those it computes are left out."""
        renamed = {}
        for name, tensor in tensors.items():
            if name in COMPUTED:
                continue
            new = f".{name}"
            for pattern, replacement in RENAMED:
                new = re.sub(pattern, replacement, new)
            matrix = re.search(r"attentions\.\d+\.to_.*weight$", new) and tensor.ndim == 4
            renamed[new[1:]] = tensor[:, :, 0, 0] if matrix else tensor
        return renamed

    def latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b {self.bits} _ _"]:
        """Return the latents, whose signs are the bits, of images in [-1, 1]."""
        return self.encoder(self._like_weights(images))

    def ids(self, latents: Float[Tensor, "b {self.bits} h w"]) -> Int[Tensor, "b h*w"]:
        """Return the ids of latents, row-major; 0 counts as negative."""
        return ((latents > 0).flatten(2) * self._powers(latents.device)[:, None]).sum(1)

    def entries(self, tokens: Tokens) -> Float[Tensor, "b {self.bits} l"]:
        """Return the signs, -1 or 1, that ids stand for."""
        return (tokens[:, None] & self._powers(tokens.device)[:, None] > 0).float() * 2 - 1

    def pixel_values(self, tokens: Tokens, grid: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
        """Decode tokens to float32 pixels, nominally in [-1, 1] but not clamped."""
        return self.decoder(self._like_weights(self.entries(tokens).unflatten(2, grid))).float()

    @torch.inference_mode()
    def to_tokens(self, images: Images) -> Tokens:
        """Encode images as int64 tokens, row-major."""
        return self.ids(self.latents(images.float() / 127.5 - 1))

    @torch.inference_mode()
    def to_images(self, tokens: Tokens, grid: tuple[int, int]) -> Images:
        """Decode int64 tokens to images."""
        return grey_levels(self.pixel_values(tokens, grid))

    def fine_parts(self) -> list[nn.Module]:
        """Return the decoder's last two levels and what turns their maps into pixels."""
        decoder = self.decoder
        return [*reversed(decoder.up_blocks[:2]), decoder.conv_norm_out, decoder.conv_out]

    def _powers(self, device: torch.device) -> Int[Tensor, " {self.bits}"]:
        return 2 ** torch.arange(self.bits - 1, -1, -1, device=device)

    def _like_weights(self, x: Tensor) -> Tensor:
        weight = self.encoder.conv_in.weight if x.shape[1] == 3 else self.decoder.post_quant_conv.weight
        return x.to(weight.device, weight.dtype)


def grey_levels(pixels: Float[Tensor, "b 3 h w"]) -> Images:
    """Clamp pixels to [-1, 1] and cut them to whole grey levels, as published; other tokenizers round."""
    return (((pixels + 1) / 2).clamp(0, 1) * 255).to(torch.uint8)


class MagvitEncoder(nn.Module):
    """Pixels (b, 3, h, w) -> latents (b, bits, h / stride, w / stride)."""

    def __init__(self, levels: Levels, bits: int, norm_groups: int):
        from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D  # seconds, which others need not wait for

        super().__init__()
        widths, last = levels.widths, len(levels.blocks) - 1
        self.conv_in = nn.Conv2d(3, levels.channels, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(
                in_channels=before,
                out_channels=width,
                num_layers=count,
                resnet_eps=1e-6,
                resnet_groups=norm_groups,
                add_downsample=level < last,
                downsample_padding=0,  # it pads below and on the right alone
            )
            for level, (before, width, count) in enumerate(
                zip([levels.channels, *widths], widths, levels.blocks, strict=False)
            )
        )
        self.mid_block = _middle(widths[-1], norm_groups)
        self.conv_norm_out = nn.GroupNorm(norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = nn.functional.silu(self.conv_norm_out(self.mid_block(x)))
        return self.quant_conv(self.conv_out(x))


class MagvitDecoder(nn.Module):
    """Signs (b, bits, h, w) -> pixels (b, 3, h * stride, w * stride); `up_blocks` 0 is the level of the image."""

    def __init__(self, levels: Levels, bits: int, norm_groups: int):
        from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D  # seconds, which others need not wait for

        super().__init__()
        widths = levels.widths
        self.post_quant_conv = nn.Conv2d(bits, bits, 1)
        self.conv_in = nn.Conv2d(bits, widths[-1], 3, padding=1)
        self.mid_block = _middle(widths[-1], norm_groups)
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(
                in_channels=before,
                out_channels=width,
                num_layers=count,
                resnet_eps=1e-6,
                resnet_groups=norm_groups,
                add_upsample=level > 0,
            )
            for level, (before, width, count) in enumerate(
                zip([*widths[1:], widths[-1]], widths, levels.blocks, strict=True)
            )
        )
        self.conv_norm_out = nn.GroupNorm(norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(self.post_quant_conv(x)))
        for block in reversed(self.up_blocks):
            x = block(x)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(x)))


def _middle(width: int, norm_groups: int) -> nn.Module:
    from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D

    return UNetMidBlock2D(
        in_channels=width,
        temb_channels=None,  # type: ignore[arg-type]  no time embedding
        resnet_eps=1e-6,
        resnet_groups=norm_groups,
        attention_head_dim=width,  # one head
    )
