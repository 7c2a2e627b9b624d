"""Averaged weights are Lightning's to the bit, also where one goes on from the other's checkpoint."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from migm.training.callbacks import Averaging


class Net(L.LightningModule):
    """Weights of several shapes, a buffer of floats and one of whole numbers."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(37, 19), torch.nn.BatchNorm1d(19), torch.nn.Linear(19, 5))


def averages(callback: EMAWeightAveraging, steps: range, net: Any) -> list[torch.Tensor]:
    """The averages after weights that are a function of the step."""
    for step in steps:
        torch.manual_seed(step)
        for x in [*net.parameters(), *net.buffers()]:
            x.data = torch.randn(x.shape).to(x.dtype) if x.is_floating_point() else torch.full_like(x, 7 * step)
        trainer: Any = SimpleNamespace(global_step=step + 1)
        callback.on_train_batch_end(trainer, net, None, None, 0)
    assert callback._average_model is not None
    return [x.clone() for x in (*callback._average_model.parameters(), *callback._average_model.buffers())]


@pytest.mark.parametrize("options", [{}, {"update_starting_at_step": 3}, {"update_every_n_steps": 2}])
def test_averages_are_those_of_lightning(options):
    made = []
    for kind in (EMAWeightAveraging, Averaging):
        net: Any = Net()
        callback = kind(decay=0.9, **options)
        callback.setup(SimpleNamespace(), net, "fit")  # type: ignore[arg-type]
        made.append((callback, averages(callback, range(12), net), net))
    (lightnings, wanted, _), (own, found, net) = made
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert own.state_key == lightnings.state_key
    assert own.state_dict() == lightnings.state_dict()
    own.load_state_dict(lightnings.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(averages(own, range(12, 14), net), wanted, strict=True))
