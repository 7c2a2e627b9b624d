"""Keyed noise: a pure function of its keys, uniform, and unrelated between neighbouring keys."""

import math

import pytest
import torch
from scipy import stats

from migm.sampling import noise as noise_module
from migm.sampling.noise import DRAW, SELECT, DrawnAhead, KeyedNoise, to_gumbel

AXES = ["seed", "image", "purpose", "step", "position"]
WORD = (1 << 64) - 1


@pytest.fixture(scope="module")
def cube():
    """Values over neighbouring (seed, image, purpose, step, position)."""
    positions = torch.arange(64).expand(16, -1)
    seeds = []
    for seed in range(4):
        noise = KeyedNoise(seed, torch.arange(16))
        steps = [torch.stack([noise.uniform(p, s, positions) for s in range(8)], 1) for p in (DRAW, SELECT)]
        seeds.append(torch.stack(steps, 1))
    return torch.stack(seeds)


def splitmix(x):
    """Steele et al.'s finaliser on Python integers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


@pytest.mark.parametrize("kind", ["uniform", "gumbel"])
@pytest.mark.parametrize("width", [None, 5])
def test_noise_does_not_depend_on_batch_order_or_size_or_on_the_other_positions(kind, width):
    images = torch.tensor([4, 0, 77, 10**12])
    positions = torch.tensor([[3, 9, 1, 60]]).expand(4, -1)
    whole = getattr(KeyedNoise(5, images), kind)(SELECT, 2, positions, width)
    assert whole.shape == ((4, 4) if width is None else (4, 4, 5))
    assert whole.dtype == torch.float64
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(getattr(KeyedNoise(5, images[order]), kind)(SELECT, 2, positions, width), whole[order])
    alone = getattr(KeyedNoise(5, images[2:3]), kind)(SELECT, 2, positions[:1, [3, 1]], width)
    assert torch.equal(alone[0], whole[2, [3, 1]])


def test_each_row_may_ask_for_positions_of_its_own():
    noise = KeyedNoise(0, torch.arange(2))
    every = noise.uniform(DRAW, 0, torch.arange(8).expand(2, -1))
    positions = torch.tensor([[1, 7], [0, 2]])
    assert torch.equal(noise.uniform(DRAW, 0, positions), every.gather(1, positions))


@pytest.mark.parametrize("width", [None, 3])
def test_noise_is_splitmix64_of_its_keys(width):
    """Results can be reproduced only as long as these bits stay what they are."""
    golden, seed, image, step, position = 0x9E3779B97F4A7C15, 7, 123, 4, 9
    key = splitmix(splitmix((image * golden + seed) & WORD) + golden & WORD)
    bits = splitmix(splitmix(key + 2 * step + SELECT + 1 & WORD) + position * 0x632BE59BD9B4E019 & WORD)
    words = [bits] if width is None else [splitmix(bits + (i + 1) * golden & WORD) for i in range(width)]
    got = KeyedNoise(seed, torch.tensor([image])).uniform(SELECT, step, torch.tensor([[position]]), width)
    assert got.flatten().tolist() == [((word >> 12) + 0.5) / 2**52 for word in words]


@pytest.mark.parametrize("bits", [0, -1, 1 << 62, -(1 << 63)])
def test_noise_lies_strictly_between_0_and_1_for_every_pattern_of_bits(monkeypatch, bits):
    noise = KeyedNoise(0, torch.arange(1))
    monkeypatch.setattr(noise_module, "_mix", lambda x: torch.full_like(x, bits))
    positions = torch.zeros(1, 1, dtype=torch.int64)
    assert 0 < noise.uniform(DRAW, 0, positions).item() < 1
    assert math.isfinite(noise.gumbel(DRAW, 0, positions).item())


def test_noise_is_uniform(cube):
    assert stats.kstest(cube.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest((cube * 2**20 % 1).flatten().numpy(), "uniform").pvalue > 1e-3  # low bits as well


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("distance", [1, "all"])
def test_neighbouring_keys_give_unrelated_noise(cube, axis, distance):
    dim = AXES.index(axis)
    size = cube.shape[dim]
    far = 1 if distance == 1 else size - 1
    a, b = cube.narrow(dim, 0, size - far).flatten(), cube.narrow(dim, far, size - far).flatten()
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    assert abs(correlation) < 4 / math.sqrt(len(a))
    assert (a != b).all()


def test_no_two_keys_share_a_value(cube):
    assert len(cube.unique()) == cube.numel()


def test_every_vocabulary_entry_has_noise_of_its_own():
    noise = KeyedNoise(3, torch.arange(4))
    wide = noise.uniform(DRAW, 1, torch.arange(32).expand(4, -1), 64)
    assert len(wide.unique()) == wide.numel()
    assert stats.kstest(wide.flatten().numpy(), "uniform").pvalue > 1e-3
    for a, b in [(wide[..., 1:], wide[..., :-1]), (wide[:, 1:], wide[:, :-1]), (wide[1:], wide[:-1])]:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        assert abs(correlation) < 4 / math.sqrt(a.numel())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, 1 - 2.0**-12, 1 - 2.0**-53])
def test_gumbel_noise_is_finite_in_every_dtype(dtype, uniform):
    noise = to_gumbel(torch.tensor([uniform], dtype=torch.float64), dtype)
    assert noise.dtype == dtype
    assert noise.isfinite().all()


def test_bfloat16_gumbel_noise_has_the_published_ends():
    """docs/originals/dimoo.md, Gumbel noise; what rounds to 1 counts as 0."""
    noise = to_gumbel(torch.tensor([0.0, 255 / 256, 1 - 2.0**-12], dtype=torch.float64), torch.bfloat16)
    assert noise.tolist() == [-3.828125, 5.53125, -3.828125]


def test_gumbel_noise_of_every_dtype_comes_from_the_same_uniforms():
    noise, positions = KeyedNoise(3, torch.arange(4)), torch.arange(64).expand(4, -1)
    exact = -torch.log(-torch.log(noise.uniform(SELECT, 2, positions, 3)))
    torch.testing.assert_close(noise.gumbel(SELECT, 2, positions, 3), exact)
    single = noise.gumbel(SELECT, 2, positions, 3, torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


def test_gumbel_noise_has_the_gumbel_distribution():
    sample = KeyedNoise(1, torch.arange(40)).gumbel(SELECT, 0, torch.arange(1000).expand(40, -1)).flatten()
    n = len(sample)
    assert stats.kstest(sample.numpy(), "gumbel_r").pvalue > 1e-3
    assert abs(sample.mean().item() - 0.5772156649) < 4 * math.pi / math.sqrt(6 * n)
    # The fourth central moment of a Gumbel is 5.4 variances squared.
    assert abs(sample.var().item() - math.pi**2 / 6) < 4 * math.pi**2 / 6 * math.sqrt(4.4 / n)


@pytest.mark.parametrize("purpose", [DRAW, SELECT])
def test_noise_drawn_ahead_is_the_same(purpose):
    noise = KeyedNoise(7, torch.tensor([4, 1, 900]))
    ahead = DrawnAhead(noise, num_steps=5, num_tokens=12)
    positions = torch.tensor([[0, 3, 11], [1, 2, 5], [6, 7, 8]])
    for step in (0, 4, 2):
        assert torch.equal(ahead.uniform(purpose, step, positions), noise.uniform(purpose, step, positions))
        for dtype in (torch.float64, torch.bfloat16):
            drawn, expected = (n.gumbel(purpose, step, positions, dtype=dtype) for n in (ahead, noise))
            assert torch.equal(drawn, expected)
            assert drawn.dtype == dtype
        wide = [n.gumbel(purpose, step, positions, 6, torch.float32) for n in (ahead, noise)]
        assert torch.equal(*wide)
