"""Define what every base offers: tier 1 of the base contract."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.shapes import Images, PerImage, Positions, Ratio, Tokens

Inputs = Int[Tensor, " b"] | Sequence[str]  # labels or prompts of the images to draw


@dataclass(frozen=True)
class BaseSpec:
    """The sizes of a base that the loop, the recorder and a shortcut need; letters as in `migm.runtime.shapes`."""

    num_tokens: int  # l
    grid: tuple[int, int]  # rows and columns of the token grid
    vocab_size: int  # v, also the id of the mask
    channels: int  # c
    num_layers: int
    positions_per_row: int = 1  # image positions that share a row of the blocks
    affine_head: bool = True  # whether guidance may be applied before the head


def block_parameters(spec: BaseSpec) -> int:
    """Return about the number of parameters of a base: those of usual blocks of its width."""
    return 12 * spec.num_layers * spec.channels**2


@dataclass(frozen=True)
class Branch:
    """The sequences of one forward pass.

    `copies` is 2 if both guidance halves run in one pass, the conditional half first; every tensor of the branch then
    has copies * b rows. Two branches of one copy each are two passes.
    """

    condition: Int[Tensor, "cb q"]  # ids of labels or prompts, -1 at padding
    rows: Int[Tensor, "cb l"]  # where the image tokens are in the sequence
    copies: int = 1
    mask: Bool[Tensor, "cb t"] | None = None  # False at padding; None: no padding
    num_prompt: int = 0  # the first ids of the condition that a learned predictor may read too
    prompt: Bool[Tensor, "cb q"] | None = None  # False at those of them that it may not read; None: all
    ids: Int[Tensor, "cb t"] | None = None  # of the whole sequence; those of the image are written to `rows`
    noise: Float[Tensor, "cb l cn"] | None = None  # normal, mixed with the embeddings of tokens by a `OneStepBase`
    block_rows: Int[Tensor, "cb l"] | None = None  # where the image tokens are in the blocks' rows; None: in `rows`

    @property
    def in_blocks(self) -> Int[Tensor, "cb l"]:
        """Where the image tokens are in the rows that the blocks of a base work on."""
        return self.rows if self.block_rows is None else self.block_rows

    def images(self, images: Int[Tensor, " k"]) -> "Branch":
        """Return the sequences of the images with these numbers, padding included."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: of_images(value, self.copies, images) for name, value in tensors.items()})


def of_images(
    values: Shaped[Tensor, " cb *each"], copies: int, images: Int[Tensor, " k"]
) -> Shaped[Tensor, " {copies}*k *each"]:
    """Return the rows of the images with these numbers, in every copy."""
    return values.unflatten(0, (copies, -1))[:, images].flatten(0, 1)


class Moment(NamedTuple):
    """The time of a pass within the generation of its images."""

    mask_ratio: Ratio  # share of each image that is still masked, 1 = all
    step: PerImage  # index of the step, 0 first
    num_steps: int

    @classmethod
    def at(cls, step: int, num_steps: int, mask_ratio: Ratio) -> "Moment":
        """Return the moment of images that are all at this step."""
        return cls(mask_ratio, torch.full(mask_ratio.shape, step, device=mask_ratio.device), num_steps)

    @classmethod
    def first(cls, batch: int, num_steps: int, device: torch.device) -> "Moment":
        """Return the moment of the first step, at which everything is masked."""
        return cls.at(0, num_steps, torch.ones(batch, device=device))

    def images(self, images: Int[Tensor, " k"] | slice) -> "Moment":
        """Return the moment of the images with these numbers."""
        return self._replace(mask_ratio=self.mask_ratio[images], step=self.step[images])


class Control(NamedTuple):
    """The new tokens as a learned predictor reads them."""

    embeddings: Float[Tensor, "cb k c"]  # the base's input embeddings
    rows: Int[Tensor, "cb k"]  # rows of the new tokens in the sequence
    mask: Bool[Tensor, "cb k"] | None = None  # False at padding
    prompt: int = 0  # number of prompt tokens, which come first among the k
    row_mask: Bool[Tensor, "cb t"] | None = None  # False at padding of the sequence


def block_image_rows(x: Float[Tensor, "cb t c"], branch: Branch) -> Float[Tensor, "cb l c"]:
    """Return the rows of the blocks' input or output that hold the image tokens, which may share one."""
    return image_rows(x, replace(branch, rows=branch.in_blocks))


def image_rows(
    features: Float[Tensor, "cb t c"], branch: Branch, positions: Positions | None = None
) -> Float[Tensor, "cb k c"]:
    """Return the features at these image positions, by default at all positions."""
    rows = branch.rows if positions is None else branch.rows.gather(1, positions.repeat(branch.copies, 1))
    return take(features, rows)


def take(x: Shaped[Tensor, "b t *each"], rows: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k *each"]:
    """Return some rows of every sequence, 0...t-1; copied as wholes, on a CPU several times as fast as by an index."""
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (first + rows).flatten()).view(*rows.shape, *x.shape[2:])


