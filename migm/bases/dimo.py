"""Offer Di[M]O, Meissonic and MaskGIT distilled to one step, as bases (docs/originals/meissonic.md, Di[M]O)."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from migm.bases.base import BaseSpec, Branch, Inputs, Moment, Uniforms, take
from migm.bases.maskgit import MaskGIT
from migm.bases.meissonic import Meissonic
from migm.bases.transformer import Positioned
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.kinds import Share
from migm.runtime.shapes import Images, Tokens

CODES, MASKED, EMBEDDED = -2, -3, -4  # purposes of noise


def taking(parent: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a constructor that passes `arguments` to a parent's the signature of both, so that configs are checked."""

    def signed(init: Callable[..., None]) -> Callable[..., None]:
        inner: Any = parent.__init__
        known, own = (inspect.signature(each).parameters for each in (inner, init))
        added = [p.replace(kind=p.KEYWORD_ONLY) for p in own.values() if p.name not in ("self", "arguments")]
        init.__signature__ = inspect.Signature([*known.values(), *added])  # type: ignore[attr-defined]
        init.__annotations__ = {**inner.__annotations__, **{p.name: p.annotation for p in added}}
        return init

    return signed


class OneStep:
    """The beginning of a generation in one step: random codes, some of them masked, and noise on their embeddings.

    The share `ratio` of the positions is masked, at least one. `sigma` is the share of the noise, by its standard
    deviation; 0 draws none. Both belong to a checkpoint's training. All noise is that of the image, as everywhere.
    """

    spec: BaseSpec
    dtype: torch.dtype
    ratio: float
    sigma: float

    def begin(self, branches: Sequence[Branch], noise: Uniforms) -> tuple[list[Branch], Tokens]:
        """Return the branch with its noise, and the tokens of its images, v where masked."""
        (branch,), spec = branches, self.spec
        positions = torch.arange(spec.num_tokens, device=branch.rows.device).expand(len(branch.rows), -1)
        codes = (noise.uniform(CODES, 0, positions) * spec.vocab_size).long()
        order = noise.uniform(MASKED, 0, positions).argsort(1)
        tokens = codes.masked_fill(order < max(1, round(spec.num_tokens * self.ratio)), spec.vocab_size)
        if not self.sigma:
            return [branch], tokens
        normal = torch.special.ndtri(noise.uniform(EMBEDDED, 0, positions, spec.channels)).to(self.dtype)
        return [replace(branch, noise=normal)], tokens

    def blended(self, embedded: Float[Tensor, "*any c"], noise: Tensor | None) -> Float[Tensor, "*any c"]:
        """Mix noise into embedded tokens of its shape, at their scale; no noise leaves them as they are."""
        return embedded if noise is None else self.sigma * noise + (1 - self.sigma**2) ** 0.5 * embedded

    def refuse_guided(self, guided: bool) -> None:
        if guided:
            raise UserError(
                f"sampling.guidance is set, but {type(self).__name__} was distilled with it; set sampling.guidance=null"
            )

    def marked(self, fingerprint: str) -> str:
        """Return a fingerprint that also covers what generations begin with."""
        return tensors_hash({}, fingerprint, f"ratio {self.ratio} sigma {self.sigma}")

    def tokenize(self, images: Images) -> Tokens:
        raise UserError(
            f"image: {type(self).__name__} draws every position anew, so that it cannot paint into an image"
        )


class DiMOMeissonic(OneStep, Meissonic):
    """Di[M]O on Meissonic, at height 1024; `weights` holds the transformer's files directly.

    The prompt alone is read, by the text encoder of Meissonic's own repository. The other arguments are those of
    `Meissonic`.
    """

    inside: ClassVar[str] = ""

    @taking(Meissonic)
    def __init__(self, ratio: Share = 0.5, sigma: Share = 0.3, **arguments: Any):
        self.ratio, self.sigma = ratio, sigma
        super().__init__(**arguments)

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        self.refuse_guided(guided)
        return super().encode(inputs, guided)

    def timestep(self, moment: Moment) -> Int[Tensor, " b"]:
        """Return zeros: the original makes the mask ratio a whole number before its network multiplies it."""
        return torch.zeros_like(moment.step)

    def blend(self, branch: Branch) -> Callable[[Tensor], Tensor] | None:
        if branch.noise is None:
            return None
        noise = self.transformer.cells(branch.noise, self.spec.grid)
        return lambda embedded: self.blended(embedded, noise)

    def plain_fingerprint(self) -> str:
        return self.marked(super().plain_fingerprint())

    def decoder_fingerprint(self) -> str:
        return tensors_hash({}, super().decoder_fingerprint(), getattr(self.tokenizer, "rounding", ""))


class DiMOMaskGIT(OneStep, MaskGIT):
    """Di[M]O on MaskGIT at 256 px: the label alone is read, and the mask may be drawn, which becomes code v - 1.

    The other arguments are those of `MaskGIT`.
    """

    @taking(MaskGIT)
    def __init__(self, ratio: Share = 0.6, sigma: Share = 0.1, **arguments: Any):
        self.ratio, self.sigma = ratio, sigma
        super().__init__(**arguments)
        if self.transformer.num_logits == self.transformer.vocab_size:
            raise UserError("base.transformer.mask_logit=False, but Di[M]O draws the mask too; set it to true")

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        self.refuse_guided(guided)
        return super().encode(inputs, guided)

    def prepare(
        self, tokens: Tokens, branch: Branch, moment: Moment, rows: Int[Tensor, "cb r"] | None = None
    ) -> tuple[Float[Tensor, "{branch.copies}*b _ c"], Positioned]:
        """Return the first block's input and the blocks' context; the class row has no noise."""
        net = self.transformer
        embedded = net.tok_emb(net.sequence(tokens, branch.condition[:, 0]))
        image = self.blended(embedded[:, :-1], branch.noise)
        x = net.first_layer(torch.cat([image, embedded[:, -1:]], 1) + net.pos_emb)
        return (x if rows is None else take(x, rows)), Positioned()

    def plain_fingerprint(self) -> str:
        return self.marked(super().plain_fingerprint())

    def decoder_fingerprint(self) -> str:
        return tensors_hash({}, super().decoder_fingerprint(), getattr(self.tokenizer, "pixels", ""))
