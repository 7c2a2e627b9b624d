"""The loader's order is a pure function of (seed, epoch), split over ranks, and resumes exactly."""

import time
from collections.abc import Callable, Sequence

import pytest
import torch

from migm.trajectories.loader import BatchOrder, StatefulLoader


class Numbers:
    """A dataset of `size` numbers that hands out the indices themselves."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.tensor(indices)


class Backwards(Numbers):
    """A dataset with an order of its own."""

    def order(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self.size).flip(0)


def epochs(loader: StatefulLoader, number: int) -> list[list[list[int]]]:
    return [[batch.tolist() for batch in loader] for _ in range(number)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_are_disjoint_equally_long_and_together_the_whole(world_size):
    orders = [BatchOrder(Numbers(65), 4, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    ranks = [list(order) for order in orders]
    assert {len(batches) for batches in ranks} == {65 // (4 * world_size)} == {len(order) for order in orders}
    assert {len(batch) for batches in ranks for batch in batches} == {4}
    seen = [i for batches in ranks for batch in batches for i in batch]
    assert len(set(seen)) == len(seen) == 65 // (4 * world_size) * 4 * world_size
    assert set(seen) <= set(range(65))


def test_without_a_rest_an_epoch_covers_every_sample_once():
    for epoch in epochs(StatefulLoader(Numbers(24), 4, seed=0), 3):
        assert sorted(i for batch in epoch for i in batch) == list(range(24))


def test_what_one_epoch_skips_another_sees():
    seen = {i for epoch in epochs(StatefulLoader(Numbers(23), 4, seed=0), 8) for batch in epoch for i in batch}
    assert seen == set(range(23))


def test_the_order_is_a_function_of_seed_and_epoch():
    first, same, other = (epochs(StatefulLoader(Numbers(24), 4, seed), 3) for seed in (0, 0, 1))
    assert first == same
    assert first[0] != first[1] != first[2]
    assert first[0] != other[0]


def test_an_epoch_ends_with_its_last_batch_whether_or_not_the_end_is_asked_for():
    """Lightning knows the length and stops without a StopIteration."""
    wanted, loader, found = (
        epochs(StatefulLoader(Numbers(24), 4, seed=0), 3),
        StatefulLoader(Numbers(24), 4, seed=0),
        [],
    )
    for _ in range(3):
        running = iter(loader)
        found.append([next(running).tolist() for _ in range(len(loader))])
    assert found == wanted


def test_the_order_does_not_depend_on_the_global_generator():
    torch.manual_seed(0)
    first = epochs(StatefulLoader(Numbers(24), 4, seed=5), 2)
    torch.manual_seed(1)
    assert epochs(StatefulLoader(Numbers(24), 4, seed=5), 2) == first


def test_a_dataset_may_bring_its_own_order():
    assert epochs(StatefulLoader(Backwards(7), 3, seed=0), 1) == [[[6, 5, 4], [3, 2, 1]]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("full", "taken"), [(0, 0), (0, 1), (0, 4), (1, 5), (2, 0), (0, 6), (1, 6)])
def test_a_resumed_loader_continues_exactly(workers, full, taken):
    """`full` epochs and `taken` of 6 batches are consumed, then a new loader takes the state."""
    wanted = epochs(StatefulLoader(Numbers(26), 4, seed=2), 4)
    first = StatefulLoader(Numbers(26), 4, seed=2, num_workers=workers)
    epochs(first, full)
    running = iter(first)
    begun = [next(running).tolist() for _ in range(taken)]
    assert begun == wanted[full][:taken]
    state = first.state_dict()
    second = StatefulLoader(Numbers(26), 4, seed=2, num_workers=workers)
    second.load_state_dict(state)
    expected = wanted[full][taken:] if taken < 6 else wanted[full + 1]
    assert [batch.tolist() for batch in second] == expected
    assert [batch.tolist() for batch in second] == wanted[full + 1 if taken < 6 else full + 2]
    assert len(second) == 6


def test_a_loader_may_resume_more_than_once_in_an_epoch():
    wanted = epochs(StatefulLoader(Numbers(24), 4, seed=2), 1)[0]
    state, found = {"epoch": 0, "batch": 0}, []
    for _ in range(3):
        loader = StatefulLoader(Numbers(24), 4, seed=2)
        loader.load_state_dict(state)
        running = iter(loader)
        found += [next(running).tolist() for _ in range(2)]
        state = loader.state_dict()
    assert found == wanted


@pytest.mark.parametrize(("size", "batch", "world"), [(3, 4, 1), (15, 8, 2), (0, 1, 1)])
def test_too_few_samples_are_refused_naming_the_key(size, batch, world):
    with pytest.raises(ValueError, match=rf"data\.batch_size={batch} .*{batch * world} samples.*{size}"):
        StatefulLoader(Numbers(size), batch, seed=0, world_size=world)


def test_the_next_batch_is_read_while_one_is_in_use():
    class Slow(Numbers):
        def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
            fetched.append(len(fetched))
            return super().__getitems__(indices)

    fetched: list[int] = []
    running = iter(StatefulLoader(Slow(12), 4, seed=0))
    next(running)
    assert wait_until(lambda: len(fetched) == 2), "the second batch was not read before it was asked for"


def test_reading_takes_no_second_team_of_threads_beside_the_training():
    class Counting(Numbers):
        def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
            return torch.tensor([torch.get_num_threads()])

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [int(batch) for batch in StatefulLoader(Counting(6), 2, seed=0)] == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_while_reading_reaches_the_training():
    class Broken(Numbers):
        def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(iter(StatefulLoader(Broken(12), 4, seed=0)))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()