def prompts_of(inputs: Inputs) -> list[str]:
    """Return the prompts of a base that draws what they say; UserError for labels."""
    if isinstance(inputs, Tensor):
        raise UserError(f"labels={inputs[:5].tolist()}: this base draws what prompts say; give prompts")
    return [str(prompt) for prompt in inputs]


def in_every_copy(
    embeddings: Float[Tensor, "b k c"], positions: Positions, copies: int, mask: Bool[Tensor, "b k"] | None
) -> Control:
    """Return new tokens of an image whose rows are its positions, the same for all guidance halves."""
    shared = None if mask is None else mask.repeat(copies, 1)
    return Control(embeddings.repeat(copies, 1, 1), positions.repeat(copies, 1), shared)


def refuse_other_size(images: Images, spec: BaseSpec, stride: int) -> None:
    """Raise a UserError unless images have the size that a base draws, at `stride` pixels a token."""
    height, width = (side * stride for side in spec.grid)
    if images.shape[-2:] != (height, width):
        size = f"{images.shape[-1]}x{images.shape[-2]}"
        raise UserError(f"image of {size} pixels: this base draws {width}x{height}; scale or crop it")


class Base(Protocol):
    """A frozen masked image generator."""

    spec: BaseSpec
    device: torch.device
    dtype: torch.dtype  # of the weights and the features

    def review(self, inputs: Inputs) -> str:
        """Refuse inputs that the base cannot draw; return a clause about ignored parts of the others, or ""."""
        ...

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        """Return one branch, or both guidance halves: one branch of two copies, or two branches of one copy."""
        ...

    def branch(
        self, condition: Int[Tensor, "b q"], length: int | None = None, lengths: Sequence[int] | None = None
    ) -> Branch:
        """Return the branch of single guidance halves with conditions that `encode` made and trajectories store.

        Sequences of several lengths are padded to `length` rows, by default to the longest sequence. `lengths` are
        those of the conditions; without them the host may have to wait until it can read them from the device.
        """
        ...

    def features(self, tokens: Tokens, branch: Branch, moment: Moment) -> Float[Tensor, "{branch.copies}*b t c"]:
        """Return the output of the backbone, which `head` and the predictors read."""
        ...

    def head(
        self, features: Float[Tensor, "b k c"], positions: Positions | None = None, rows: Positions | None = None
    ) -> Float[Tensor, "b k *s v"]:
        """Return logits of features at the image `positions` or the sequence's `rows`, by default at the first k rows.

        Where several positions share a row of features (`spec.positions_per_row`, unless the branch's `block_rows` say
        that rows of features are not those of the blocks), `rows` do not say which: then the logits of all of them are
        returned, (b, k, s, v). If the head is affine in the features (`spec.affine_head`),
        guidance may be applied before it at half the cost.
        """
        ...

    def control(
        self, tokens: Int[Tensor, "b k"], positions: Positions, branch: Branch, mask: Bool[Tensor, "b k"] | None = None
    ) -> Control:
        """Return new tokens at image positions, as all copies read them; `mask` is False at padding."""
        ...

    def decode(self, tokens: Tokens) -> Images:
        """Decode tokens to images, in parts of bounded memory (`migm.bases.decoding`)."""
        ...

    def tokenize(self, images: Images) -> Tokens:
        """Encode images of the size that the base draws as tokens, for in-painting.

        Raises UserError for another size, and for a base without an encoder.
        """
        ...

    def fingerprint(self) -> str:
        """Return a short hash of the weights and of their precision."""
        ...

    def decoder_fingerprint(self) -> str:
        """Return a short hash of the decoder that turns tokens into images."""
        ...


class Uniforms(Protocol):
    """The noise of the images of a generation, as a base may ask for it: below 0 are purposes of bases and orders."""

    def uniform(
        self, purpose: int, step: int, positions: Positions, width: int | None = None
    ) -> Float[Tensor, "b k *width"]: ...


@runtime_checkable
class OneStepBase(Base, Protocol):
    """A base that begins with tokens and noise of its own, and draws every position anew in one step."""

    def begin(self, branches: Sequence[Branch], noise: Uniforms) -> tuple[list[Branch], Tokens]:
        """Return the branches with what the images of this generation begin with, and their tokens, v where masked."""
        ...


@dataclass
class StepRecord:
    """One step as an observer sees it; tensors must not be changed."""

    index: int
    is_full: bool
    branches: Sequence[Branch]
    features: Sequence[Float[Tensor, "cb _ c"]]  # of every branch
    tokens: Tokens  # after the step
    new_positions: Positions  # revealed by this step, ascending
    moment: Moment  # before the step

    @property
    def num_steps(self) -> int:
        return self.moment.num_steps

    @property
    def mask_ratio(self) -> Ratio:
        return self.moment.mask_ratio

    def tokens_before(self, mask: int) -> Tokens:
        """Return the tokens before the step; `mask` is the base's id of the mask."""
        return self.tokens.scatter(1, self.new_positions, mask)
