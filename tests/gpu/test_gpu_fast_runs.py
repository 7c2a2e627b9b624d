"""Compiled and captured runs on a card draw what plain ones draw."""

from dataclasses import replace

import pytest
import torch

import migm
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.runtime.compiling import PLAIN, Runtime
from migm.sampling.sampler import Sampler
from migm.shortcuts.maskgit import MaskGITShortcut

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("runtime", [Runtime(True, False), Runtime(False, True), Runtime(True, True)])
def test_fast_runs_draw_the_same_tokens_in_float32(runtime):
    base = migm.load_base("cifar10", dtype="float32")
    net = MaskGITShortcut(base.spec.channels, num_heads=4)
    accelerator = Accelerator(Uniform(4), Shortcut(module=net), "shortcut")
    plain = Sampler(base, migm.Sampler(base, num_steps=16).sampling, accelerator, runtime=PLAIN)
    fast = replace(plain, runtime=runtime)
    for seed in range(3):
        numbers = torch.arange(10) + seed
        tokens = [s.tokens(numbers % 10, s.noise(seed, numbers)) for s in (plain, fast)]
        assert torch.equal(*tokens)
