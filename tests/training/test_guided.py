"""Guided logits of both halves in a training step: values, gradients, memory, roll-outs, what is logged and refused."""

import pytest
import torch
from tiny_parts import collected, naming, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from migm.analyses.forcing import MEASURES, compare
from migm.bases.base import Moment, StepRecord
from migm.config.building import build
from migm.runtime.errors import UserError
from migm.sampling.guidance import Constant, Ramp
from migm.sampling.loop import Sampling, guided_logits
from migm.sampling.sampler import Sampler
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training import guided
from migm.training.guided import FIDELITY, fidelity
from migm.training.objective import FeatureLoss, Mixture, made_ready
from migm.training.rollout import Rollout, Situation, predict
from migm.training.run import Training
from migm.training.terms.guided_kl import GuidedKL
from migm.training.terms.marginal import Marginal
from migm.training.terms.squared_error import SquaredError
from migm.trajectories.collect import collect
from migm.trajectories.dataset import PairDataset

MASK = 24  # the tiny base's vocabulary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The tiny base in float32 and its pairs, halves together."""
    config = tiny(tmp_path_factory.mktemp("guided"))
    sampler = Sampler(build(config.base), build(config.sampling))
    return sampler, PairDataset(collect(sampler, build(config.data), config.seed), together=True)


@pytest.fixture
def shortcut():
    torch.manual_seed(0)
    return MaskGITShortcut(48, num_heads=2)


def mixture(guidance, **terms):
    return made_ready(Mixture(terms), guidance)


def by_hand(sampler, shortcut, batch, guidance):
    """(true, predicted) logarithms of probabilities of every image, over its masked positions alone, from the loop."""
    base, half, both = sampler.base, len(batch.steps) // 2, []
    after = predict(shortcut, base, Situation.of(batch, base))
    for image in range(half):
        rows = [image, half + image]
        branches = [base.branch(batch.conditions[[row]]) for row in rows]
        masked = batch.masked[image].nonzero().T
        features = [[x[[row]].to(base.dtype) for row in rows] for x in (batch.target, after)]
        shown = (masked, guidance, int(batch.steps[image]) + 1, batch.num_steps)
        both.append([guided_logits(base, branches, x, *shown)[0].log_softmax(-1) for x in features])
    return both


