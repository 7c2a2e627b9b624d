"""Muon: torch's own where bfloat16 is fast, the same in float32 elsewhere."""

import pytest
import torch
from torch.nn import Parameter

from migm.training import optimizer
from migm.training.optimizer import Muon

SHAPES = [(12, 8), (8, 20), (16, 16)]


def trained(kind: type[torch.optim.Muon], shape: tuple[int, int], **options) -> tuple[Parameter, torch.optim.Optimizer]:
    """A matrix after four steps of random gradients."""
    torch.manual_seed(0)
    parameter = Parameter(torch.randn(shape))
    muon = kind([parameter], lr=0.01, weight_decay=0.1, **options)
    for _ in range(4):
        parameter.grad = torch.randn(shape)
        muon.step()
    return parameter, muon


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_it_is_torchs_own_to_the_bit(monkeypatch, shape):
    monkeypatch.setattr(optimizer, "pick_dtype", lambda *_: torch.bfloat16)
    ours, muon = trained(Muon, shape)
    theirs, reference = trained(torch.optim.Muon, shape, adjust_lr_fn="match_rms_adamw")
    assert torch.equal(ours, theirs)
    muon.load_state_dict(reference.state_dict())  # checkpoints fit in both


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_differs_by_roundings_only(monkeypatch, shape):
    monkeypatch.setattr(optimizer, "pick_dtype", lambda *_: torch.float32)
    ours, _ = trained(Muon, shape)
    theirs, _ = trained(torch.optim.Muon, shape, adjust_lr_fn="match_rms_adamw")
    assert 0 < (ours - theirs).abs().max() < 1e-3  # of steps of 0.01 each


def test_the_dtype_of_the_iteration_is_the_machines(monkeypatch):
    seen, orthogonal = [], optimizer.orthogonal
    monkeypatch.setattr(
        optimizer, "orthogonal", lambda matrix, group: seen.append(matrix.dtype) or orthogonal(matrix, group)
    )
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(optimizer, "pick_dtype", lambda name, device, dtype=dtype: dtype)
        trained(Muon, (4, 4))
    assert seen == [torch.float32] * 4 + [torch.bfloat16] * 4


def test_matrices_of_a_size_that_are_updated_together_are_as_one_by_one(monkeypatch):
    """CUDA updates them so; here, where both can be had, they are equal to the bit."""

    def trained_all() -> list[Parameter]:
        torch.manual_seed(0)
        parameters = [Parameter(torch.randn(shape)) for shape in [*SHAPES, *SHAPES]]
        muon = Muon(parameters, lr=0.01, weight_decay=0.1)
        for step in range(4):
            for p in parameters:
                p.grad = torch.randn(p.shape) if step or p is not parameters[1] else None  # one begins later
            muon.step()
        return parameters

    stacks, orthogonal = [], optimizer.orthogonal
    monkeypatch.setattr(optimizer, "orthogonal", lambda x, group: stacks.append(len(x)) or orthogonal(x, group))
    alone = trained_all()
    assert set(stacks) == {1}
    monkeypatch.setattr(optimizer, "together", lambda p: (p.shape, p.dtype))
    for one, other in zip(alone, trained_all(), strict=True):
        assert torch.equal(one, other)
    assert 2 in stacks


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_has_singular_values_of_about_one(shape):
    torch.manual_seed(0)
    group = Muon([Parameter(torch.zeros(shape))], lr=0.01, weight_decay=0).param_groups[0]
    values = torch.linalg.svdvals(optimizer.orthogonal(torch.randn(3, *shape), group))
    assert values.min() > 0.3
    assert values.max() < 1.5
