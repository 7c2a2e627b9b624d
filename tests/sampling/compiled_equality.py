"""Prints, as JSON lines, how compiled and captured runs compare with plain ones; a process of its own.

The shape checks of the tests are wrappers that the compiler does not follow. `backend` of the command line is torch's:
"aot_eager" traces and decomposes as for a device, but needs no C++ compiler; "inductor" also makes the code.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from mmada_parts import task_base
from tiny_parts import text_base, wrap

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.ml_cache import Subset
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Uniform
from migm.bases.base import Base
from migm.bases.transformer import MaskTransformer
from migm.runtime import compiling
from migm.sampling.draw import ExponentialRace, GumbelMax, InverseCDF
from migm.sampling.guidance import Constant, Ramp
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor, Increments
from migm.sampling.select import Confidence
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.shortcuts.forecast import ForecastShortcut
from migm.shortcuts.maskgit import MaskGITShortcut

PROMPTS = ["a dark photo of a red truck", "a cat"]


def cases(dtype: str) -> dict[str, tuple[Base, Sampling, torch.nn.Module, Any, Any]]:
    """Bases with sampling, shortcut, and two kinds of inputs of other shapes."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    sizes: dict[str, Any] = {"num_tokens": 16, "vocab_size": 24, "num_classes": 10, "channels": 32, "depth": 2}
    maskgit = wrap(MaskTransformer(num_heads=2, mlp_channels=48, **sizes), dtype)
    rules = Sampling(6, 3, Increments("arccos"), InverseCDF(), Confidence(4.5), Ramp(2.0))
    text = text_base(dtype=dtype)
    gumbel: Any = dtype if dtype != "float64" else "float32"
    words = Sampling(
        6,
        3,
        CosineFloor(),
        GumbelMax(dtype=gumbel, plain_confidence=True),
        Confidence(1.0, "constant", gumbel),
        Constant(3.0, on="logits"),
    )
    nets = MaskGITShortcut(32, num_heads=2).to(kind), DiMOOShortcut(48, num_heads=4, mlp_channels=64).to(kind)
    race = replace(words, draw=ExponentialRace(dtype=gumbel), select=Confidence(1.0, "compounding", gumbel))
    return {
        "maskgit": (maskgit, rules, nets[0], torch.tensor([3, 7, 1]), torch.tensor([5])),
        "dimoo": (text, words, nets[1], PROMPTS, PROMPTS[1:]),
        "mmada": (task_base(dtype=dtype), race, nets[1], PROMPTS, PROMPTS[1:]),
    }


def forecasting(net: torch.nn.Module) -> torch.nn.Module:
    """A network that starts from the last two full steps, with blocks of the same kind."""
    body, weight = ("maskgit", "dimoo")[isinstance(net, DiMOOShortcut)], next(net.parameters())
    options = {name: net.config[name] for name in ("mlp_channels",) if name in net.config}
    made = ForecastShortcut(net.config["channels"], num_heads=net.config["num_heads"], body=body, options=options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # some begin at zero
    return made.to(weight.dtype)


def accelerators(net: torch.nn.Module) -> dict[str, Accelerator]:
    return {
        "vanilla": Accelerator(Always()),
        "shortcut": Accelerator(Uniform(3), Shortcut(module=net), "shortcut"),
        "forecast": Accelerator(Uniform(3), Shortcut(module=forecasting(net)), "forecast"),
        "reuse": Accelerator(Uniform(3), Reuse(), "reuse"),
        "taylorseer": Accelerator(Uniform(3), Forecast(Taylor(1)), "taylorseer"),
        "ml_cache": Accelerator(Uniform(3), Subset(0.5), "ml_cache"),
    }


def compare(dtype: str, families: list[str], names: list[str]) -> None:
    for family in families:
        base, sampling, net, *kinds = cases(dtype)[family]
        for name in names:
            accelerator = accelerators(net)[name]
            plain = Sampler(base, sampling, accelerator)
            fast = replace(plain, runtime=compiling.Runtime(compile=True, cuda_graphs=False))
            for inputs in kinds:
                tokens = [s.tokens(inputs, s.noise(1, torch.arange(len(inputs)))) for s in (plain, fast)]
                same = float((tokens[0] == tokens[1]).double().mean())
                print(json.dumps({"family": family, "accelerator": name, "dtype": dtype, "same": same}), flush=True)


def with_backend(backend: str) -> None:
    """Let torch compile by this backend from here on."""
    if backend != "inductor":
        with_inductor = torch.compile
        torch.compile = lambda f, *, options, **rest: with_inductor(f, backend=backend, **rest)  # type: ignore


if __name__ == "__main__":
    backend, dtype, families, *names = sys.argv[1:]
    with_backend(backend)
    torch.set_num_threads(1)
    compare(dtype, families.split(","), names)
