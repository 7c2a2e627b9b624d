"""Fixtures of the methods' tests: both families of bases, once a session."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import LABELS, PROMPTS, B, Family, N
from tiny_parts import text_base

from migm.sampling.draw import InverseCDF
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.dimoo import DiMOOShortcut


@pytest.fixture(scope="session")
def maskgit(make_base: Any, make_sampling: Any, make_shortcut: Any, tmp_path_factory: Any) -> Family:
    sampling = make_sampling(num_steps=N, num_full_steps=B)
    family = Family("maskgit", make_base(), LABELS, sampling, tmp_path_factory.mktemp("maskgit"))
    family.learn(lambda cross: make_shortcut(cross_attention=cross))
    return family


@pytest.fixture(scope="session")
def make_dimoo(tmp_path_factory: Any) -> Callable[..., Family]:
    sampling = Sampling(N, B, CosineFloor(), InverseCDF(), Confidence(1.0, "constant"), Constant(2.0))
    folder = tmp_path_factory.mktemp("dimoo")

    def make(**changes: Any) -> Family:
        return Family("dimoo", text_base(**changes), PROMPTS, sampling, folder)

    return make


@pytest.fixture(scope="session")
def dimoo(make_dimoo: Callable[..., Family]) -> Family:
    family = make_dimoo()

    def shortcut(cross: bool) -> DiMOOShortcut:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = DiMOOShortcut(48, num_heads=4, mlp_channels=32, rope_theta=1e4, cross_attention=cross)
            for weight in network.parameters():
                torch.nn.init.normal_(weight, std=0.2)  # what it adds is zero before training
        return network

    family.learn(shortcut)
    return family


@pytest.fixture(scope="session", params=["maskgit", "dimoo"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.getfixturevalue(request.param)
