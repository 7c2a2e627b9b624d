"""A tiny sampler of every family of bases, for tests that ask the same of each; weights do not depend on the device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from amused_parts import random_amused
from meissonic_parts import APART, meissonic_base
from mmada_parts import task_base
from tiny_parts import halton_base, text_base, wrap
from torch import nn

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.ml_cache import Subset
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.base import Base
from migm.bases.dimo import DiMOMaskGIT, DiMOMeissonic
from migm.bases.maskgit import MaskGIT
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.sampling.draw import Annealed, ExponentialRace, GumbelMax, InverseCDF, Likeliest
from migm.sampling.guidance import Constant, Ramp
from migm.sampling.loop import Sampling
from migm.sampling.order import Halton
from migm.sampling.sampler import VANILLA, Sampler
from migm.sampling.schedule import CosineFloor, Increments, Totals
from migm.sampling.select import Confidence, Random
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.shortcuts.forecast import ForecastShortcut
from migm.shortcuts.maskgit import MaskGITShortcut

LABELS, PROMPTS = torch.tensor([3, 7, 1]), ["a red bird", "a cat", "a ship"]


class Kind(NamedTuple):
    """A base for a dtype and a device, its sampling, and the width of its shortcut."""

    base: Callable[[Any, str], Base]
    sampling: Callable[[Any], Sampling]  # by the dtype of drawing
    channels: int
    labelled: bool = False

    def sampler(self, dtype: Any, device: Any = "cpu", method: str = "vanilla") -> Sampler:
        drawn = "float32" if dtype == "float64" else dtype
        base = self.base(dtype, device)
        return Sampler(base, self.sampling(drawn), self.accelerator(method, base))

    def accelerator(self, method: str, base: Base) -> Accelerator:
        return VANILLA if method == "vanilla" else Accelerator(Uniform(2), self._predictor(method, base), method)

    def _predictor(self, method: str, base: Base) -> Any:
        if method in ("shortcut", "forecast"):
            net = self.network() if method == "shortcut" else self.forecasting()
            return Shortcut(module=net.to(base.device, base.dtype))
        return {
            "reuse": Reuse(),
            "taylorseer": Forecast(Taylor(1)),
            "taylorseer_module": Forecast(Taylor(1), "module"),
            "ml_cache": Subset(0.5, force_new=True),
        }[method]

    def network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            if self.labelled:
                return MaskGITShortcut(self.channels, num_heads=1)
            return DiMOOShortcut(self.channels, num_heads=2, mlp_channels=32, rope_theta=1e4)

    def forecasting(self) -> nn.Module:
        """Return a network that starts from the last two full steps, with blocks of the same kind."""
        net = self.network()
        options = {name: net.config[name] for name in ("mlp_channels",) if name in net.config}
        body = "maskgit" if self.labelled else "dimoo"
        made = ForecastShortcut(self.channels, num_heads=net.config["num_heads"], body=body, options=options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            for parameter in made.parameters():
                nn.init.normal_(parameter, std=0.1)  # some begin at zero
        return made

    def inputs(self, images: Sequence[int]) -> Any:
        return LABELS[list(images)] if self.labelled else [PROMPTS[i] for i in images]


def maskgit(dtype: Any, device: Any) -> MaskGIT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return wrap(transformer(), dtype, device=device)


def transformer(**changes: Any) -> MaskTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MaskTransformer(16, 24, 10, 48, 2, 4, 96, **changes)
        nn.init.normal_(net.bias)  # zero by default, which would hide a wrong row
    return net


def one_step_maskgit(dtype: Any, device: str) -> DiMOMaskGIT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vq = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1)
    settings: Any = {"random_weights": True, "dtype": dtype, "device": device}
    return DiMOMaskGIT(transformer=transformer(mask_logit=True), tokenizer=vq, **settings)


def guided(draw: Any, temperature: float, scale: float, **select: Any) -> Callable[[Any], Sampling]:
    """Six steps as the text-to-image bases make them, at a dtype of drawing."""
    schedule, guidance = CosineFloor(at_least_one=True), Constant(scale, "logits")
    chosen = lambda dtype: Confidence(temperature, dtype=dtype, **select)  # noqa: E731
    return lambda dtype: Sampling(6, 2, schedule, draw(dtype=dtype), chosen(dtype), guidance)


def one_step(dtype: Any) -> Sampling:
    return Sampling(1, 1, CosineFloor(), Likeliest(top_k=9, top_p=0.9), Random())


def plain_gumbel(dtype: Any) -> GumbelMax:
    return GumbelMax(dtype=dtype, plain_confidence=True)


def maskgit_rules(dtype: Any) -> Sampling:
    return Sampling(6, 2, Increments("arccos"), InverseCDF(0.3), Confidence(4.5), Ramp(2.0))


def halton_rules(dtype: Any) -> Sampling:
    return Sampling(6, 2, Totals(), Annealed(warm_up=1, top_k=20), Random(), Constant(1.0), Halton(roll=True))


AMUSED, MEISSONIC = guided(GumbelMax, 2.0, 9.0), guided(GumbelMax, 2.0, 8.0)
GENTLY = guided(GumbelMax, 2.0, 0.5)  # where more would draw one token everywhere
KINDS = {
    "maskgit": Kind(maskgit, maskgit_rules, 48, labelled=True),
    "halton": Kind(lambda t, d: halton_base(dtype=t, device=d), halton_rules, 46, labelled=True),  # type: ignore[arg-type]
    "dimoo": Kind(lambda t, d: text_base(dtype=t, device=d), guided(plain_gumbel, 1.0, 3.0, anneal="constant"), 48),
    "amused": Kind(lambda t, d: random_amused(dtype=t, device=d), GENTLY, 32),
    "amused_joined": Kind(lambda t, d: random_amused(True, dtype=t, device=d), AMUSED, 32),
    "meissonic": Kind(lambda t, d: meissonic_base(dtype=t, device=d), MEISSONIC, 32),
    "monetico": Kind(lambda t, d: meissonic_base(4, t, device=d, transformer=APART), GENTLY, 32),
    "mmada": Kind(
        lambda t, d: task_base(dtype=t, device=d), guided(ExponentialRace, 1.0, 3.5, anneal="compounding"), 48
    ),
    "dimo_maskgit": Kind(one_step_maskgit, one_step, 48, labelled=True),
    "dimo_meissonic": Kind(lambda t, d: meissonic_base(dtype=t, device=d, kind=DiMOMeissonic), one_step, 32),
}
STEPPED = [name for name, kind in KINDS.items() if kind.sampling is not one_step]
METHODS = ["shortcut", "reuse", "taylorseer", "taylorseer_module", "ml_cache"]


def cases(names: Sequence[str] = tuple(KINDS), methods: Sequence[str] = tuple(METHODS)) -> list[tuple[str, str]]:
    """Kinds and methods that go together: one step leaves nothing to a method."""
    return [(name, m) for name in names for m in ("vanilla", *(methods if name in STEPPED else ()))]


def drawn(sampler: Sampler, inputs: Any, seed: int) -> torch.Tensor:
    """Tokens of the images `seed`, `seed` + 1, ..."""
    return sampler.tokens(inputs, sampler.noise(seed, torch.arange(len(inputs)) + seed))


def in_runtime(sampler: Sampler, runtime: Any) -> Sampler:
    return replace(sampler, runtime=runtime)
