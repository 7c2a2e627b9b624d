"""Every method of conf/accelerator draws on a pretended CUDA device what it draws on the CPU."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import METHODS, Family
from pretend_cuda import CUDA, pretended
from tiny_parts import text_base

from migm.bases.maskgit import MaskGIT
from migm.sampling.noise import KeyedNoise


@pytest.fixture(scope="session")
def on_cuda() -> Callable[[Family], Any]:
    """The family's base, made on the device, remembered."""
    known: dict[str, Any] = {}

    def make(family: Family) -> Any:
        if family.name not in known:
            parts = copy.deepcopy((family.base.transformer, family.base.tokenizer)) if family.name == "maskgit" else ()
            options = {"dtype": "float64", "device": "cuda"}
            known[family.name] = MaskGIT(*parts, random_weights=True, **options) if parts else text_base(**options)
        return known[family.name]

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_method_draws_on_cuda_what_it_draws_on_the_cpu(family, on_cuda, method):
    images = [0, 1]
    wanted = family.run(family.accelerator(method), images)[0]
    with pretended():
        noise = KeyedNoise(0, torch.tensor(images, device=CUDA))
        found, records = family.run(family.accelerator(method), images, base=on_cuda(family), noise=noise)
        assert {x.device.type for record in records for x in (record.tokens, *record.features)} == {"cuda"}
        assert torch.equal(found.cpu(), wanted)
