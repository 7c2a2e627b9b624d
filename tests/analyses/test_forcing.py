"""Measures along true trajectories are those of their definitions, whatever the trajectories come from."""

import pytest
import torch
from tiny_parts import naming, text_base
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import kl_div

import migm.analyses.forcing as forcing
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.refresh import Interval
from migm.analyses.forcing import Measured, Truth, Walk, batches, divergence, opened
from migm.bases.base import image_rows
from migm.runtime.errors import UserError
from migm.sampling.guidance import Constant
from migm.sampling.loop import guided_logits
from migm.sampling.sampler import Sampler
from migm.trajectories.record import record
from migm.trajectories.replay import replayed
from migm.trajectories.store import Store

MASK = 24


def walked(point: Sampler, truth: Truth) -> Measured:
    walk = Walk([point], truth.order)
    for step in truth.records:
        walk.on_step(step)
    return walk.measured()[0]


def labels(images):
    return images % 10


@pytest.fixture
def point(tiny_base, make_sampling, make_accelerator):
    def make(name="reuse", base=tiny_base, **changes):
        return Sampler(base, make_sampling(guidance=Constant(1.5), **changes), make_accelerator(name))

    return make


def test_divergence_is_that_of_torch():
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 3, 7, generator=source, dtype=torch.float64).mul(3).log_softmax(-1)
    found = divergence(a, b)
    true, predicted = Categorical(logits=a), Categorical(logits=b)
    assert torch.allclose(found.kl, kl_divergence(true, predicted).sum(1))
    assert torch.allclose(found.kl, kl_div(b, a, reduction="none", log_target=True).sum((1, 2)))
    assert torch.allclose(found.entropy, (predicted.entropy() - true.entropy()).sum(1))
    assert found.equal.tolist() == (a.argmax(-1) == b.argmax(-1)).sum(1).tolist()
    assert torch.allclose(found.marginals, torch.stack([a.exp().sum(1), b.exp().sum(1)]))


def test_a_base_at_every_step_is_without_error(point):
    sampler = point("vanilla")
    with torch.inference_mode():
        found = walked(sampler, Truth(sampler.start(torch.arange(3), sampler.noise(0, torch.arange(3)))))
    assert found.values.tolist() == [[[0.0, 0.0, 0.0, 1.0, 0.0]] * 6] * 3
    assert found.since.eq(0).all()


def test_reuse_errs_by_the_distance_of_two_steps(point, run, make_accelerator):
    sampler = point()
    _, records = run(make_accelerator("vanilla"), labels=[0, 1, 2], guidance=Constant(1.5))
    found = walked(sampler, Truth(records))
    assert found.since.tolist() == [[0, 1, 2, 0, 1, 2]] * 3
    base = sampler.base
    for s, step in enumerate(records):
        last = s - int(found.since[0, s])
        masked = (step.tokens_before(MASK) == MASK).nonzero()[:, 1].view(3, -1)
        assert found.rows[:, s].tolist() == [masked.shape[1]] * 3
        true, held = (records[i].features[0] for i in (s, last))
        for image in range(3):
            halves = [image_rows(x, step.branches[0], masked)[image::3] for x in (held, true)]
            expected = (halves[0] - halves[1]).square().sum() / halves[1].square().sum()
            assert float(found.values[image, s, 0]) == pytest.approx(float(expected), abs=1e-12)
        logits = [guided_logits(base, step.branches, [x], masked, Constant(1.5), s, 6) for x in (true, held)]
        p, q = (Categorical(logits=x) for x in logits)
        assert torch.allclose(found.values[:, s, 1], kl_divergence(p, q).mean(1))
        assert torch.allclose(found.values[:, s, 2], (q.entropy() - p.entropy()).mean(1))
        marginals = [Categorical(x.probs.mean(1)).entropy() for x in (p, q)]
        assert torch.allclose(found.values[:, s, 4], marginals[1] - marginals[0])


@pytest.fixture
def truth(point):
    """True trajectories of three images, and what an observer keeps of them."""
    sampler = point("vanilla")
    with torch.inference_mode():
        return Truth(list(sampler.start(torch.arange(3), sampler.noise(0, torch.arange(3)))))


def test_parts_of_the_rows_give_the_same_values(point, truth, monkeypatch):
    whole = walked(point("shortcut"), truth)
    monkeypatch.setattr(forcing, "MOST_LOGITS", 3 * MASK * 2)
    assert torch.allclose(whole.values, walked(point("shortcut"), truth).values, atol=1e-12)


