"""ML-Cache on a tiny random Lumina-DiMOO: docs/originals/methods.md, Laws 1 to 5, 11, 12."""

import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tiny_parts import composed, moment
from torch.utils._python_dispatch import TorchDispatchMode

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.ml_cache import Subset, num_rows
from migm.accelerators.refresh import Always, WarmupInterval
from migm.accelerators.runners import KeyValues
from migm.bases.base import take
from migm.bases.dimoo import LuminaDiMOO
from migm.bases.llada import LLaDAConfig
from migm.bases.tokenizer import ConvVQ
from migm.config.building import load
from migm.config.points import points
from migm.config.roots import EvaluateConfig
from migm.evaluation.cost import flops
from migm.runtime.errors import UserError
from migm.sampling.draw import InverseCDF
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence

V, L = 24, 16
PROMPTS = ["a red bird on a lake at night, far away, under the moon", "a cat", "an old grey ship in a storm"]
CLOSE = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def make_dimoo():
    def make(n_layers=2, one_pass=False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            names = ("mask", "newline", "answer", "image", "end_image", "end_answer")
            return LuminaDiMOO(
                LLaDAConfig(32, 2, n_layers, 64, 46 + V, 10000.0, 1e-5),
                ConvVQ(V, 4, 8, 1),
                vocab_size=V,
                height=16,
                width=16,
                markers=dict(zip(names, range(40, 46), strict=True)),
                system="",
                random_weights=True,
                one_pass=one_pass,
                dtype="float64",
                device="cpu",
            )

    return make


@pytest.fixture(scope="module")
def dimoo(make_dimoo):
    return make_dimoo()


@pytest.fixture(scope="module")
def sampling():
    return Sampling(8, 8, CosineFloor(), InverseCDF(), Confidence(1.0, "constant"), Constant(2.0))


@pytest.fixture
def sample(dimoo, sampling):
    """Generate images of `prompts`, numbered as there -> tokens and the record of every step."""

    def run(accelerator, prompts=PROMPTS, base=dimoo):
        records, sampler = [], Sampler(base, sampling, accelerator)
        noise = sampler.noise(0, torch.tensor([PROMPTS.index(prompt) for prompt in prompts]))
        return sampler.tokens(prompts, noise, [SimpleNamespace(on_step=records.append)]), records

    return run


def ml_cache(cache_ratio=0.75, warmup_ratio=0.0, refresh_interval=4):
    return Accelerator(WarmupInterval(warmup_ratio, refresh_interval), Subset(cache_ratio), "ml_cache")


def sequences(record):
    """The features of every sequence without its padding: of the conditional ones, then of the others."""
    found = []
    for branch, features in zip(record.branches, record.features, strict=True):
        masks = [slice(None)] * len(features) if branch.mask is None else branch.mask
        found += [f[mask] for f, mask in zip(features, masks, strict=True)]
    return found


@pytest.fixture
def images():
    """Tokens (3, l) of which some are masked, and the same with other tokens at the positions 2 and 7."""
    tokens = torch.randint(0, V + 1, (3, L), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, [2, 7]] = (tokens[:, [2, 7]] + 5) % V
    return tokens, changed


def run_full(base, tokens, branch):
    store, now = KeyValues(), moment(torch.ones(len(tokens)))
    return store, base.features(tokens, branch, now, runner=store.run)


def run_rows(base, store, tokens, branch, rows):
    x, ctx = base.prepare(tokens, branch, moment(torch.ones(len(tokens))), rows)
    return base.finalize(store.run_rows(base.blocks, x, ctx, rows), ctx)


def test_storing_keys_and_values_leaves_the_features_as_they_are(dimoo, images):
    for branch in dimoo.encode(PROMPTS, guided=True):
        _, features = run_full(dimoo, images[0], branch)
        assert torch.equal(features, dimoo.features(images[0], branch, moment(torch.ones(3))))


def test_rows_of_unchanged_tokens_come_out_as_in_the_full_pass_in_any_order(dimoo, images):
    branch = dimoo.encode(PROMPTS, guided=False)[0]
    store, features = run_full(dimoo, images[0], branch)
    length = int(branch.mask.sum(1).min())
    for seed, n in enumerate((1, 5, length)):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.stack([torch.randperm(length, generator=generator)[:n] for _ in PROMPTS])
        torch.testing.assert_close(run_rows(dimoo, store, images[0], branch, rows), take(features, rows), **CLOSE)


def test_all_rows_of_changed_tokens_come_out_as_in_a_full_pass(dimoo, images):
    branch = dimoo.encode(PROMPTS, guided=False)[0]
    store, before = run_full(dimoo, images[0], branch)
    wanted = dimoo.features(images[1], branch, moment(torch.ones(3)))
    rows = torch.arange(wanted.shape[1]).flip(0).expand(3, -1)
    torch.testing.assert_close(run_rows(dimoo, store, images[1], branch, rows), wanted.flip(1), **CLOSE)
    assert (wanted - before)[branch.mask].abs().amax(-1).min() > 1e-6


def test_changed_rows_of_a_single_layer_are_exact(make_dimoo, images):
    base = make_dimoo(n_layers=1)
    branch = base.encode(PROMPTS, guided=False)[0]
    store, _ = run_full(base, images[0], branch)
    wanted = base.features(images[1], branch, moment(torch.ones(3)))
    rows = torch.cat([branch.rows[:, [7, 11, 2]], torch.tensor([[0], [4], [1]])], 1)
    torch.testing.assert_close(run_rows(base, store, images[1], branch, rows), take(wanted, rows), **CLOSE)
    rest = branch.rows[:, [0, 1]]  # what was stored counts for later passes too
    torch.testing.assert_close(run_rows(base, store, images[1], branch, rest), take(wanted, rest), **CLOSE)


def test_of_rows_that_are_not_to_be_kept_nothing_is_stored(dimoo, images):
    branch = dimoo.encode(PROMPTS, guided=False)[0]
    store, _ = run_full(dimoo, images[0], branch)
    other, _ = run_full(dimoo, images[0], branch)
    rows, keep = branch.rows[:, [2, 7]], torch.tensor([[True, False], [False, False], [True, True]])
    x, ctx = dimoo.prepare(images[1], branch, moment(torch.ones(3)), rows)
    store.run_rows(dimoo.blocks, x, ctx, rows, keep)
    for pair, before in zip(store.layers, other.layers, strict=True):
        for stored, old in zip(pair, before, strict=True):
            changed = (stored != old).any(-1).any(1)
            assert {(b, r) for b, r in changed.nonzero().tolist()} == {
                (b, int(rows[b, j])) for b in range(3) for j in range(2) if keep[b, j]
            }


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("settings", [{"cache_ratio": 0.0}, {"refresh_interval": 1}, {"warmup_ratio": 1.0}])
def test_with_nothing_left_out_it_is_vanilla_at_every_step(sample, make_dimoo, settings, one_pass):
    base = make_dimoo(one_pass=one_pass)
    tokens, records = sample(ml_cache(**settings), base=base)
    wanted, vanilla = sample(Accelerator(Always()), base=base)
    assert torch.equal(tokens, wanted)
    for ours, theirs in zip(records, vanilla, strict=True):
        for a, b in zip(sequences(ours), sequences(theirs), strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_cheap_step_changes_the_rows_least_confident_at_the_step_before_and_no_others(sample, make_dimoo, one_pass):
    base = make_dimoo(one_pass=one_pass)
    _, records = sample(ml_cache(), base=base)
    assert [record.index for record in records if record.is_full] == [0, 4]
    _, vanilla = sample(Accelerator(Always()), base=base)
    assert all(torch.equal(a, b) for a, b in zip(sequences(records[0]), sequences(vanilla[0]), strict=True))
    changed = 0
    for last, now in pairwise(records):
        for before, after in zip(sequences(last), sequences(now), strict=True):
            lowest = base.head(before[None])[0].amax(-1).argsort()[: num_rows(len(before), 0.75)]
            others = torch.ones(len(before), dtype=torch.bool).index_fill(0, lowest, False)
            assert torch.equal(after[others], before[others]) is not now.is_full
            changed += not now.is_full and not torch.allclose(after[lowest], before[lowest], atol=1e-4)
    assert changed > 6  # of 36: the rest had no new token among their rows


def test_cheap_steps_work_on_the_current_tokens(sample, dimoo):
    """Every cheap step, made again from the recorded tokens with a store of the test's own."""
    _, records = sample(ml_cache(), PROMPTS[:1])
    branch = records[0].branches[0]
    store, stored = run_full(dimoo, torch.full((1, L), V), branch)
    for last, now in pairwise(records[:4]):
        rows = dimoo.head(stored).amax(-1).argsort(1)[:, : num_rows(stored.shape[1], 0.75)]
        new = run_rows(dimoo, store, last.tokens, branch, rows)
        stored = stored.scatter(1, rows[..., None].expand_as(new), new)
        torch.testing.assert_close(now.features[0], stored, **CLOSE)


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_batch_of_prompts_of_several_lengths_equals_one_by_one(sample, make_dimoo, one_pass):
    base = make_dimoo(one_pass=one_pass)
    tokens, records = sample(ml_cache(), base=base)
    assert records[0].branches[0].mask is not None
    assert len({num_rows(len(f), 0.75) for f in sequences(records[0])}) == 3
    for b, prompt in enumerate(PROMPTS):
        alone, own = sample(ml_cache(), [prompt], base=base)
        assert torch.equal(alone[0], tokens[b])
        for ours, theirs in zip(own, records, strict=True):
            for a, c in zip(sequences(ours), sequences(theirs)[b::3], strict=True):
                torch.testing.assert_close(a, c, **CLOSE)


def test_both_halves_in_one_pass_equal_two_passes(sample, make_dimoo):
    two, apart = sample(ml_cache())
    one, together = sample(ml_cache(), base=make_dimoo(one_pass=True))
    assert torch.equal(one, two)
    for a, b in zip(together, apart, strict=True):
        assert [len(r.features) for r in (a, b)] == [1, 2]
        for x, y in zip(sequences(a), sequences(b), strict=True):
            torch.testing.assert_close(x, y, **CLOSE)


def test_a_second_generation_begins_anew_and_tokens_stay_once_revealed(sample):
    accelerator = ml_cache()
    first, records = sample(accelerator)
    assert torch.equal(sample(accelerator)[0], first)
    for last, now in pairwise(records):
        assert torch.equal(now.tokens[last.tokens < V], last.tokens[last.tokens < V])


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_cheap_step_never_waits_for_the_device(make_dimoo, images, one_pass):
    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    base = make_dimoo(one_pass=one_pass)
    for branch in base.encode(PROMPTS, guided=True):
        state = Subset(0.75).start(base, branch)
        state.update(0, base.features(images[0], branch, moment(torch.ones(3)), runner=state.runner(0)))
        with Waits():
            state.predict(1, images[1], torch.tensor([[2, 7]] * 3), moment(torch.ones(3)))


def test_operations_are_those_of_the_computed_rows(dimoo, sampling):
    def count(accelerator):
        return flops(Sampler(dimoo, sampling, accelerator), lambda images: [PROMPTS[i] for i in images])

    c, hidden, depth, left = 32, 64, 2, 0
    for branch in dimoo.encode(PROMPTS[:1], guided=True):
        t = branch.condition.shape[1] + dimoo.layout.num_rows
        n = num_rows(t, 0.75)
        left += (t - n) * depth * (4 * c * c + 3 * c * hidden + 2 * t * c) * 6  # six cheap steps
        left -= 6 * n * c * V + 2 * t * c * V  # confidence: of every row after a full step, then of the new ones
    assert count(Accelerator(Always())) - count(ml_cache()) == 2 * left
    assert count(ml_cache()) < 0.6 * count(Accelerator(Always()))


@pytest.mark.parametrize("cache_ratio", [0.0, 0.25, 0.75, 0.8, 0.9, 1.0])
def test_as_many_rows_as_lie_up_to_the_quantile(cache_ratio):
    for length in [*range(1, 60), 4178, 4261, 4264]:
        ranks = torch.arange(length).float()
        assert num_rows(length, cache_ratio) == int((ranks <= ranks.quantile(1 - cache_ratio)).sum())
    assert num_rows(4264, 0.9) == 427


class Shut:
    """A base that offers no layers."""

    def __init__(self, base):
        self.base = base

    def __getattr__(self, name):
        if name == "blocks":
            raise AttributeError(name)
        return getattr(self.base, name)


def test_a_base_without_layers_is_refused_by_name(run, tiny_base):
    message = "accelerator=ml_cache works on the layers of a base, which Shut does not offer"
    with pytest.raises(UserError, match=re.escape(message)):
        run(ml_cache(), base=Shut(tiny_base))


def test_a_point_needs_n_alone_and_has_its_policys_own_number_of_full_steps(tiny_base):
    known = {"ml_cache": 28, "ml_cache_w01": 18, "ml_cache_w0": 13}
    cfg = composed("evaluate", *(f"+points.{name}=[64]" for name in known))
    for chosen, (name, full) in zip(points(cfg, load(cfg, EvaluateConfig)), known.items(), strict=True):
        sampler = Sampler(tiny_base, *chosen)
        assert (sampler.num_full_steps, sampler.label) == (full, f"{name} 64,{full}")
        assert sampler.accelerator.predictor.cache_ratio == 0.9
