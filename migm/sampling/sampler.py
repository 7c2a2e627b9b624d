"""Join base, sampling and accelerator: all that images depend on besides inputs and noise."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.base import Base, Branch, Inputs, StepRecord, block_parameters
from migm.config.by_front import Decision
from migm.config.fronts import refuse_other_base
from migm.runtime.compiling import PLAIN, Fast, Runtime, as_it_is
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.provenance import environment
from migm.runtime.shapes import Images, Tokens
from migm.sampling.capture import CapturedRuns
from migm.sampling.guidance import refuse_guidance
from migm.sampling.loop import Generation, Sampling, refuse_steps, start
from migm.sampling.noise import DrawnAhead, KeyedNoise, Noise


class Observer(Protocol):
    """An observer of one generation; it must not change the records."""

    def on_step(self, record: StepRecord) -> None: ...


VANILLA = Accelerator(Always())
DRAWN_AHEAD = 2**23  # values of noise, 64 MB, up to which a run draws them all at its start


@dataclass(frozen=True)
class Sampler:
    """Make images; without an accelerator the base runs at every step (vanilla sampling).

    `variant` names the settings that distinguish samplers of the same accelerator. `decision` is that of the front that
    chose it.
    """

    base: Base
    sampling: Sampling
    accelerator: Accelerator = VANILLA
    variant: str = ""
    runtime: Runtime = field(default=PLAIN, compare=False)
    decision: Decision | None = field(default=None, compare=False, repr=False)
    captured: CapturedRuns = field(default_factory=CapturedRuns, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        refuse_guidance(self.base, self.sampling.guidance)
        refuse_steps(self.base, self.num_steps)
        self.accelerator.suits(self.base, self.sampling.identity, self.num_steps)
        if True in (self.runtime.compile, self.runtime.cuda_graphs):
            _ = self.fast, self.replays  # refuse what cannot be, before any work

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

    @property
    def chosen(self) -> dict[str, str]:
        """The entry by which records say that a front chose this sampler, and why; empty where none did."""
        return {} if self.decision is None else {"chosen": self.decision.record}

    def plan(self) -> list[bool] | None:
        """Return True at the full steps, or None if they are decided while sampling."""
        return self.accelerator.plan(self.num_steps)

    def noise(self, seed: int, numbers: Int[Tensor, " b"]) -> KeyedNoise:
        """Return the noise of the images numbered `numbers` in the run of `seed`."""
        return KeyedNoise(seed, numbers.to(self.base.device))

    def start(self, inputs: Inputs, noise: Noise, initial: Int[Tensor, "_ _"] | None = None) -> Generation:
        """Return a generation whose steps the caller makes; `initial` as in `loop.start`."""
        return self._start(self._encoded(inputs), noise, initial)

    def _encoded(self, inputs: Inputs) -> list[Branch]:
        return self.base.encode(inputs, guided=self.sampling.guidance is not None)

    def _start(self, branches: Sequence[Branch], noise: Noise, initial: Int[Tensor, "_ _"] | None = None) -> Generation:
        n, num_tokens = self.num_steps, self.base.spec.num_tokens
        fast = self.fast
        # Compiled, the small operators of noise are one with those that use it.
        if fast is as_it_is and type(noise) is KeyedNoise and n * num_tokens * len(noise.keys) <= DRAWN_AHEAD:
            noise = DrawnAhead(noise, n, num_tokens)
        return start(self.base, branches, self.sampling, self.accelerator, noise, initial, fast)

    def in_runtime(self, runtime: Runtime) -> "Sampler":
        """Return a sampler of the same images with another runtime."""
        return Sampler(self.base, self.sampling, self.accelerator, self.variant, runtime, self.decision)

    @property
    def fast(self) -> Fast:
        """Turn a function of a step into the one to call: compiled, or as it is."""
        return self.runtime.fast(self.base.device, block_parameters(self.base.spec))

    @property
    def replays(self) -> bool:
        """Whether whole runs are captured and replayed, if nobody observes their steps.

        UserError if the runtime asks for it, but the base's device or the accelerator does not allow it.
        """
        runtime = self.runtime
        waits = self.plan() is None or self.sampling.select.rule != "count" or not self.accelerator.captured
        if waits and runtime.cuda_graphs is True:
            raise UserError(f"runtime.cuda_graphs=true, but {self.label} waits for its own results; choose auto")
        return not waits and runtime.captures(self.base.device, block_parameters(self.base.spec))

    @torch.inference_mode()
    def tokens(
        self,
        inputs: Inputs,
        noise: Noise,
        observers: Sequence[Observer] = (),
        initial: Int[Tensor, "_ _"] | None = None,
    ) -> Tokens:
        """Sample tokens in 0...v-1 for labels or prompts."""
        if type(noise) is KeyedNoise and not observers and initial is None and self.replays:
            at_once = self.runtime.cuda_graphs is True
            run = lambda branches, noise: self._start(branches, noise).finish()  # noqa: E731
            return self.captured.tokens(run, self._encoded(inputs), noise, at_once)
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


def say_weights(samplers: Sequence[Sampler], console: Plain) -> list[str]:
    """Print a line for every choice of a front and every file of a shortcut that runs -> fingerprints of all weights.

    A front of another base, and weights that could not be loaded later, are refused here.
    """
    say_decisions(samplers, console)
    lines = [sampler.accelerator.origin(sampler.base) for sampler in samplers]
    found = [sampler.accelerator.fingerprint(sampler.base) for sampler in samplers]
    for line in filter(None, dict.fromkeys(lines)):
        console.print(line)
    return found


def say_decisions(samplers: Sequence[Sampler], console: Plain) -> None:
    """Print a line for every sampler that a front chose; UserError if the front is of another base."""
    for sampler in samplers:
        if (decision := sampler.decision) is not None:
            refuse_other_base(decision.front, decision.path, sampler.base.fingerprint())
            console.print(decision.line(environment(sampler.base.device)["device"]))


def vanilla(sampler: Sampler) -> Sampler:
    """Return a sampler with the same base and sampling, but without an accelerator."""
    return Sampler(sampler.base, sampler.sampling, runtime=sampler.runtime)


def point_label(accelerator: str, num_steps: int, num_full_steps: int, variant: str = "") -> str:
    """Return the name of a point: `vanilla 16`, `shortcut 16,4`, `taylorseer 16,6 interval=4`, `teacache 16`.

    `num_full_steps` 0 means that it is decided while sampling.
    """
    steps = f"{num_steps}" if num_full_steps in (0, num_steps) else f"{num_steps},{num_full_steps}"
    return f"{accelerator} {steps} {variant}".rstrip()
