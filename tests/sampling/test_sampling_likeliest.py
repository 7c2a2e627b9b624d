"""Drawing among the likeliest tokens alone."""

import torch

from migm.sampling.draw import GumbelMax, Likeliest
from migm.sampling.noise import KeyedNoise


def logits(*rows):
    return torch.tensor([rows])


def test_only_the_likeliest_tokens_are_drawn():
    values = logits([2.0, 1.0, 0.5, -1.0], [0.0, 3.0, 2.9, 1.0])
    kept = Likeliest(top_k=2).kept(values)
    assert kept.isfinite().tolist() == [[[True, True, False, False], [False, True, True, False]]]
    # Of the first row the probabilities are 0.61, 0.22, 0.14, 0.03.
    for top_p, number in ((0.5, 1), (0.61, 2), (0.7, 2), (0.9, 3), (0.999, 4), (1.0, 4)):
        assert int(Likeliest(top_p=top_p).kept(values)[0, 0].isfinite().sum()) == number
    assert torch.equal(Likeliest(temperature=2.0).kept(values), values / 2)
    noise, positions = KeyedNoise(0, torch.arange(1)), torch.arange(2)[None]
    plain = GumbelMax()(values, noise, 0, positions)
    assert all(torch.equal(a, b) for a, b in zip(Likeliest()(values, noise, 0, positions), plain, strict=True))
