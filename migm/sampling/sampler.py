"""Join base, sampling and accelerator: all that images depend on besides inputs and noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.base import Base, Inputs, StepRecord
from migm.runtime.shapes import Images, Tokens
from migm.sampling.loop import Generation, Sampling, start
from migm.sampling.noise import KeyedNoise, Noise


class Observer(Protocol):
    """An observer of one generation; it must not change the records."""

    def on_step(self, record: StepRecord) -> None: ...


VANILLA = Accelerator(Always())


@dataclass(frozen=True)
class Sampler:
    """Make images; without an accelerator the base runs at every step (vanilla sampling).

    `variant` names the settings that distinguish samplers of the same accelerator.
    """

    base: Base
    sampling: Sampling
    accelerator: Accelerator = VANILLA
    variant: str = ""

    @property
    def num_steps(self) -> int:
        """The number of steps, N."""
        return self.sampling.num_steps

    @property
    def num_full_steps(self) -> int:
        """The number of full steps, B; 0 if it is decided while sampling."""
        return sum(self.plan() or ())

    @property
    def label(self) -> str:
        """The sampler's name in tables and figures, see `point_label`."""
        return point_label(self.accelerator.name, self.num_steps, self.num_full_steps, self.variant)

    @property
    def identity(self) -> dict[str, str | int]:
        """The entries by which records distinguish images of different samplers."""
        return {
            "accelerator": self.accelerator.name,
            "variant": self.variant,
            "num_steps": self.num_steps,
            "num_full_steps": self.num_full_steps,
            "settings": self.accelerator.identity,
            "base": self.base.fingerprint(),
            "predictor": self.accelerator.fingerprint(self.base),
            "sampling": self.sampling.identity,
        }

    def plan(self) -> list[bool] | None:
        """Return True at the full steps, or None if they are decided while sampling."""
        return self.accelerator.plan(self.num_steps)

    def noise(self, seed: int, numbers: Int[Tensor, " b"]) -> KeyedNoise:
        """Return the noise of the images numbered `numbers` in the run of `seed`."""
        return KeyedNoise(seed, numbers.to(self.base.device))

    def start(self, inputs: Inputs, noise: Noise, initial: Int[Tensor, "_ _"] | None = None) -> Generation:
        """Return a generation whose steps the caller makes; `initial` as in `loop.start`."""
        return start(self.base, inputs, self.sampling, self.accelerator, noise, initial)

    @torch.inference_mode()
    def tokens(
        self,
        inputs: Inputs,
        noise: Noise,
        observers: Sequence[Observer] = (),
        initial: Int[Tensor, "_ _"] | None = None,
    ) -> Tokens:
        """Sample tokens in 0...v-1 for labels or prompts."""
        generation = self.start(inputs, noise, initial)
        for record in generation:
            for observer in observers:
                observer.on_step(record)
        return generation.result()

    def images(
        self,
        inputs: Inputs,
        seed: int,
        numbers: Int[Tensor, " b"],
        observers: Sequence[Observer] = (),
        initial: Int[Tensor, "_ _"] | None = None,
    ) -> Images:
        """Return the images numbered `numbers` in the run of `seed`, decoded in parts."""
        return self.base.decode(self.tokens(inputs, self.noise(seed, numbers), observers, initial))


def vanilla(sampler: Sampler) -> Sampler:
    """Return a sampler with the same base and sampling, but without an accelerator."""
    return Sampler(sampler.base, sampler.sampling)


def point_label(accelerator: str, num_steps: int, num_full_steps: int, variant: str = "") -> str:
    """Return the name of a point: `vanilla 16`, `shortcut 16,4`, `taylorseer 16,6 interval=4`, `teacache 16`.

    `num_full_steps` 0 means that it is decided while sampling.
    """
    steps = f"{num_steps}" if num_full_steps in (0, num_steps) else f"{num_steps},{num_full_steps}"
    return f"{accelerator} {steps} {variant}".rstrip()
