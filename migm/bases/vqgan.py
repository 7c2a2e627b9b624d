"""The VQGAN of taming-transformers (Esser et al. 2021), run by `diffusers.VQModel`."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn

from migm.bases.weights import locate
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count
from migm.runtime.reading import read_text
from migm.runtime.shapes import Images, Tokens

# Names of taming-transformers -> names of diffusers, applied in this order (docs/originals/maskgit.md, VQGAN names).
RENAMED = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.attn\.", r".down_blocks.\1.attentions."),
    (r"\.down\.(\d+)\.downsample\.conv\.", r".down_blocks.\1.downsamplers.0.conv."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.attn\.", r".up_blocks.\1.attentions."),
    (r"\.up\.(\d+)\.upsample\.conv\.", r".up_blocks.\1.upsamplers.0.conv."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


class VQGAN(nn.Module):
    """VQGAN with the arguments of a taming `model.yaml`.

    The stride is 2 ** (levels - 1), 16 for the published model. `pixels` chooses how decoded values become uint8:
    `clamp` to [-1, 1], `min_max`, which stretches each image to 0...255 and floors, as MaskGIT's own evaluation does
    (docs/originals/maskgit.md, Pixels), or `floor` of 127.5 x + 128, as Di[M]O's does. A `model_yaml` (a file, or
    `hf://owner/repository/file`) replaces the first three arguments by its own values.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        n_embed: Count,
        embed_dim: Count,
        pixels: Literal["clamp", "min_max", "floor"] = "clamp",
        model_yaml: str | None = None,
        norm_groups: Count = 32,
    ):
        from diffusers.models.autoencoders.vq_model import VQModel  # seconds, which other bases need not wait for

        super().__init__()
        if model_yaml:
            ddconfig, n_embed, embed_dim = read_model_yaml(model_yaml)
        self.pixels = pixels
        self.levels = len(ddconfig["ch_mult"])
        self.stride = 2 ** (self.levels - 1)
        self.pixel_channels = ddconfig["ch"] * max(ddconfig["ch_mult"][:2])
        # These are compared with the nominal resolution, at any image size (docs/originals/maskgit.md, Nominal
        # resolution).
        sides = [ddconfig["resolution"] >> level for level in range(self.levels)]
        attends = ["Attn" if side in ddconfig["attn_resolutions"] else "" for side in sides]
        self.vq = VQModel(
            in_channels=ddconfig["in_channels"],
            out_channels=ddconfig["out_ch"],
            down_block_types=tuple(f"{a}DownEncoderBlock2D" for a in attends),
            up_block_types=tuple(f"{a}UpDecoderBlock2D" for a in reversed(attends)),
            block_out_channels=tuple(ddconfig["ch"] * factor for factor in ddconfig["ch_mult"]),
            layers_per_block=ddconfig["num_res_blocks"],
            latent_channels=ddconfig["z_channels"],
            num_vq_embeddings=n_embed,
            vq_embed_dim=embed_dim,
            lookup_from_codebook=True,
            norm_num_groups=norm_groups,
        )

    def from_published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from taming's names to this module's, leaving out its training losses.

        Tensors with other names are returned unchanged; strict loading refuses them.
        """
        renamed = {}
        for name, tensor in tensors.items():
            if name.startswith("loss."):
                continue
            new = f".{name}"
            for pattern, replacement in RENAMED:
                new = re.sub(pattern, replacement, new)
            # Taming counts the decoder's levels from the image, diffusers from the latents.
            new = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{self.levels - 1 - int(m[1])}", new)
            attention_matrix = re.search(r"attentions\.\d+\.to_.*weight$", new) and tensor.ndim == 4
            renamed[f"vq{new}"] = tensor[:, :, 0, 0] if attention_matrix else tensor
        return renamed

    def latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h//{self.stride} w//{self.stride}"]:
        """Return the latents before quantisation, of `embed_dim` channels, of images in [-1, 1]."""
        return self.vq.encode(self._like_weights(images)).latents

    def pixel_values(self, tokens: Tokens, grid: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
        """Decode tokens to float32 pixels, nominally in [-1, 1] but not clamped."""
        rows = self.vq.quantize.embedding(tokens).unflatten(1, grid)
        latents = self._like_weights(rows.permute(0, 3, 1, 2))
        return self.vq.decoder(self.vq.post_quant_conv(latents)).float()

    @torch.inference_mode()
    def to_tokens(self, images: Images) -> Tokens:
        """Encode images as int64 tokens, row-major."""
        latents = self.latents(images.float() / 127.5 - 1)
        return self.vq.quantize(latents.float())[2][2].view(len(images), -1)

    @torch.inference_mode()
    def to_images(self, tokens: Tokens, grid: tuple[int, int]) -> Images:
        """Decode int64 tokens to images, with `pixels` as chosen."""
        x = self.pixel_values(tokens, grid)
        if self.pixels == "floor":
            return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        if self.pixels == "clamp":
            return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        return ((x - low) / (high - low) * 255).to(torch.uint8)

    def fine_parts(self) -> list[nn.Module]:
        """Return the decoder's last two levels and what turns their maps into pixels."""
        decoder = self.vq.decoder
        return [*decoder.up_blocks[-2:], decoder.conv_norm_out, decoder.conv_out]

    def _like_weights(self, x: Tensor) -> Tensor:
        weight = self.vq.quantize.embedding.weight
        return x.to(weight.device, weight.dtype)


def read_model_yaml(path: str) -> tuple[Mapping[str, Any], int, int]:
    """Read `ddconfig`, `n_embed` and `embed_dim` of a taming `model.yaml`; its training losses are ignored."""
    key = "base.tokenizer.model_yaml"
    try:
        params = yaml.safe_load(read_text(locate(path, key), key))["model"]["params"]
        return params["ddconfig"], params["n_embed"], params["embed_dim"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{key}={path} is no taming model.yaml: model.params lacks or garbles {error}") from error
