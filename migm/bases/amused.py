"""The VQ autoencoder of aMUSEd, Meissonic and Lumina-DiMOO, run by `diffusers.VQModel`."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from migm.runtime.kinds import Count, Length
from migm.runtime.shapes import Images, Tokens


class AmusedVQ(nn.Module):
    """Convert uint8 images to ids and back, one id per square of `stride` pixels.

    The model is in docs/originals/dimoo.md, Image tokenizer. `channels` are the widths of the encoder's levels from the
    image inwards; the stride is 2 ** (levels - 1). Weights are the `vqvae` folder's
    `diffusion_pytorch_model.safetensors`.
    """

    def __init__(
        self,
        channels: Annotated[Sequence[Count], Length()] = (128, 256, 256, 512, 768),
        layers: Count = 2,
        latent_channels: Count = 64,
        num_codes: Count = 8192,
        norm_groups: Count = 32,
        rounding: Literal["nearest", "down"] = "nearest",
    ):
        from diffusers.models.autoencoders.vq_model import VQModel  # seconds, which other bases need not wait for

        super().__init__()
        levels, self.rounding = len(channels), rounding
        self.stride, self.num_codes = 2 ** (levels - 1), num_codes
        self.pixel_channels = max(channels[:2])
        vq = VQModel(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            latent_channels=latent_channels,
            num_vq_embeddings=num_codes,
            norm_num_groups=norm_groups,
            mid_block_add_attention=False,
        )
        # The parts are attributes of their own, so that the weights have the names of the published file.
        self.encoder, self.quant_conv, self.quantize = vq.encoder, vq.quant_conv, vq.quantize
        self.post_quant_conv, self.decoder = vq.post_quant_conv, vq.decoder

    @torch.inference_mode()
    def to_tokens(self, images: Images) -> Tokens:
        """Encode images as int64 tokens, row-major."""
        latents = self.quant_conv(self.encoder(self._like_weights(images.float() / 255)))
        return self.quantize(latents.float())[2][2].view(len(images), -1)

    @torch.inference_mode()
    def to_images(self, tokens: Tokens, grid: tuple[int, int]) -> Images:
        """Decode int64 tokens to images; values are clamped to [0, 1], then become whole by `rounding`."""
        rows = self.quantize.embedding(tokens).unflatten(1, grid)
        latents = self._like_weights(rows.permute(0, 3, 1, 2)).contiguous()  # as upstream: rounds in the same places
        values = self.decoder(self.post_quant_conv(latents)).float()
        grey = values.clamp(0, 1) * 255
        return (grey.round() if self.rounding == "nearest" else grey).to(torch.uint8)

    def fine_parts(self) -> list[nn.Module]:
        """Return the decoder's last two levels and what turns their maps into pixels."""
        decoder = self.decoder
        return [*decoder.up_blocks[-2:], decoder.conv_norm_out, decoder.conv_out]

    def _like_weights(self, x: Tensor) -> Tensor:
        weight = self.quantize.embedding.weight
        return x.to(weight.device, weight.dtype)
