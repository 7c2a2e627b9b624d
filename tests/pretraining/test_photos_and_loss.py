"""What pretraining sees of a photo, and what it asks the base to predict."""

import torch

from migm.bases.transformer import MaskTransformer
from migm.cifar10.classes import augment
from migm.pretraining.masked import BaseSettings, MaskedModule


def test_augmented_photos_are_flipped_and_shifted_by_up_to_two_pixels():
    photos = torch.arange(32, dtype=torch.uint8).expand(200, 3, 32, 32).clone()  # columns count up
    seen = augment(photos, torch.Generator().manual_seed(0))
    assert (seen.dtype, seen.shape) == (torch.uint8, photos.shape)
    assert torch.equal(seen, augment(photos, torch.Generator().manual_seed(0)))
    middle = seen[:, 0, 0, 15:17].int()
    flipped = middle[:, 1] < middle[:, 0]
    assert 60 < flipped.sum() < 140
    assert set((middle[~flipped, 0] - 15).tolist()) == {-2, -1, 0, 1, 2}


def test_known_and_masked_tokens_are_both_learned():
    torch.manual_seed(0)
    net = MaskTransformer(16, 8, 10, channels=24, depth=1, num_heads=2, mlp_channels=24)
    module = MaskedModule(net, 0, BaseSettings())
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    tokens, labels = torch.randint(0, 8, (6, 2, 16)), torch.zeros(6, dtype=torch.long)
    loss = float(module.training_step((tokens, labels), 0).detach())
    low, high = sorted((logged["train/known"], logged["train/masked"]))
    assert low < loss < high
