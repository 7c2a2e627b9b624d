"""The pretended device refuses what torch's fake CUDA tensors refuse, and is gone afterwards."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend_cuda import CUDA, Pretended, pretended
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

Mix = Callable[[Tensor, Tensor, Any], Tensor]  # of a (3, 4) on CUDA, one on the CPU, and what makes others
REFUSED: dict[str, Mix] = {
    "a sum": lambda x, y, new: x + y,
    "a sum the other way round": lambda x, y, new: y + x,
    "a sum in place": lambda x, y, new: x.add_(y),
    "the CPU's divided by a number of CUDA": lambda x, y, new: y / x.std(),
    "the CPU's in place by a number of CUDA": lambda x, y, new: y.div_(x.std()),
    "joined": lambda x, y, new: torch.cat([x, y]),
    "a product of matrices": lambda x, y, new: x @ y.T,
    "a linear layer": lambda x, y, new: F.linear(x, y),
    "a norm with weights": lambda x, y, new: F.layer_norm(x, (4,), y[0]),
    "an embedding": lambda x, y, new: F.embedding(new("cuda").long(), y),
    "a gather": lambda x, y, new: x.gather(1, new("cpu").long()),
    "a scatter": lambda x, y, new: x.scatter(1, new("cuda").long(), y),
    "a choice": lambda x, y, new: x.where(y > 0, x),
    "a mask": lambda x, y, new: x.masked_fill(y > 0, 0),
    "attention with a mask": lambda x, y, new: F.scaled_dot_product_attention(x[None], x[None], x[None], y[:, :3] > 0),
    "a lookup": lambda x, y, new: torch.searchsorted(x, y),
    "a loss": lambda x, y, new: F.mse_loss(x, y),
    "a convolution": lambda x, y, new: F.conv1d(x[None], y[:, :3, None]),
}
ALLOWED: dict[str, Mix] = {
    "a number of the CPU": lambda x, y, new: x + y.sum(),
    "rows by indices of the CPU": lambda x, y, new: x[torch.tensor([0, 2])],
    "written at indices of the CPU": lambda x, y, new: x.index_put((torch.tensor([0, 2]),), x[:2]),
    "copied over": lambda x, y, new: x.copy_(y),
    "brought there": lambda x, y, new: x + y.to(x.device),
    "made there": lambda x, y, new: x + torch.arange(4, device=x.device),
    "made like it": lambda x, y, new: x + torch.ones_like(x) + x.new_tensor([1.0, 2, 3, 4]),
    "of numbers": lambda x, y, new: x + torch.tensor([1.0, 2, 3, 4], device=x.device),
}


def outcome(mix: Mix, mode: Any) -> str:
    """The device of what comes out, or `refused`."""
    with mode:

        def new(device: str) -> Tensor:
            return torch.zeros(3, 4, device=CUDA if device == "cuda" else "cpu")

        try:
            return mix(new("cuda"), new("cpu"), new).device.type
        except RuntimeError as error:
            return "refused" if "device" in str(error) else str(error)


@pytest.mark.parametrize("name", [*REFUSED, *ALLOWED])
def test_what_may_meet_is_what_torchs_fake_tensors_let_meet(name):
    wanted = "refused" if name in REFUSED else "cuda"
    found = [outcome((REFUSED | ALLOWED)[name], mode) for mode in (pretended(), FakeTensorMode())]
    assert found == [wanted, wanted]


def test_a_number_of_the_cpu_is_not_added_to_in_place():
    """Which fake tensors let pass, and CUDA does not."""
    with pretended(), pytest.raises(RuntimeError, match="two devices"):
        torch.zeros(()).add_(torch.ones((), device=CUDA))


def test_values_leave_by_a_copy_alone():
    with pretended():
        x = torch.arange(3, device=CUDA)
        assert (x.sum().item(), x.tolist(), type(x.cpu())) == (3, [0, 1, 2], Tensor)
        for leave in (x.numpy, lambda: torch.zeros(3) + x):
            with pytest.raises((TypeError, RuntimeError), match="cuda:0"):
                leave()
        assert (x.cpu() + torch.ones(3)).tolist() == [1, 2, 3]


def test_noise_of_a_generator_of_the_cpu_is_not_drawn_there():
    with pretended(), pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=CUDA, generator=torch.Generator())


def test_a_module_moves_there_and_back_and_is_copied_and_saved():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(3, 4)
    wanted = net(x)
    with pretended():
        net.to(CUDA)
        assert all(type(p) is Pretended and isinstance(p, nn.Parameter) for p in copy.deepcopy(net).parameters())
        net(x.to(CUDA)).sum().backward()
        assert net.weight.grad is not None
        assert net.weight.grad.is_cuda
        torch.save(net.state_dict(), file := io.BytesIO())
        file.seek(0)
        assert {type(value) for value in torch.load(file, weights_only=True).values()} == {Tensor}
        net.cpu()
    assert torch.equal(net(x), wanted)


def test_the_device_is_gone_afterwards():
    before = torch.cuda.is_available()
    with pretended():
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_name() == "pretended"
    assert torch.cuda.is_available() == before
    assert type(torch.zeros(2)) is Tensor
