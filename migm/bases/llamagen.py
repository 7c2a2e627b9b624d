"""The VQ autoencoder of LlamaGen (Sun et al. 2024), which Halton-MaskGIT uses, run by `diffusers.VQModel`."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from migm.bases.vqgan import VQGAN
from migm.runtime.kinds import Count, Length

NOMINAL = 16  # side of the deepest level, the only one with attention, in the terms of taming's config
CODEBOOK = "vq.quantize.embedding.weight"
USED = "quantize.codebook_used"  # a training statistic in the published file
MIDDLE = ("block_1", "attn_1", "block_2")


class LlamaGenVQ(VQGAN):
    """LlamaGen's tokenizer: a VQGAN whose codes have unit length (docs/originals/halton.md, Tokenizer).

    `ch` times each of `ch_mult` are the widths of the levels from the image inwards; the stride is
    2 ** (levels - 1), 16 for the published model. `pixels` is as in `VQGAN`; the original clamps.
    """

    def __init__(
        self,
        ch: Count = 128,
        ch_mult: Annotated[Sequence[Count], Length()] = (1, 1, 2, 2, 4),
        num_res_blocks: Count = 2,
        z_channels: Count = 256,
        n_embed: Count = 16384,
        embed_dim: Count = 8,
        norm_groups: Count = 32,
        pixels: Literal["clamp", "min_max"] = "clamp",
    ):
        ddconfig = {
            "ch": ch,
            "ch_mult": ch_mult,
            "num_res_blocks": num_res_blocks,
            "z_channels": z_channels,
            "in_channels": 3,
            "out_ch": 3,
            "resolution": NOMINAL << (len(ch_mult) - 1),
            "attn_resolutions": [NOMINAL],
        }
        super().__init__(ddconfig, n_embed, embed_dim, pixels, norm_groups=norm_groups)
        with torch.no_grad():
            self.vq.quantize.embedding.weight.copy_(normalize(self.vq.quantize.embedding.weight, dim=-1))

    def from_published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from LlamaGen's names to this module's, and give the codes unit length.

        The original normalises codes at every look-up, and latents before the search; the nearest unit code is the same
        without the latter. Tensors with other names are returned unchanged; strict loading refuses them.
        """
        taming = {self._tamed(name): tensor for name, tensor in tensors.items() if name != USED}
        renamed = super().from_published(taming)
        if CODEBOOK in renamed:
            renamed[CODEBOOK] = normalize(renamed[CODEBOOK], dim=-1)
        return renamed

    def _tamed(self, name: str) -> str:
        """Return the name that taming-transformers would give to a part."""
        name = re.sub(r"\.mid\.([012])\.", lambda m: f".mid.{MIDDLE[int(m[1])]}.", name)
        if level := re.match(r"(encoder|decoder)\.conv_blocks\.(\d+)\.", name):
            half, i = level[1], int(level[2])
            # LlamaGen counts the decoder's levels from the latents, taming from the image.
            place = f"encoder.down.{i}." if half == "encoder" else f"decoder.up.{self.levels - 1 - i}."
            name = place + re.sub(r"^res\.", "block.", name[level.end() :])
        return name
