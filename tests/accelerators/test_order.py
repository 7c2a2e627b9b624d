"""Orders: which of the masked positions a step may reveal."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from tiny_parts import naming
from torch import Tensor

import migm.sampling.loop
import migm.training.rollout
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.order import RankedSets
from migm.accelerators.predictors.recap import Target
from migm.accelerators.refresh import Groups
from migm.bases.base import BaseSpec
from migm.runtime.errors import UserError
from migm.sampling.noise import Noise
from migm.sampling.order import AllMasked

PERMUTATION = (5, 0, 11, 3, 14, 8, 1, 15, 7, 2, 10, 6, 13, 4, 9, 12)
COUNTS = [1, 2, 3, 3, 4, 3]
MASK = 24


@dataclass(frozen=True)
class Fixed:
    """The positions in an order that is known before the first step."""

    positions: tuple[int, ...]

    def start(self, spec: BaseSpec, counts: Sequence[int], noise: Noise) -> "_Next":
        assert (spec.num_tokens, spec.grid, list(counts)) == (16, (4, 4), COUNTS)
        return _Next(self.positions)


class _Next:
    def __init__(self, positions: Sequence[int]):
        self.left = list(positions)
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def candidates(self, step: int, masked: Tensor, count: int) -> Tensor:
        assert masked.tolist() == [sorted(self.left)] * len(masked)
        now, self.left = sorted(self.left[:count]), self.left[count:]
        return torch.tensor(now).expand(len(masked), -1)

    def scored(self, step: int, scores: Tensor, positions: Tensor, chosen: Tensor) -> None:
        assert scores.shape == positions.shape == chosen.shape
        self.seen.append((step, positions, chosen))


@pytest.mark.parametrize("name", ["vanilla", "reuse", "shortcut"])
def test_a_fixed_order_reveals_its_next_positions_at_every_step(run, make_accelerator, name):
    tokens, records = run(make_accelerator(name), order=Fixed(PERMUTATION))
    left = list(PERMUTATION)
    for record, count in zip(records, COUNTS, strict=True):
        now, left = sorted(left[:count]), left[count:]
        assert record.new_positions.tolist() == [now] * 2
        assert (record.tokens == MASK).sum(1).tolist() == [len(left)] * 2
        assert (record.tokens[:, sorted(left)] == MASK).all()
    assert not left
    assert torch.equal(tokens, records[-1].tokens)


def test_all_masked_is_the_order_by_default(run, make_accelerator, make_sampling):
    assert make_sampling().order == AllMasked()
    assert torch.equal(run(make_accelerator("vanilla"))[0], run(make_accelerator("vanilla"), order=AllMasked())[0])
    masked = torch.arange(4).expand(2, -1)
    assert AllMasked().candidates(0, masked, 4) is masked


def test_an_order_is_part_of_the_sampling_s_identity(make_sampling):
    assert "order" not in make_sampling().identity
    assert make_sampling(order=Fixed((1, 0))).identity.endswith("order=Fixed(positions=[1, 0]))")


def test_recap_refuses_another_order_by_name(run):
    recap = Accelerator(Groups(2), Target(), "recap")
    with pytest.raises(UserError, match=naming("sampling.order=Fixed", "accelerator=recap")):
        run(recap, order=Fixed(PERMUTATION))
    everywhere = Accelerator(Groups(6), Target(), "recap")  # ranks nothing ahead: any order is as good
    assert torch.equal(run(everywhere, order=Fixed(PERMUTATION))[0], run(_vanilla(), order=Fixed(PERMUTATION))[0])


def _vanilla() -> Accelerator:
    return Accelerator(Groups(6))


class Targets:
    """Notes what it is told to compute."""

    def __init__(self):
        self.told: list[list[list[int]]] = []

    def target(self, positions: Tensor) -> None:
        self.told.append(positions.tolist())


def test_ranked_sets_are_what_a_full_step_scored_best():
    """Steps of 1, 2 and 1 of six positions, the first of them full and the last as well."""
    targets = Targets()
    order = RankedSets([True, False, True], [1, 2, 1], [targets])
    masked = torch.tensor([[0, 2, 3, 5, 6, 7]])
    assert order.candidates(0, masked, 1) is masked
    order.scored(0, torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.4, 0.7]]), masked, torch.tensor([[1]]))
    assert targets.told == [[[2, 5, 7]]]  # what it revealed itself, then the best of the rest
    left = torch.tensor([[0, 3, 5, 6, 7]])
    here = order.candidates(1, left, 2)
    assert here.tolist() == [[5, 7]]
    order.scored(1, torch.tensor([[0.3, 0.1]]), here, torch.tensor([[0, 1]]))
    assert len(targets.told) == 1  # a cheap step ranks nothing
    left = torch.tensor([[0, 3, 6]])
    assert order.candidates(2, left, 1) is left


def test_roll_outs_and_the_loop_share_their_step():
    assert migm.training.rollout.step is migm.sampling.loop.step
