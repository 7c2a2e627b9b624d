"""What every base offers: tier 1 of the base contract."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from migm.runtime.errors import UserError

Inputs = Tensor | Sequence[str]  # what images are asked to show: labels (b,), or b prompts

# Shapes, everywhere: b batch, t rows of the backbone's sequence, l image tokens, k new or
# chosen tokens, c channels, v image vocabulary, n steps. Outside a base file tokens are
# 0...v-1, and v is the mask.


@dataclass(frozen=True)
class BaseSpec:
    """The facts of a base that the loop, the recorder and a shortcut need."""

    num_tokens: int  # l
    grid: tuple[int, int]  # rows and columns of the token grid
    vocab_size: int  # v, also the id of the mask
    channels: int  # c
    num_layers: int


@dataclass(frozen=True)
class Branch:
    """The sequences of one forward pass.

    `copies` is 2 where both guidance halves run in one pass, conditional first: all that belongs
    to the branch then has copies * b rows. Two branches of one copy each are two passes.
    """

    condition: Tensor  # (copies * b, q) ids of what the images are asked to show, -1 at padding
    rows: Tensor  # (copies * b, l) where the image tokens are in the sequence
    copies: int = 1
    mask: Tensor | None = None  # (copies * b, t) False at padding; None: no padding
    prompt: Tensor | None = None  # (copies * b, q) True at tokens that a learned predictor may read as well

    def images(self, images: Tensor) -> "Branch":
        """The sequences of some of its b images (k,), padding included."""
        known = {name: getattr(self, name) for name in ("condition", "rows", "mask", "prompt")}
        return replace(self, **{k: of_images(v, self.copies, images) for k, v in known.items() if v is not None})


def of_images(values: Tensor, copies: int, images: Tensor) -> Tensor:
    """What belongs to some of b images (k,): (copies * b, ...) -> (copies * k, ...)."""
    return values.unflatten(0, (copies, -1))[:, images].flatten(0, 1)


class Control(NamedTuple):
    """What a learned predictor may read of new tokens."""

    embeddings: Tensor  # (b, k, c), the base's input embeddings
    rows: Tensor  # (b, k), their rows in the sequence
    mask: Tensor | None = None  # (b, k), False at padding
    prompt: int = 0  # the first so many of the k are tokens of the prompt, not new ones
    row_mask: Tensor | None = None  # (b, t), False at padding of the sequence


def image_rows(features: Tensor, branch: Branch, positions: Tensor | None = None) -> Tensor:
    """Features (copies * b, t, c) -> those at image positions (b, k), or at all l of them: (copies * b, k, c)."""
    rows = branch.rows if positions is None else branch.rows.gather(1, positions.repeat(branch.copies, 1))
    return features[torch.arange(len(features), device=features.device)[:, None], rows]


def refuse_other_size(images: Tensor, spec: BaseSpec, stride: int) -> None:
    """UserError unless images (b, 3, h, w) are of the size that a base draws, `stride` pixels a token."""
    height, width = (side * stride for side in spec.grid)
    if images.shape[-2:] != (height, width):
        given = f"{images.shape[-1]}x{images.shape[-2]}"
        raise UserError(f"image of {given} pixels: this base draws {width}x{height}; scale or crop it")


class Base(Protocol):
    """A frozen masked image generator."""

    spec: BaseSpec
    device: torch.device
    dtype: torch.dtype  # of its weights and features

    def review(self, inputs: Inputs) -> str:
        """Refuse inputs that it cannot draw; say what of the others it leaves out, as a clause, or nothing."""
        ...

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        """Labels (b,) or b prompts -> one branch, or both guidance halves."""
        ...

    def branch(self, condition: Tensor, length: int | None = None) -> Branch:
        """The branch of single halves with these conditions (b, q), as `encode` made and trajectories keep them.

        Sequences of several lengths are padded to `length` rows, by default those of the longest.
        """
        ...

    def features(self, tokens: Tensor, branch: Branch, mask_ratio: Tensor) -> Tensor:
        """tokens (b, l), mask_ratio (b,) in [0, 1] with 1 = all masked -> (copies * b, t, c)."""
        ...

    def head(self, features: Tensor, positions: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Logits (b, k, v) of features (b, k, c) at the image positions or the rows (b, k) of the sequence.

        Without either, of its first k rows.

        Affine in the features, so that guidance may be applied before it at half the cost.
        """
        ...

    def control(self, tokens: Tensor, positions: Tensor, branch: Branch, mask: Tensor | None = None) -> Control:
        """New tokens at image positions, both (b, k), as all copies read them; `mask` (b, k) is False at padding."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (b, l) -> uint8 images (b, 3, h, w), in parts of bounded memory (`migm.bases.decoding`)."""
        ...

    def tokenize(self, images: Tensor) -> Tensor:
        """uint8 images (b, 3, h, w) of the size it draws -> tokens (b, l), as in-painting needs them.

        Another size is a UserError, and so is a base without an encoder, by its name.
        """
        ...

    def fingerprint(self) -> str:
        """Short hash of the weights and of the precision they run in."""
        ...

    def decoder_fingerprint(self) -> str:
        """The same of what turns tokens into images."""
        ...


@dataclass
class StepRecord:
    """What an observer sees of one step; tensors must not be changed."""

    index: int
    num_steps: int
    is_full: bool
    branches: Sequence[Branch]
    features: Sequence[Tensor]  # one (copies * b, t, c) per branch
    tokens: Tensor  # (b, l) after the step
    new_positions: Tensor  # (b, k) revealed by this step, ascending
    mask_ratio: Tensor  # (b,) before the step

    def tokens_before(self, mask: int) -> Tensor:
        """The tokens (b, l) that the step started from; `mask` is the base's id of it."""
        return self.tokens.scatter(1, self.new_positions, mask)
