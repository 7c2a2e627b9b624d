"""Fixtures of all tests: a tiny random base, shortcuts for it, a short sampling; loaded by conftest.py."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import quick_hydra
import shape_checks  # compiles the checks into what is imported from here on
import torch
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from matplotlib.figure import Figure
from tiny_parts import feature_net, reference_for, wrap
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Uniform
from migm.bases.base import Control, StepRecord
from migm.bases.maskgit import MaskGIT
from migm.bases.transformer import MaskTransformer
from migm.evaluation.study import Study
from migm.sampling.draw import InverseCDF
from migm.sampling.guidance import Ramp
from migm.sampling.loop import Sampling, Stepped
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import Increments
from migm.sampling.select import Confidence
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training.rollout import Situation
from migm.trajectories.dataset import Pairs

Outcome = tuple[int, str, str]  # exit code, standard output, standard error

quick_hydra.install()
shape_checks.check_fields(Control, Pairs, Situation, Stepped)
torch.set_num_threads(1)  # the models are tiny: more threads only cost time

SIZES = {
    "num_tokens": 16,
    "vocab_size": 24,
    "num_classes": 10,
    "channels": 48,
    "depth": 2,
    "num_heads": 4,
    "mlp_channels": 96,
}


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """Small stand-ins for the bundled feature net and its reference."""
    folder = tmp_path_factory.mktemp("assets")
    reference_for(feature_net(folder / "cifarnet.safetensors"), folder / "cifarnet_train50k.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_transformer() -> Callable[..., MaskTransformer]:
    def make(seed: int = 0) -> MaskTransformer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = MaskTransformer(**SIZES)
            torch.nn.init.normal_(transformer.bias)  # zero by default, which would hide a wrong row
        return transformer

    return make


@pytest.fixture(scope="session")
def make_base(make_transformer: Callable[..., MaskTransformer]) -> Callable[..., MaskGIT]:
    """A MaskGIT as small as conf/base/tiny.yaml, with random weights."""

    def make(seed: int = 0, dtype: str = "float64") -> MaskGIT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return wrap(make_transformer(seed), dtype)

    return make


@pytest.fixture(scope="session")
def tiny_base(make_base: Callable[..., MaskGIT]) -> MaskGIT:
    return make_base()


@pytest.fixture(scope="session")
def make_shortcut() -> Callable[..., MaskGITShortcut]:
    """A random float64 shortcut for the tiny base, in eval mode."""

    def make(seed: int = 1, **changes: Any) -> MaskGITShortcut:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shortcut = MaskGITShortcut(**{"channels": 48, "num_heads": 4, **changes})
        return shortcut.double().eval().requires_grad_(False)

    return make


@pytest.fixture
def make_accelerator(make_shortcut: Callable[..., MaskGITShortcut]) -> Callable[..., Accelerator]:
    """`vanilla`, `reuse` or `shortcut`, the last two with B full steps."""

    def make(name: str, num_full_steps: int = 2) -> Accelerator:
        if name == "vanilla":
            return Accelerator(Always())
        predictor = Reuse() if name == "reuse" else Shortcut(module=make_shortcut())
        return Accelerator(Uniform(num_full_steps), predictor, name)

    return make


@pytest.fixture(scope="session")
def make_sampling() -> Callable[..., Sampling]:
    """Six steps over the tiny base's 16 tokens, guided, with flat probabilities so that noise matters."""

    def make(**changes: Any) -> Sampling:
        parts: dict[str, Any] = {
            "num_steps": 6,
            "num_full_steps": 2,
            "schedule": Increments("arccos"),
            "draw": InverseCDF(inverse_temperature=0.3),
            "select": Confidence(4.5),
            "guidance": Ramp(2.0),
        }
        return Sampling(**{**parts, **changes})

    return make


@pytest.fixture
def run(tiny_base: MaskGIT, make_sampling: Callable[..., Sampling]) -> Callable[..., tuple[Tensor, list[StepRecord]]]:
    """Generate the images 0, 1, ... of `labels` with the tiny base -> tokens and the record of every step."""

    def generate_tiny(
        accelerator: Accelerator,
        labels: Sequence[int] = (3, 7),
        images: Sequence[int] | None = None,
        seed: int = 0,
        base: Any = None,
        observers: Sequence[Any] = (),
        **changes: Any,
    ) -> tuple[Tensor, list[StepRecord]]:
        records: list[StepRecord] = []
        sampler = Sampler(base or tiny_base, make_sampling(**changes), accelerator)
        noise = sampler.noise(seed, torch.tensor(range(len(labels)) if images is None else images))
        watch = [SimpleNamespace(on_step=records.append), *observers]
        return sampler.tokens(torch.tensor(labels), noise, watch), records

    return generate_tiny


@pytest.fixture
def call_main(monkeypatch, capfd) -> Iterator[Callable[..., Outcome]]:
    """Run the `main` of a command inside this process, as its `python -m` would.

    Before it composes a config, Hydra composes it to look for `hydra.mode`; here only where it may be set. Times of
    sampling are those of one round, where a study takes the median of five. Figures are drawn once, not a first time
    for their layout, which tests of the figures have.
    """
    monkeypatch.setattr(Study, "__init__", functools.partialmethod(Study.__init__, repeats=1))
    saved = Figure.savefig

    def at_once(figure: Figure, *args: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        saved(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", at_once)
    look = Hydra.get_mode

    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        sets = any(text.startswith(("+sweep", "hydra.mode")) for text in overrides)
        return look(self, config_name, overrides) if sets else None

    monkeypatch.setattr(Hydra, "get_mode", mode)

    def run(main: Callable[[], None], *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["migm", *arguments])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return code, *capfd.readouterr()

    state = torch.get_rng_state()
    yield run
    torch.set_rng_state(state)
