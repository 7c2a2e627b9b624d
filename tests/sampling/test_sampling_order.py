"""Orders that are fixed before the first step: Halton's, at every grid, for every image and every base."""

from math import prod

import pytest
import torch
from tiny_parts import naming, text_base

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.recap import Target
from migm.accelerators.refresh import Groups
from migm.bases.base import BaseSpec
from migm.runtime.errors import UserError
from migm.sampling.draw import InverseCDF
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.noise import DRAW, ORDER, SELECT, DrawnAhead, KeyedNoise
from migm.sampling.order import Halton, halton_order
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence, Random


def inverses(i):
    """The radical inverses of i in base 2 and 3 by their definition, as (numerator, denominator)."""
    found = []
    for radix in (2, 3):
        value, scale, rest = 0, 1, i
        while rest:
            value, scale, rest = value * radix + rest % radix, scale * radix, rest // radix
        found.append((value, scale))
    return found


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 4), (6, 4), (3, 7), (16, 16)])
def test_cells_come_as_the_points_of_the_halton_sequence_first_lie_in_them(grid):
    seen, i = [], 0
    while len(seen) < prod(grid):
        i += 1
        row, column = (n * side // d for side, (n, d) in zip(grid, inverses(i), strict=True))
        if (row * grid[1] + column) not in seen:
            seen.append(row * grid[1] + column)
    assert halton_order(grid).tolist() == seen


def test_a_large_grid_is_covered_by_as_many_points_as_it_takes():
    assert torch.equal(halton_order((64, 64)).sort().values, torch.arange(4096))


def positions_of(order, images, counts=(3, 4, 9), seed=0, ahead=False):
    """Positions of a 4 x 4 grid that each step reveals, one list for every image."""
    spec, noise = BaseSpec(16, (4, 4), 8, 4, 1), KeyedNoise(seed, torch.tensor(images))
    made = order.start(spec, counts, DrawnAhead(noise, len(counts), 16) if ahead else noise)
    masked, found = torch.arange(16).expand(len(images), -1), []
    for step, count in enumerate(counts):
        found.append(made.candidates(step, masked, count))
        masked = torch.stack([m[~torch.isin(m, f)] for m, f in zip(masked, found[-1], strict=True)])
    return found


def test_a_roll_is_a_rotation_of_the_order_by_the_image_s_own_noise():
    order = halton_order((4, 4)).tolist()
    singles = positions_of(Halton(roll=True), list(range(200)), [1] * 16)
    shifts = []
    for image in range(200):
        found = [int(step[image]) for step in singles]
        start = order.index(found[0])
        assert found == order[start:] + order[:start]
        shifts.append(-start % 16)
    assert set(shifts) == set(range(16))
    for ahead in (False, True):
        alone = positions_of(Halton(roll=True), [5], [1] * 16, ahead=ahead)
        assert [int(step) for step in alone] == [int(step[5]) for step in singles]
    other = positions_of(Halton(roll=True), list(range(200)), [1] * 16, seed=1)
    assert (torch.stack(other) != torch.stack(singles)).any()


def test_the_noise_of_orders_is_that_of_no_step():
    noise, where = KeyedNoise(0, torch.arange(4)), torch.zeros(4, 1, dtype=torch.long)
    own = noise.uniform(ORDER, 0, where)
    others = [noise.uniform(purpose, step, where) for purpose in (DRAW, SELECT) for step in range(40)]
    assert not any((own == other).any() for other in others)


def test_in_painting_goes_on_with_the_masked_positions_alone():
    spec = BaseSpec(16, (4, 4), 8, 4, 1)
    order = Halton().start(spec, [2, 2], KeyedNoise(0, torch.arange(2)))
    masked = torch.tensor([[0, 1, 2, 3], [5, 9, 10, 15]])
    wanted = [[p for p in halton_order((4, 4)).tolist() if p in row] for row in masked.tolist()]
    assert order.candidates(0, masked, 2).tolist() == [sorted(row[:2]) for row in wanted]
    assert order.candidates(0, masked, 0).shape == (2, 0)


@pytest.fixture(params=["maskgit", "dimoo"])
def sampler_of(request, tiny_base, make_sampling):
    """An accelerator and an order -> a sampler of a base, and inputs of three images."""

    def make(accelerator, order):
        if request.param == "maskgit":
            return Sampler(tiny_base, make_sampling(order=order), accelerator), torch.tensor([3, 7, 0])
        rules = (CosineFloor(), InverseCDF(), Confidence(1.0, "constant"), Constant(2.0))
        return Sampler(text_base(), Sampling(6, 2, *rules, order=order), accelerator), ["a cat", "red", "a b c"]

    return make


@pytest.mark.parametrize("name", ["vanilla", "reuse"])
@pytest.mark.parametrize("roll", [False, True])
def test_every_base_reveals_in_the_order_and_keeps_what_is_revealed(sampler_of, make_accelerator, name, roll):
    sampler, inputs = sampler_of(make_accelerator(name), Halton(roll))
    numbers, records = torch.arange(3), []
    watch = type("Watch", (), {"on_step": lambda _, record: records.append(record)})()
    tokens = sampler.tokens(inputs, sampler.noise(0, numbers), [watch])
    counts = sampler.sampling.schedule.counts(16, 6)
    wanted = positions_of(Halton(roll), numbers.tolist(), counts)
    before = torch.full_like(tokens, 24)
    for record, positions in zip(records, wanted, strict=True):
        assert torch.equal(record.new_positions, positions)
        changed = torch.zeros_like(before, dtype=torch.bool).scatter(1, positions, True)
        assert torch.equal(record.tokens[~changed], before[~changed])
        assert (record.tokens[changed] < 24).all()
        before = record.tokens
    assert torch.equal(tokens, before)
    for image in range(3):  # alone as in the batch
        alone = sampler.tokens(inputs[image : image + 1], sampler.noise(0, numbers[image : image + 1]))
        assert torch.equal(alone[0], tokens[image])


def test_a_step_that_reveals_nothing_draws_nothing(tiny_base, make_sampling):
    class Idle(CosineFloor):
        def counts(self, num_tokens, num_steps):
            return [0, 5, 0, 11]

    for select in (Random(), Confidence(1.0), Confidence(1.0, rule="cutoff")):
        sampling = make_sampling(num_steps=4, schedule=Idle(), order=Halton(), select=select)
        tokens = Sampler(tiny_base, sampling).tokens(torch.tensor([1]), KeyedNoise(0, torch.arange(1)))
        assert (tokens < 24).all()


def test_recap_which_ranks_positions_itself_refuses_the_order_by_name(sampler_of):
    sampler, inputs = sampler_of(Accelerator(Groups(2), Target(), "recap"), Halton())
    with pytest.raises(UserError, match=naming("sampling.order=Halton", "accelerator=recap")):
        sampler.tokens(inputs, sampler.noise(0, torch.arange(3)))


def test_the_order_is_part_of_the_identity(make_sampling):
    assert make_sampling(order=Halton()).identity.endswith("order=Halton())")
    assert make_sampling(order=Halton(roll=True)).identity.endswith("order=Halton(roll=True))")
