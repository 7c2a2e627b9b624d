"""Draw tokens with an explicit dtype, from keyed noise."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from migm.runtime.kinds import NotNegative, Positive, Share, Whole
from migm.runtime.shapes import Positions
from migm.sampling.noise import DRAW, Noise, Step

DTypeName = Literal["bfloat16", "float32", "float64"]
DTYPES: dict[DTypeName, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


class Draw(Protocol):
    """A rule that draws tokens at one of `num_steps` steps; a frozen dataclass."""

    def __call__(
        self, logits: Float[Tensor, "b k v"], noise: Noise, step: Step, positions: Positions, num_steps: int
    ) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]: ...


def scaled(logits: Float[Tensor, "b k v"], inverse_temperature: float) -> Float[Tensor, "b k v"]:
    """Multiply logits by the inverse temperature, without a copy if it is 1."""
    return logits if inverse_temperature == 1 else logits * inverse_temperature


@dataclass(frozen=True)
class InverseCDF:
    """Draw by one uniform per position, looked up in the cumulative probabilities: the cheapest exact draw.

    Returns the drawn tokens and their log-probabilities. `inverse_temperature` multiplies the logits, as
    MaskGIT's `sm_temp` does: values above 1 sharpen.
    """

    inverse_temperature: NotNegative = 1.0
    dtype: DTypeName = "float32"

    def __call__(
        self, logits: Float[Tensor, "b k v"], noise: Noise, step: Step, positions: Positions, num_steps: int = 1
    ) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        dtype = DTYPES[self.dtype]
        probabilities = scaled(logits, self.inverse_temperature).softmax(-1, dtype=dtype)
        cdf = probabilities.cumsum(-1)
        # A uniform that is rounded to 1 would point past the last token with any probability.
        uniform = noise.uniform(DRAW, step, positions).to(dtype).clamp(max=1 - torch.finfo(dtype).eps)
        target = uniform * cdf[..., -1]
        tokens = torch.searchsorted(cdf, target[..., None], right=True).clamp_(max=logits.shape[-1] - 1)
        return tokens[..., 0], probabilities.gather(-1, tokens)[..., 0].log()


@dataclass(frozen=True)
class GumbelMax:
    """Draw by argmax(logits + Gumbel noise), one noise value per vocabulary entry, as the published samplers do.

    The dtype is part of the sampler: in bfloat16 the noise is coarse, and nominal temperature 1 acts like 0.42 to 0.77
    (docs/originals/dimoo.md, Gumbel noise). The confidence of a token is its probability with the temperature
    (MaskGIT), or without it (`plain_confidence`, Lumina-DiMOO).
    """

    inverse_temperature: NotNegative = 1.0
    dtype: DTypeName = "float32"
    plain_confidence: bool = False

    def __call__(
        self, logits: Float[Tensor, "b k v"], noise: Noise, step: Step, positions: Positions, num_steps: int = 1
    ) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        logits = logits.to(DTYPES[self.dtype])
        tempered = scaled(logits, self.inverse_temperature)
        gumbel = noise.gumbel(DRAW, step, positions, logits.shape[-1], logits.dtype)
        tokens = (tempered + gumbel).argmax(-1)
        return tokens, log_probability(logits if self.plain_confidence else tempered, tokens)


@dataclass(frozen=True)
class ExponentialRace:
    """Draw by argmax(p / e), e standard exponential noise for each vocabulary entry, as `torch.multinomial` does.

    In exact arithmetic it is `GumbelMax`. In bfloat16, as in MMaDA's code, probabilities and ratios are coarse, and the
    first of equal ratios wins (docs/originals/mmada.md, Sampler). Confidences are of the tempered logits.
    """

    inverse_temperature: NotNegative = 1.0
    dtype: DTypeName = "float32"

    def __call__(
        self, logits: Float[Tensor, "b k v"], noise: Noise, step: Step, positions: Positions, num_steps: int = 1
    ) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        probabilities = scaled(logits.to(DTYPES[self.dtype]), self.inverse_temperature).softmax(-1)
        exponential = -noise.uniform(DRAW, step, positions, logits.shape[-1]).log()
        tokens = (probabilities / exponential.to(probabilities.dtype)).argmax(-1)
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0].clamp(min=1e-20).log()


@dataclass(frozen=True)
class Argmax:
    """Take the likeliest token, without noise: temperature 0."""

    dtype: DTypeName = "float32"

    def __call__(
        self, logits: Float[Tensor, "b k v"], noise: Noise, step: Step, positions: Positions, num_steps: int = 1
    ) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        logits = logits.to(DTYPES[self.dtype])
        tokens = logits.argmax(-1)
        return tokens, log_probability(logits, tokens)


@dataclass(frozen=True)
class Annealed:
    """Draw by another rule, after logits were multiplied by an inverse temperature that changes with the step.

    It goes from `first` to `last` in equal parts, to the power `power`, and is half of that in the first `warm_up`
    steps. `top_k` keeps the k likeliest tokens of every position, 0 all (docs/originals/halton.md, Sampler).
    """

    draw: Draw = InverseCDF()
    first: NotNegative = 1.0
    last: NotNegative = 1.0
    power: NotNegative = 1.0
    warm_up: Whole = 0
    top_k: Whole = 0

    def __call__(
        self, logits: Float[Tensor, "b k v"], noise: Noise, step: Step, positions: Positions, num_steps: int = 1
    ) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        factor = self.inverse_temperatures(num_steps, logits.device)[step][..., None]
        return self.draw(likeliest(logits * factor, self.top_k), noise, step, positions, num_steps)

    def inverse_temperatures(self, num_steps: int, device: torch.device | None = None) -> Float[Tensor, " n"]:
        """Return what logits are multiplied by at every step."""
        factors = torch.linspace(self.first, self.last, num_steps, device=device) ** self.power
        return torch.where(torch.arange(num_steps, device=device) < self.warm_up, factors * 0.5, factors)


@dataclass(frozen=True)
class Likeliest:
    """Draw by another rule among the likeliest tokens alone, after the logits were divided by a temperature.

    These are the `top_k` likeliest tokens of every position, 0 for all, and of them the fewest whose probability is
    above `top_p`, 1 for all. The others have probability 0 (docs/originals/meissonic.md, Di[M]O).
    """

    draw: Draw = GumbelMax()
    temperature: Positive = 1.0
    top_k: Whole = 0
    top_p: Share = 1.0

    def __call__(
        self, logits: Float[Tensor, "b k v"], noise: Noise, step: Step, positions: Positions, num_steps: int = 1
    ) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        return self.draw(self.kept(logits), noise, step, positions, num_steps)

    def kept(self, logits: Float[Tensor, "b k v"]) -> Float[Tensor, "b k v"]:
        """Return the logits over the temperature, -inf at the tokens that are not drawn."""
        tempered = logits if self.temperature == 1 else logits / self.temperature
        some = likeliest(tempered, self.top_k)
        if self.top_p == 1:
            return some
        ranked = some.sort(-1, descending=True)
        before = ranked.values.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0  # the likeliest is always kept
        values = ranked.values.masked_fill(before > self.top_p, -torch.inf)
        return torch.empty_like(values).scatter(-1, ranked.indices, values)


def likeliest(logits: Float[Tensor, "b k v"], top_k: int) -> Float[Tensor, "b k v"]:
    """Return the logits, those of all but the `top_k` likeliest tokens -inf; 0 keeps all."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    best = logits.topk(top_k)
    return torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)


def log_probability(logits: Float[Tensor, "b k v"], tokens: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return log softmax(logits) of the tokens, at least log 1e-20, in the logits' precision."""
    return logits.softmax(-1).gather(-1, tokens[..., None])[..., 0].clamp(min=1e-20).log()
