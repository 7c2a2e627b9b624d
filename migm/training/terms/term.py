"""Define what a term of an objective offers, and what it is given: features, or distributions of guided logits."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from migm.bases.base import Base
from migm.runtime.shapes import FeatureRows, RowMask, Scalar


class PredictedRows(NamedTuple):
    """Predicted and true features of the image's rows, or of all rows of the sequence."""

    features: FeatureRows  # predicted, with gradients
    target: FeatureRows
    wide: FeatureRows  # the target in float32
    rows: RowMask  # True at the rows that are judged: those that are still masked
    mse: Scalar  # over these rows
    base: Base
    whole: bool = False  # whether these are all rows of the sequence


class Distributions(NamedTuple):
    """Logarithms of the distributions of tokens that guided logits give at some positions of every image."""

    true: Float[Tensor, "b k v"]
    predicted: Float[Tensor, "b k v"]  # with gradients
    masked: Bool[Tensor, "b k"]  # False at padding, which must not count
    wait: Int[Tensor, "b k"]  # steps after which the trajectory reveals the position, 0: at this step


class FeatureTerm(Protocol):
    """A term on features; its mean is over the judged rows."""

    @property
    def weight(self) -> float: ...

    def value(self, seen: PredictedRows) -> Scalar: ...


@runtime_checkable
class GuidedTerm(Protocol):
    """A term on distributions of guided logits, for which both guidance halves of an image are in one batch.

    Only few positions are in memory at a time: `sums` adds up over those it is given, and `value` gets the sums over
    all masked positions of an image, and their numbers. Both must not wait for the device, so no shape may depend on a
    value. A mean is over masked rows (`over_rows`), so that processes with different numbers of rows agree.
    """

    @property
    def weight(self) -> float: ...

    def sums(self, seen: Distributions) -> Sequence[Float[Tensor, " b *each"]]: ...

    def value(self, sums: Sequence[Float[Tensor, " b *each"]], masked: Int[Tensor, " b"]) -> Scalar: ...


Term = FeatureTerm | GuidedTerm


def divergences(seen: Distributions) -> Float[Tensor, "b k"]:
    """Return KL(true || predicted) in nats at every position."""
    return (seen.true.exp() * (seen.true - seen.predicted)).sum(-1)


def over_rows(of_images: Float[Tensor, " b"], masked: Int[Tensor, " b"]) -> Scalar:
    """Return the mean of values of images, in which an image counts by its masked positions."""
    return (of_images * masked).sum() / masked.sum().clamp(min=1)


def entropy(distributions: Float[Tensor, " *each v"]) -> Float[Tensor, " *each"]:
    """Return the entropy in nats, with a gradient also where a probability is 0."""
    smallest = torch.finfo(distributions.dtype).tiny
    return -(distributions * distributions.clamp(min=smallest).log()).sum(-1)