def test_images_are_measured_as_they_are_alone(point, truth):
    together = walked(point("shortcut"), truth)
    sampler, number = point("vanilla"), torch.tensor([1])
    with torch.inference_mode():
        alone = walked(point("shortcut"), Truth(list(sampler.start(number, sampler.noise(0, number)))))
    assert torch.allclose(together.values[1:2], alone.values, atol=1e-9)


@pytest.mark.parametrize("kind", ["classes", "text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, None])
def test_stored_trajectories_give_what_sampled_ones_give(point, make_base, dtype, kind):
    base = make_base(dtype="float32") if kind == "classes" else text_base(dtype="float32")
    inputs = labels if kind == "classes" else lambda images: [["a red truck", "a cat on a mat"][i % 2] for i in images]
    images, sampler = torch.arange(3), point("vanilla", base)
    with torch.inference_mode():
        sampled = walked(point(base=base), Truth(sampler.start(inputs(images), sampler.noise(0, images))))
        kept = record(sampler, images, 0, inputs, 2, dtype)
        stored = walked(point(base=base), Truth(replayed(kept.tensors(), base)))
    assert torch.equal(stored.since, sampled.since)
    rounding = {torch.float32: 1e-5, None: 1e-5, torch.bfloat16: 5e-3, torch.int8: 2e-2}[dtype]
    error, kl = sampled.values[..., 0].max(), sampled.values[..., 1].max()
    assert (stored.values - sampled.values)[..., 0].abs().max() < rounding * max(float(error), 1)
    assert (stored.values - sampled.values)[..., 1].abs().max() < 4 * rounding * max(float(kl), 1)
    assert error > 0.01


def test_an_order_that_a_trajectory_cannot_take_the_place_of_is_refused(point, truth, monkeypatch):
    class Stubborn:
        """Decide by oneself."""

    sampler = point()
    start = Accelerator.start

    def with_order(self, *arguments):
        run = start(self, *arguments)
        run.order = Stubborn()
        return run

    monkeypatch.setattr(Accelerator, "start", with_order)
    with pytest.raises(UserError, match=naming("accelerator=reuse", "Stubborn")):
        walked(sampler, truth)


def stored(folder, sampler, count=5, shard=2):
    header = {"base": sampler.base.fingerprint(), "sampling": sampler.sampling.identity, "copies": 2, "num_steps": 6}
    store = Store(folder, header)
    for images in torch.arange(count).split(shard):
        store.append(record(sampler, images, 0, labels, 2, None))
    return store


def test_the_first_images_of_a_store_come_in_batches(point, tmp_path):
    store = stored(tmp_path, point("vanilla"))
    assert [x["images"].tolist() for x in batches(store, 4, 8)] == [[0, 1], [2, 3]]
    assert [x["images"].tolist() for x in batches(store, 5, 1)] == [[0], [1], [2], [3], [4]]
    assert [x["images"].tolist() for x in batches(store, 3, 2)] == [[0, 1], [2]]


def test_stores_that_do_not_fit_are_refused(point, tmp_path, make_base, make_sampling):
    sampler = point("vanilla")
    stored(tmp_path / "store", sampler)
    folder = tmp_path / "store"
    assert len(opened(folder, 5, [point()])) == 5
    refused = {
        (tmp_path, 5, point()): ["manifest.jsonl", "migm.collect"],
        (folder, 6, point()): ["5 trajectories", "num_images=6"],
        (folder, 5, point(num_steps=7)): ["num_steps=6", "reuse 7,2", "7"],
        (folder, 5, Sampler(make_base(1), point().sampling, point().accelerator)): ["base=", "reuse 6,2"],
        (folder, 5, Sampler(point().base, make_sampling(guidance=None), point().accelerator)): ["sampling="],
    }
    for (place, count, chosen), words in refused.items():
        with pytest.raises(UserError, match=naming("analyses.fidelity.store", *words)):
            opened(place, count, [chosen])


def test_a_policy_of_every_step_is_exact_for_its_predictor(tiny_base, make_sampling, truth):
    always = Sampler(tiny_base, make_sampling(guidance=Constant(1.5)), Accelerator(Interval(1), Reuse(), "reuse"))
    assert walked(always, truth).values[..., :3].eq(0).all()
