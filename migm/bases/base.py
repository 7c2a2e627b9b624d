"""What every base offers: tier 1 of the base contract (DESIGN section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

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
    image_token_rows: tuple[int, int]  # first row of the image in the sequence, and one past its last


@dataclass(frozen=True)
class Branch:
    """The condition of one forward pass.

    `copies` is 2 where both guidance halves run in one pass, conditional first: `condition` and
    features then have copies * b rows. Two branches of one copy each are two passes.
    """

    condition: Tensor
    copies: int = 1


class Control(NamedTuple):
    """What a learned predictor may read of new tokens."""

    embeddings: Tensor  # (b, k, c), the base's input embeddings
    rows: Tensor  # (b, k), their rows in the sequence
    mask: Tensor | None = None  # (b, k), False at padding


class Base(Protocol):
    """A frozen masked image generator."""

    spec: BaseSpec
    device: torch.device
    dtype: torch.dtype  # of its weights and features

    def encode(self, labels: Tensor, guided: bool) -> list[Branch]:
        """Conditions of one batch: labels (b,) -> one branch, or both guidance halves."""
        ...

    def features(self, tokens: Tensor, branch: Branch, mask_ratio: Tensor) -> Tensor:
        """tokens (b, l), mask_ratio (b,) in [0, 1] with 1 = all masked -> (copies * b, t, c)."""
        ...

    def head(self, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (b, k, v) at image positions (b, k), or at all of them, from features (b, t, c).

        Linear in the features, so that guidance may be applied before it at half the cost.
        """
        ...

    def control(self, tokens: Tensor, positions: Tensor, branch: Branch | None = None) -> Control:
        """New tokens (b, k) at image positions (b, k) -> what a learned predictor may read.

        With a branch, for all its copies (copies * b rows); without, for a batch of single halves.
        """
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (b, l) -> uint8 images (b, 3, h, w)."""
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
    features: Sequence[Tensor]  # one (copies * b, t, c) per branch
    tokens: Tensor  # (b, l) after the step
    new_positions: Tensor  # (b, k) revealed by this step, ascending
    mask_ratio: Tensor  # (b,) before the step
