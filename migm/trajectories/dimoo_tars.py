"""Read and write records of the released DiMOO-Shortcut code (docs/originals/dimoo.md, Tars).

A record is named `{index:06d}_{cond|uncond}`. Its ids are those of the vocabulary, but -100 at the unconditional
prompt; its order is -1 outside image codes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from migm.bases.dimoo import LuminaDiMOO
from migm.runtime.errors import UserError
from migm.trajectories.tars import KINDS, Image, Record, refuse_other_base

NO_PROMPT = -100


class DiMOOTars:
    """A `tars.TarLayout` with one image a tar, of any size."""

    file, images_a_tar, dtype = "0_{:06d}.tar", 1, torch.bfloat16

    def __init__(self, base: LuminaDiMOO):
        refuse_other_base(base, LuminaDiMOO)
        self.base, self.none = base, base.unconditional.cpu()

    def read(self, origin: str, name: str, count: int, halves: list[Record]) -> Image:
        (ids, order), (none, _) = ([half[f] for f in ("teacher_vq_ids.pth", "generation_order.pth")] for half in halves)
        rows, grid = self.base.layout.num_rows, self.base.spec.grid
        prompt, places = ids[: max(0, len(ids) - rows)], self.base.layout.places.cpu() - rows
        if not name.isdigit():
            raise UserError(f"{origin}: an image's name is its number, such as 000007")
        if not len(prompt):
            raise UserError(f"{origin}: {len(ids)} ids, this base has {rows} behind the prompt")
        tokens = ids[places] - self.base.offset
        image = Image(int(name), tokens, order[places], [prompt, self.none])
        if int(tokens.min()) < 0 or not torch.equal(self._sequence(prompt, tokens), ids):
            raise UserError(f"{origin}: its ids are no prompt and {grid[0]}x{grid[1]} codes of this base")
        if not torch.equal(none, torch.cat([torch.full_like(self.none, NO_PROMPT), ids[-rows:]])):
            raise UserError(f"{origin}: its unconditional ids are not {len(self.none)} of no prompt and the same image")
        return image

    def write(self, image: Record) -> Iterator[tuple[str, Tensor, Tensor]]:
        condition = image["conditions"][0].long()
        ids = self._sequence(condition[condition >= 0], image["tokens"].long())
        block = ids[-self.base.layout.num_rows :]
        order = torch.full_like(block, -1, dtype=torch.int16)
        order[self.base.layout.places.cpu()] = image["order"]
        for kind, prompt in zip(KINDS, (ids[: -len(block)], torch.full_like(self.none, NO_PROMPT)), strict=True):
            before = torch.full_like(prompt, -1, dtype=torch.int16)
            yield f"{int(image['images']):06d}_{kind}", torch.cat([prompt, block]), torch.cat([before, order])

    def _sequence(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """Return the ids (t,) of the sequence of a prompt (q,) and image tokens (l,)."""
        layout, device = self.base.layout, self.base.device
        image = layout.image_ids(tokens.to(device), self.base.spec.vocab_size)
        length = torch.tensor([len(prompt)], device=device)
        ids = layout.sequence(prompt[None].to(device), length, len(prompt) + layout.num_rows)[0]
        return ids.scatter(0, len(prompt) + layout.places, image).cpu()
