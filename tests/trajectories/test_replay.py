"""Features that the base computes beside a training are in its own precision, whatever that of the training is."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from migm.sampling.sampler import Sampler
from migm.trajectories.dataset import InMemory, PairDataset
from migm.trajectories.record import record
from migm.trajectories.replay import with_features


class Made(TorchDispatchMode):
    """Notes the kinds of all tensors with as many entries as the features or more."""

    def __init__(self, entries: int):
        super().__init__()
        self.entries, self.kinds = entries, set[torch.dtype]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel() >= self.entries:
                self.kinds.add(x.dtype)
        return out


def test_a_base_in_bfloat16_makes_no_float32_copies_under_any_autocast(make_base, make_sampling):
    base = make_base(dtype="bfloat16")
    chosen = {"seed": 0, "inputs": lambda numbers: numbers % 10, "batch_size": 2, "dtype": None}
    pairs = PairDataset(InMemory(record(Sampler(base, make_sampling()), torch.arange(2), **chosen)))
    batch = pairs.__getitems__(range(4))
    with torch.autocast("cpu", dtype=torch.float16), Made(4 * 17 * 48) as made:
        found = with_features(batch, base)
    assert (found.features.shape, found.target.shape) == ((4, 17, 48), (4, 17, 48))
    assert made.kinds == {torch.bfloat16}
    assert not found.features.requires_grad
