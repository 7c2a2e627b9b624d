"""The recorder: what it keeps of one generation, and how recordings are joined."""

import pytest
import torch
from tiny_parts import Apart, synthetic

from migm.bases.base import image_rows
from migm.runtime.errors import UserError
from migm.sampling.schedule import CosineFloor
from migm.trajectories.record import Recorder, Trajectories

IMAGES = torch.tensor([4, 9])


def recorded(run, accelerator, **more):
    """Trajectories of two images, their tokens, and the records of every step."""
    recorder = Recorder(torch.float64)
    tokens, records = run(accelerator, observers=[recorder], **more)
    return recorder.trajectories(IMAGES[: len(tokens)]), tokens, records


@pytest.mark.parametrize("name", ["vanilla", "shortcut"])
def test_one_branch_of_two_copies_is_kept_half_by_half(run, make_accelerator, name):
    made, tokens, records = recorded(run, make_accelerator(name))
    assert made.features.shape == (2, 2, 6, 17, 48)
    for record in records:
        for half, features in enumerate(record.features[0].chunk(2)):
            assert torch.equal(made.features[:, half, record.index], features)
    assert made.conditions.tolist() == [[[3], [10]], [[7], [10]]]
    assert made.images.tolist() == [4, 9]
    assert torch.equal(made.tokens.long(), tokens)
    for record in records:
        assert torch.equal((made.order == record.index).nonzero()[:, 1].view(2, -1), record.new_positions)


def test_no_guidance_is_one_copy(run, make_accelerator):
    made, _, records = recorded(run, make_accelerator("vanilla"), guidance=None)
    assert made.features.shape == (2, 1, 6, 17, 48)
    assert torch.equal(made.features[:, 0, 2], records[2].features[0])
    assert made.conditions.tolist() == [[[3]], [[7]]]


def test_two_branches_of_different_length_are_padded_to_the_longer(run, tiny_base, make_accelerator):
    labels = (3, 8)  # sequences of 20 and 17 rows, and of 17 unconditional ones
    made, tokens, records = recorded(run, make_accelerator("vanilla"), base=Apart(tiny_base), labels=labels)
    assert made.features.shape == (2, 2, 6, 20, 48)
    assert made.conditions.tolist() == [[[3] * 4, [10, -1, -1, -1]], [[8, -1, -1, -1], [10, -1, -1, -1]]]
    for record in records:
        conditional, unconditional = record.features
        assert torch.equal(made.features[:, 0, record.index], conditional)
        assert torch.equal(made.features[:, 1, record.index, :17], unconditional)
    whole, same_tokens, _ = recorded(run, make_accelerator("vanilla"), labels=labels)
    assert torch.equal(tokens, same_tokens)
    assert torch.equal(made.order, whole.order)
    for half in range(2):  # what the conditions give back is where the image lies
        branch = Apart(tiny_base).branch(made.conditions[:, half].long(), 20)
        for step in range(6):
            torch.testing.assert_close(
                image_rows(made.features[:, half, step], branch), whole.features[:, half, step, :16]
            )


def test_a_step_that_reveals_nothing_is_recorded(run, make_accelerator):
    made, _, _ = recorded(run, make_accelerator("vanilla"), num_steps=16, schedule=CosineFloor())
    counts = CosineFloor().counts(16, 16)
    assert made.features.shape[2] == 16
    assert [(made.order == s).sum(1).tolist() for s in range(16)] == [[count] * 2 for count in counts]


class Ties:
    """Scores that are all the same."""

    rule = "cutoff"

    def __call__(self, log_prob, noise, step, num_steps, positions):
        return torch.zeros_like(log_prob)


def test_a_generation_that_ended_early_is_refused(run, make_accelerator):
    """Its steps would not be those of the others in a store."""
    with pytest.raises(UserError, match=r"1 of sampling\.num_steps=6 steps.*sampling\.select\.rule=count"):
        recorded(run, make_accelerator("vanilla"), labels=(3,), select=Ties())


def test_without_a_generation_there_is_nothing_to_give():
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        Recorder().trajectories(IMAGES)


def test_features_are_kept_in_the_recorders_dtype(run, make_accelerator):
    recorder = Recorder()
    run(make_accelerator("vanilla"), observers=[recorder])
    made = recorder.trajectories(IMAGES)
    assert (made.features.dtype, made.conditions.dtype, made.order.dtype) == (torch.bfloat16, torch.int32, torch.int16)


def test_joining_keeps_every_image_and_pads_the_shorter_sequences():
    parts = [synthetic([1, 2]), synthetic([7], rows=12), synthetic([5], rows=11)]
    whole = Trajectories.join(parts)
    assert whole.features.shape == (4, 2, 4, 12, 4)
    assert whole.conditions.tolist() == [
        [[1, -1, -1], [10, -1, -1]],
        [[2, -1, -1], [10, -1, -1]],
        [[7, 7, 7], [10, -1, -1]],
        [[5, 5, -1], [10, -1, -1]],
    ]
    assert whole.images.tolist() == [1, 2, 7, 5]
    start = 0
    for part in parts:
        here = slice(start, start + len(part.images))
        assert torch.equal(whole.features[here, ..., : part.features.shape[3], :], part.features)
        assert torch.equal(whole.tokens[here], part.tokens)
        assert torch.equal(whole.order[here], part.order)
        start = here.stop
    for name, tensor in whole.tensors().items():
        assert tensor.dtype == getattr(parts[0], name).dtype, name


def test_joining_sequences_of_one_length_adds_nothing():
    whole, parts = Trajectories.join([synthetic([1]), synthetic([2, 3])]), synthetic([1, 2, 3])
    assert all(torch.equal(tensor, parts.tensors()[name]) for name, tensor in whole.tensors().items())
