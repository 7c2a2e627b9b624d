"""What only the recorded cases of the original implementations need."""

import json
from collections.abc import Callable

import pytest
from tiny_parts import state_dict

from migm.bases.vqgan import VQGAN
from migm.bases.weights import assign_strictly


@pytest.fixture(scope="session")
def recorded_vqgan(read_vector) -> Callable[[str], VQGAN]:
    """The VQGAN of a recorded case, named as its file."""

    def build(name: str) -> VQGAN:
        tensors, meta = read_vector(name.removesuffix(".safetensors"))
        net = VQGAN(json.loads(meta["ddconfig"]), int(meta["n_embed"]), int(meta["embed_dim"]))
        assign_strictly(net, net.from_published(state_dict(tensors)), name)
        return net.eval().requires_grad_(False)

    return build