@pytest.mark.parametrize("guidance", [Constant(2.0), Constant(1.5, "logits"), Ramp(3.0), Constant(0.0)])
def test_the_guided_kl_is_that_of_the_loop_s_logits_at_the_step_of_each_image(run, shortcut, guidance):
    sampler, pairs = run
    batch = pairs.__getitems__([0, 7, 13, 24])  # of several steps
    loss, log = mixture(guidance, kl=GuidedKL(0.5))(shortcut, sampler.base, batch)
    rows = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in by_hand(sampler, shortcut, batch, guidance)])
    assert len(rows) == int(batch.masked.sum()) // 2
    assert float(log["kl"]) == pytest.approx(float(rows.mean().detach()), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(0.5 * float(log["kl"]))


def test_rows_that_the_next_step_reveals_are_those_of_the_order(run, shortcut):
    sampler, pairs = run
    index = [0, 7, 13, 24]
    batch = pairs.__getitems__(index)
    log = mixture(Constant(2.0), kl=GuidedKL(0.5, floor=0.0))(shortcut, sampler.base, batch)[1]
    total = 0.0
    for image, (p, q) in enumerate(by_hand(sampler, shortcut, batch, Constant(2.0))):
        following = pairs.__getitems__([index[image] + 1]).new[0] if index[image] % 5 < 4 else batch.masked[image]
        soon = following[batch.masked[image]]
        total += len(soon) * float((p.exp() * (p - q)).sum(-1)[soon].mean())
    assert float(log["kl"]) == pytest.approx(total / (int(batch.masked.sum()) // 2), rel=1e-4)


def test_measures_are_those_of_the_analysis_on_the_same_step(run, shortcut):
    sampler, pairs = run
    base, found = sampler.base, []
    for step in range(5):
        batch = pairs.__getitems__([step, 5 + step, 15 + step])
        branches = [base.branch(half) for half in batch.conditions.chunk(2)]
        masked = batch.masked[:3].nonzero()[:, 1].view(3, -1)
        moment = Moment.at(step + 1, 6, batch.masked[:3].float().mean(1))
        record = StepRecord(step + 1, False, branches, batch.target.chunk(2), batch.tokens[:3], masked[:, :0], moment)
        record.features = [x.to(base.dtype) for x in record.features]
        with torch.no_grad():
            after = predict(shortcut, base, Situation.of(batch, base)).to(base.dtype).chunk(2)
        found.append(compare(sampler, record, [after], masked)[0])
        values = fidelity(shortcut, base, batch, sampler.sampling.guidance)
        for name in FIDELITY:
            wanted = found[-1][:, MEASURES.index(name)].mean()
            torch.testing.assert_close(values[f"fidelity_{name}"], wanted, rtol=1e-5, atol=1e-6)
        kl = mixture(sampler.sampling.guidance, kl=GuidedKL())(shortcut, base, batch)[1]["kl"]
        assert float(kl) == pytest.approx(float(values["fidelity_kl"]), rel=1e-5)
    mixed = fidelity(shortcut, base, pairs.__getitems__([i + s for s in range(5) for i in (0, 5, 15)]), Constant(2.0))
    wanted = torch.cat(found).mean(0)  # every image and step counts once
    for name in FIDELITY:
        torch.testing.assert_close(mixed[f"fidelity_{name}"], wanted[MEASURES.index(name)], rtol=1e-5, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes sizes of tensors of logits: the largest, and the most that are alive at a time."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self.largest = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.ndim == 3 and x.shape[-1] == MASK and x.dtype == torch.float64:
                storage = x.untyped_storage()
                self.alive[storage._cdata] = (torch.multiprocessing.reductions.StorageWeakRef(storage), x.numel())
                self.largest = max(self.largest, x.numel())
        self.alive = {key: each for key, each in self.alive.items() if not each[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


def gradients(objective, shortcut, base, batch):
    shortcut.zero_grad()
    with Largest() as seen:
        loss, log = objective(shortcut, base, batch)
        loss.backward()
    return [loss.detach(), *log.values(), *(p.grad.clone() for p in shortcut.parameters())], seen


def test_few_logits_are_alive_and_gradients_are_those_of_all_at_once(run, shortcut, monkeypatch):
    sampler, pairs = run
    batch = pairs.__getitems__(range(0, 20, 2))
    objective = mixture(Constant(2.0), error=SquaredError(3.0), kl=GuidedKL(0.1, 0.2), marginal=Marginal())
    whole, everything = gradients(objective, shortcut, sampler.base, batch)
    part = 2 * 10 * MASK  # two positions of every image
    monkeypatch.setattr(guided, "MOST_LOGITS", part)
    parts, few = gradients(objective, shortcut, sampler.base, batch)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert everything.largest == batch.most_masked * 10 * MASK > 5 * part
    assert few.largest == part
    assert few.most <= 16 * part < everything.most


def test_the_gradient_of_a_batch_is_the_mean_of_its_parts_by_their_rows(run, shortcut):
    """So that processes with a share of the batch each train as one."""
    sampler, pairs = run
    terms = {"error": SquaredError(3.0, 0.1), "kl": GuidedKL(0.1, 0.2), "marginal": Marginal()}
    objective, net = mixture(Constant(2.0), **terms), shortcut.double()
    found = []
    for index in ([0, 7, 13, 24], [0, 7], [13, 24]):
        values, _ = gradients(objective, net, sampler.base, pairs.__getitems__(index))
        found.append((float(values[4]), torch.cat([x.flatten().double() for x in values[5:]])))  # rows, then the rest
    (rows, whole), *parts = found
    assert rows == sum(share for share, _ in parts)
    mean = sum(share / rows * values for share, values in parts)
    torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)


def test_without_guidance_guided_terms_are_plain_ones(run, shortcut):
    """The trajectories have one half then; these take the conditional one."""
    sampler, pairs = run
    batch = pairs.__getitems__([0, 7, 13, 24])
    tensors = {n: x[:4] for n, x in batch._asdict().items() if isinstance(x, torch.Tensor)}
    one = batch._replace(**tensors, lengths=batch.lengths[:4], host_steps=batch.host_steps[:4], halves_together=1)
    log = mixture(None, kl=GuidedKL())(shortcut, sampler.base, one)[1]
    plain = FeatureLoss(kl_weight=1.0)(shortcut, sampler.base, one)[1]
    torch.testing.assert_close(log["kl"], plain["logit_kl"], rtol=1e-5, atol=1e-6)
    guided_log = mixture(Constant(0.0), kl=GuidedKL())(shortcut, sampler.base, batch)[1]
    torch.testing.assert_close(guided_log["kl"], plain["logit_kl"], rtol=1e-5, atol=1e-6)


def rollout(sampling: Sampling, **changes) -> Rollout:
    return Rollout(3, sampling.num_steps, sampling.schedule, sampling.draw, sampling.select, **changes)


def test_a_rollout_gives_both_halves_the_tokens_that_guided_logits_draw(run, shortcut):
    sampler, pairs = run
    base = sampler.base
    batch = pairs.__getitems__([0, 6, 13, 19, 24])  # of all steps, the last of which does not go on
    now, target = rollout(sampler.sampling)(shortcut, base, batch, 2, guidance=Constant(2.0))
    for x in (now.tokens, now.new, now.masked, now.steps):
        assert torch.equal(x[:5], x[5:])
    assert now.steps[:5].tolist() == [3, 4, 5, 5, 5]
    assert (now.masked.sum(1) < batch.masked.sum(1))[:3].all()
    again = rollout(sampler.sampling)(shortcut, base, batch, 2, guidance=Constant(2.0))[0]
    assert torch.equal(now.tokens, again.tokens)
    other = rollout(sampler.sampling)(shortcut, base, batch, 2, guidance=Constant(40.0))[0]
    assert not torch.equal(now.tokens, other.tokens)
    alone = rollout(sampler.sampling)(shortcut, base, batch._replace(halves_together=0), 2, guidance=Constant(2.0))[0]
    assert not torch.equal(alone.tokens[:5], alone.tokens[5:])
    branch = base.branch(batch.conditions)
    with torch.no_grad():
        true = base.features(now.tokens, branch, Moment(now.mask_ratio, now.steps, 6))
    torch.testing.assert_close(target[:3], true[:3].to(target.dtype))


def test_a_rollout_of_one_image_draws_what_a_guided_step_draws(run, shortcut, make_accelerator):
    """One step from the first true features, against the loop itself with the same noise."""
    sampler, pairs = run
    base, sampling = sampler.base, sampler.sampling
    batch = pairs.__getitems__([0])
    now, _ = rollout(sampling)(shortcut, base, batch, 1, guidance=Constant(2.0))
    after = predict(shortcut, base, Situation.of(batch, base)).detach().to(base.dtype)
    noise, count = guided_noise(1), sampling.schedule.counts(16, 6)[1]
    masked = batch.masked[0].nonzero().T
    branches = [base.branch(half) for half in batch.conditions.chunk(2)]
    logits = guided_logits(base, branches, list(after.chunk(2)), masked, Constant(2.0), 1, 6)
    drawn, log_prob = sampling.draw(logits, noise, 1, masked, 6)
    scores = sampling.select(log_prob, noise, 1, 6, masked)
    best = scores[0].topk(count).indices
    assert sorted(masked[0, best].tolist()) == now.new[0].nonzero()[:, 0].tolist()
    assert torch.equal(now.tokens[0, masked[0, best]], drawn[0, best])


def guided_noise(iteration: int):
    from migm.sampling.noise import KeyedNoise

    return KeyedNoise(iteration, torch.tensor([0]))


@pytest.mark.parametrize("objective", ["guided_kl_marginal", "guided_kl_rollout", "mse"])
def test_a_training_logs_terms_and_the_measures_of_fidelity(tmp_path, objective):
    config = tiny(tmp_path, f"objective={objective}", "data.halves=together", "trainer.max_steps=4", *SHORT)
    collected(config)
    training = Training(config, build(config.base))
    training.run(build(config.data))
    logged = training.trainer.logged_metrics
    terms = {"guided_kl", "feature_error"} | ({"marginal"} if "marginal" in objective else set())
    for split in ("train", "val"):
        assert {f"{split}/{name}" in logged for name in terms} == {objective != "mse"}
    assert {f"val/fidelity_{name}" for name in FIDELITY} <= logged.keys()
    data = build(config.data)
    data.together = True
    data.setup()
    values = [fidelity(training.module.shortcut, training.base, x, Constant(2.0)) for x in data.val_dataloader()]
    assert len(values) == 5
    assert float(logged["val/fidelity_kl"]) > 0


SHORT = ["trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "lr_schedule.warmup_steps=1"]


def test_a_config_that_keeps_halves_apart_is_refused(tmp_path):
    for overrides, words in (
        (["data.halves=apart"], ["data.halves=apart", "leave data.halves out"]),
        (["data.batch_size=3"], ["data.batch_size=3", "multiple of 2"]),
    ):
        config = tiny(tmp_path, "objective=guided_kl", *overrides)
        with pytest.raises(UserError, match=naming(*words)):
            Training(config, build(config.base))
    assert not any(tmp_path.iterdir())


def test_a_batch_of_halves_apart_is_refused(run, shortcut):
    sampler, pairs = run
    batch = pairs.__getitems__([0, 1])._replace(halves_together=0)
    with pytest.raises(UserError, match=naming("objective.terms.kl", "data.halves=together")):
        mixture(Constant(2.0), kl=GuidedKL())(shortcut, sampler.base, batch)


def test_a_checkpoint_of_before_halves_goes_on(tmp_path):
    before, now = (tiny(tmp_path, "trainer.max_steps=2", *SHORT[1:]) for _ in range(2))
    del before.data["halves"]
    torch.manual_seed(0)  # the weights of the tiny base
    base = build(before.base)
    collect(Sampler(base, build(before.sampling)), build(before.data), before.seed)
    Training(before, base).run(build(before.data))
    assert now.data["halves"] is None
    assert Training(now, base).state["global_step"] == 2
    other = tiny(tmp_path, "trainer.max_steps=2", "data.halves=together", *SHORT[1:])
    with pytest.raises(UserError, match="trained with another data"):
        Training(other, base)


@pytest.mark.slow
def test_training_on_it_lowers_the_guided_kl(run, shortcut):
    sampler, pairs = run
    optimizer = torch.optim.AdamW(shortcut.parameters(), lr=2e-3)
    held_out = pairs.__getitems__(range(40, 60))
    still = torch.nn.Linear(1, 1)
    still.forward = lambda features, *_: features
    idle = fidelity(still, sampler.base, held_out, Constant(2.0))["fidelity_kl"]
    objective = mixture(Constant(2.0), error=SquaredError(3.0), kl=GuidedKL(0.1))
    for step in range(300):
        loss, _ = objective(shortcut, sampler.base, pairs.__getitems__([(step * 7 + 3 * i) % 40 for i in range(8)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert fidelity(shortcut, sampler.base, held_out, Constant(2.0))["fidelity_kl"] < idle
