"""Fixtures of the tests on a pretended CUDA device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_checks import Check, Place
from pretend_cuda import pretended

Compare = Callable[..., None]


@pytest.fixture(scope="session")
def make_place(make_base: Any, make_sampling: Any) -> Callable[[str, str], Place]:
    """A family's tiny base on a device, remembered."""
    known: dict[tuple[str, str], Place] = {}

    def make(kind: str, device: str) -> Place:
        if (kind, device) not in known:
            known[kind, device] = Place(kind, device, make_base(), make_sampling(num_steps=4))
        return known[kind, device]

    return make


@pytest.fixture(params=["maskgit", "dimoo"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def same(make_place: Callable[[str, str], Place], kind: str) -> Compare:
    """Asserts that a check gives on a pretended CUDA device what it gives on the CPU, to the bit."""

    def compare(check: Check, *arguments: Any) -> None:
        wanted = check(make_place(kind, "cpu"), *arguments)
        with pretended():
            found = check(make_place(kind, "cuda"), *arguments)
        assert len(found) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    return compare
