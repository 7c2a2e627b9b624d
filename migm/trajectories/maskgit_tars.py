"""Read and write records of the released MaskGIT-Shortcut code (docs/originals/maskgit.md, Tars).

A record is named `{batch:05d}_{index:03d}_{label}_{cond|uncond}`. After the l tokens, its ids end with the raw label or
the id of "no class", and its order ends with -1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from migm.bases.maskgit import MaskGIT
from migm.runtime.errors import UserError
from migm.trajectories.tars import KINDS, Image, Record, refuse_other_base

BATCH = 10  # number of images that the released code generates at once


class MaskGITTars:
    """A `tars.TarLayout` with 20 images a tar."""

    file, images_a_tar, dtype = "{:06d}.tar", 20, torch.float32

    def __init__(self, base: MaskGIT):
        refuse_other_base(base, MaskGIT)
        self.base = base

    def read(self, origin: str, name: str, count: int, halves: list[Record]) -> Image:
        ids, order = halves[0]["teacher_vq_ids.pth"], halves[0]["generation_order.pth"]
        length = self.base.spec.num_tokens
        if len(ids) != length + 1:
            raise UserError(f"{origin}: {len(ids)} ids, this base has {length} tokens and a label")
        conditions = self.base.encode(ids[-1:], guided=True)[0].condition.cpu()
        return Image(count, ids[:length], order[:length], list(conditions))

    def write(self, image: Record) -> Iterator[tuple[str, Tensor, Tensor]]:
        number, label = int(image["images"]), int(image["conditions"][0])
        no_class = self.base.spec.vocab_size + 1 + self.base.transformer.num_classes
        order = torch.cat([image["order"].long(), torch.tensor([-1])])
        for kind, last in zip(KINDS, (label, no_class), strict=True):
            key = f"{number // BATCH:05d}_{number % BATCH:03d}_{label}_{kind}"
            yield key, torch.cat([image["tokens"].long(), torch.tensor([last])]), order
