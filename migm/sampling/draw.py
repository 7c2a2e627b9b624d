"""Categorical draws with an explicit dtype, from keyed noise."""

from typing import Literal

import torch
from torch import Tensor

from migm.runtime.kinds import NotNegative
from migm.sampling.noise import DRAW, Noise, Step

DTypeName = Literal["bfloat16", "float32", "float64"]
DTYPES: dict[DTypeName, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def scaled(logits: Tensor, inverse_temperature: float) -> Tensor:
    """Logits times the inverse temperature, without a copy at 1."""
    return logits if inverse_temperature == 1 else logits * inverse_temperature


class InverseCDF:
    """One uniform per position, looked up in the cumulative probabilities: the cheapest exact draw.

    Returns the drawn tokens (b, k) and their log-probabilities (b, k). `inverse_temperature`
    multiplies the logits, as MaskGIT's `sm_temp` does: above 1 sharpens.
    """

    def __init__(self, inverse_temperature: NotNegative = 1.0, dtype: DTypeName = "float32"):
        self.inverse_temperature = inverse_temperature
        self.dtype = DTYPES[dtype]

    def __call__(self, logits: Tensor, noise: Noise, step: Step, positions: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = scaled(logits, self.inverse_temperature).softmax(-1, dtype=self.dtype)
        cdf = probabilities.cumsum(-1)
        # Rounded to 1, the uniform would reach past the last token that has any probability.
        uniform = noise.uniform(DRAW, step, positions).to(self.dtype).clamp(max=1 - torch.finfo(self.dtype).eps)
        target = uniform * cdf[..., -1]
        tokens = torch.searchsorted(cdf, target[..., None], right=True).clamp_(max=logits.shape[-1] - 1)
        return tokens[..., 0], probabilities.gather(-1, tokens)[..., 0].log()


class GumbelMax:
    """argmax(logits + Gumbel noise), one noise value per vocabulary entry: the published samplers' draw.

    The dtype is part of the sampler: in bfloat16 the noise is coarse, and nominal temperature 1 acts
    like 0.42 to 0.77 (docs/originals/dimoo.md, Gumbel noise). The confidence that goes with a token is its probability
    with the temperature (MaskGIT), or without it (`plain_confidence`, Lumina-DiMOO).
    """

    def __init__(
        self, inverse_temperature: NotNegative = 1.0, dtype: DTypeName = "float32", plain_confidence: bool = False
    ):
        self.inverse_temperature, self.plain_confidence = inverse_temperature, plain_confidence
        self.dtype = DTYPES[dtype]

    def __call__(self, logits: Tensor, noise: Noise, step: Step, positions: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.to(self.dtype)
        tempered = scaled(logits, self.inverse_temperature)
        gumbel = noise.gumbel(DRAW, step, positions, logits.shape[-1], self.dtype)
        tokens = (tempered + gumbel).argmax(-1)
        return tokens, log_probability(logits if self.plain_confidence else tempered, tokens)


class Argmax:
    """The likeliest token, without noise: temperature 0."""

    def __init__(self, dtype: DTypeName = "float32"):
        self.dtype = DTYPES[dtype]

    def __call__(self, logits: Tensor, noise: Noise, step: Step, positions: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.to(self.dtype)
        tokens = logits.argmax(-1)
        return tokens, log_probability(logits, tokens)


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits) (b, k, v) of the tokens (b, k), no less than log 1e-20, in the logits' precision."""
    return logits.softmax(-1).gather(-1, tokens[..., None])[..., 0].clamp(min=1e-20).log()
