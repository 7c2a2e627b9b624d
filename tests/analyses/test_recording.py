"""What analyses see is what the loop did, and forks part exactly where they should."""

import pytest
import torch

from migm.analyses.recording import ForkedNoise, Setting, cosine, record, step_lengths
from migm.bases.base import image_rows
from migm.bases.inputs import Classes
from migm.sampling.noise import KeyedNoise
from migm.sampling.sampler import Sampler

IMAGES = torch.arange(3)


def setting(base, sampling) -> Setting:
    return Setting(Sampler(base, sampling), Classes(10), [], 0)


def test_the_record_is_the_conditional_half_of_every_step(tiny_base, make_sampling, run, make_accelerator):
    found = record(setting(tiny_base, make_sampling()), IMAGES)
    _, records = run(make_accelerator("vanilla"), labels=IMAGES.tolist())
    assert found.features.shape == (3, 6, 16, 48)
    for step, kept in enumerate(records):
        rows = image_rows(kept.features[0], kept.branches[0])[:3].float()
        assert torch.equal(found.features[:, step], rows)
        embedded = torch.zeros(3, 16, 48)
        for image in range(3):
            for position in kept.new_positions[image].tolist():
                ids = kept.tokens[image, position].view(1, 1)
                embedded[image, position] = tiny_base.transformer.embed(ids, torch.tensor([[position]]))[0, 0]
        assert torch.allclose(found.revealed[:, step], embedded, atol=1e-6)


def test_a_fork_shares_all_features_up_to_its_step_and_draws_other_tokens_from_it_on(tiny_base, make_sampling):
    known = setting(tiny_base, make_sampling())
    trunk, fork = record(known, IMAGES), record(known, IMAGES, (2, 1))
    again = record(known, IMAGES, (2, 1))
    assert torch.equal(fork.features, again.features)
    assert torch.equal(trunk.features[:, :3], fork.features[:, :3])
    assert torch.equal(trunk.revealed[:, :2], fork.revealed[:, :2])
    assert (trunk.revealed[:, 2] != fork.revealed[:, 2]).flatten(1).any(1).all()
    assert (trunk.features[:, 3] != fork.features[:, 3]).flatten(1).any(1).all()
    assert not torch.equal(fork.features, record(known, IMAGES, (2, 2)).features)


def test_forked_noise_changes_at_its_step():
    one, two, places = KeyedNoise(0, IMAGES), KeyedNoise(9, IMAGES), torch.arange(4).expand(3, -1)
    forked = ForkedNoise(one, two, 3)
    for step, source in ((2, one), (3, two), (7, two)):
        assert torch.equal(forked.uniform(0, step, places, 5), source.uniform(0, step, places, 5))
        assert torch.equal(forked.gumbel(1, step, places), source.gumbel(1, step, places))


def test_lengths_and_cosines_are_those_of_vectors():
    features = torch.zeros(1, 3, 2, 2)
    features[0, 1], features[0, 2, 0, 0] = 3.0, 3.0
    assert step_lengths(features)[0].tolist() == pytest.approx([6.0, 27**0.5])
    found = cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([2.0, 2.0]))
    assert found.tolist() == pytest.approx([0.5**0.5, 1.0])
