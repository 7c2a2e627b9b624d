"""Predictions that start from full steps: at every step those of a direct call, as the network is trained."""

from functools import partial

import pytest
import torch
from meissonic_parts import meissonic_base
from tiny_parts import text_base

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Interval, Table, Uniform
from migm.accelerators.teacache import Accumulate
from migm.analyses.forcing import Truth, Walk
from migm.benchmarks.steps import step_flops, step_jobs
from migm.evaluation.meter import read_meter
from migm.sampling.draw import InverseCDF
from migm.sampling.guidance import Constant
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.anchored import AnchoredShortcut
from migm.shortcuts.checkpoint import save_shortcut
from migm.shortcuts.forecast import ForecastShortcut
from migm.shortcuts.history import HistoryShortcut
from migm.shortcuts.network import Past
from migm.training.rollout import Situation, predict
from migm.trajectories.dataset import InMemory, PairDataset
from migm.trajectories.gaps import Gaps
from migm.trajectories.record import record

CLASSES = [AnchoredShortcut, HistoryShortcut, ForecastShortcut]
PROMPTS = ["a red bird on a lake at night", "a cat"]


def network(kind, channels=48, trained=True, **changes):
    """A float64 network, its weights all random; untrained, those that begin at zero are left."""
    torch.manual_seed(2)
    net = kind(channels, num_heads=4, **changes).double().eval()
    if trained:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.requires_grad_(False)


def accelerator(kind, policy, **changes):
    return Accelerator(policy, Shortcut(module=network(kind, **changes)), "shortcut")


@pytest.fixture
def pairs(make_base, make_sampling):
    """Pairs of three recorded images of a base in float32, by what networks read."""
    sampler = Sampler(make_base(dtype="float32"), make_sampling())
    made = InMemory(record(sampler, torch.arange(3), 0, lambda n: n % 10, 3, torch.float32))
    return sampler, lambda kind: PairDataset(made, gaps=Gaps(5, kind is not AnchoredShortcut))


@pytest.mark.parametrize("plan", [[0], [0, 3], [0, 1, 2, 4]])
@pytest.mark.parametrize("kind", CLASSES)
def test_along_true_trajectories_every_prediction_is_that_of_the_pair_it_is_trained_on(kind, plan, pairs):
    sampler, make = pairs
    base, data, net = sampler.base, make(kind), network(kind).float()
    point = Sampler(base, sampler.sampling, Accelerator(Table(plan), Shortcut(module=net), "shortcut"))
    branch_of, n = [], sampler.num_steps
    counts = sampler.sampling.schedule.counts(16, n)
    generation = sampler.start(torch.arange(3) % 10, sampler.noise(0, torch.arange(3)))
    new, compared = generation.new_positions, 0
    for step in generation:
        if not branch_of:
            run = point.accelerator.start(base, step.branches, counts)
            branch_of = step.branches
        if step.index in plan:
            assert run.receive(step.index, step.features)
        else:
            (found,) = run.features(step.index, step.tokens_before(24), new, step.moment)
            s = max(full for full in plan if full < step.index)
            before = max([full for full in plan if full < s], default=s)
            code = step.index - s - 1 + data.gaps.most * ((s - before) if data.gaps.earlier else 0)
            index = [i * (n - 1) + s + len(data) * code for i in (0, 2, 4, 1, 3, 5)]  # both halves of every image
            batch = data.__getitems__(index)
            assert batch.images.tolist() == [0, 1, 2] * 2
            torch.testing.assert_close(found, predict(net, base, Situation.of(batch, base)), rtol=1e-5, atol=1e-5)
            compared += 1
        new = step.new_positions
    assert compared == n - len(plan)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_untrained_network_draws_what_reuse_draws(kind, run):
    wanted, _ = run(Accelerator(Uniform(2), Reuse(), "reuse"))
    assert torch.equal(run(accelerator(kind, Uniform(2), trained=False))[0], wanted)


def test_an_untrained_forecast_with_an_open_gate_draws_what_taylorseer_draws(run):
    wanted, records = run(Accelerator(Interval(2, 2), Forecast(Taylor(1)), "taylorseer"))
    tokens, found = run(accelerator(ForecastShortcut, Interval(2, 2), trained=False, first_gate=1.0))
    assert torch.equal(tokens, wanted)
    for now, then in zip(found, records, strict=True):
        torch.testing.assert_close(now.features[0], then.features[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("policy", [Uniform(2), Accumulate(0.3)])
@pytest.mark.parametrize("kind", CLASSES)
def test_an_image_is_the_same_in_every_batch_and_at_every_call(kind, policy, run):
    method = accelerator(kind, policy)
    together, _ = run(method, (3, 7, 0, 5), range(4))
    assert torch.equal(run(method, (3, 7, 0, 5), range(4))[0], together)
    alone = [run(method, [label], [i])[0] for i, label in enumerate((3, 7, 0, 5))]
    assert torch.equal(torch.cat(alone), together)
    wanted, _ = run(Accelerator(Uniform(2), Reuse(), "reuse"), (3, 7, 0, 5), range(4))
    assert not torch.equal(together, wanted)


class InTurn:
    """Image i is full at every step that 2 + i divides."""

    def start(self, base, branches, num_steps):
        return self

    def full(self, step, tokens, moment):
        return [step % (2 + i) == 0 for i in range(len(tokens))]

    def blocks(self, blocks, j, images):
        return blocks


def test_every_image_starts_from_its_own_full_steps(run, tiny_base):
    net = network(HistoryShortcut)
    _, records = run(Accelerator(InTurn(), Shortcut(module=net), "shortcut"), (3, 7, 0), range(3))
    compared = 0
    for i, step in [(i, step) for i in range(3) for step in range(6) if step % (2 + i)]:
        now, full = records[step], step - step % (2 + i)
        start, earlier = records[full], records[max(full - 2 - i, 0)]
        since = (start.tokens_before(24)[i] == 24) & (now.tokens_before(24)[i] != 24)
        at, halves = since.nonzero().T, [i, i + 3]
        new = tiny_base.control(now.tokens[i : i + 1].gather(1, at), at, now.branches[0].images(torch.tensor([i])))
        times = (start.mask_ratio[i], (step - full) / 6, (start.index - earlier.index) / 6)
        ratio, gap, span = (torch.full((2,), float(x)) for x in times)
        past = Past(ratio, gap, earlier.features[0][halves], span)
        wanted = net(start.features[0][halves], new, now.mask_ratio[[i, i]], past)
        torch.testing.assert_close(now.features[0][halves], wanted, rtol=1e-6, atol=1e-6)
        compared += 1
    assert compared == 3 + 4 + 4


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("base", ["text", "shared rows"])
def test_prompts_of_other_lengths_and_positions_that_share_rows(kind, base, make_sampling):
    made = text_base() if base == "text" else meissonic_base()
    sizes = {"mlp_channels": 32, "rope_theta": 1e4, "prompt": base == "text"}
    net = network(kind, made.spec.channels, body="dimoo", options=sizes)
    rules = make_sampling(
        schedule=CosineFloor(at_least_one=True),
        draw=InverseCDF(),
        select=Confidence(1.0),
        guidance=Constant(2.0, "logits"),
    )
    point = Sampler(made, rules, Accelerator(Uniform(2), Shortcut(module=net), "shortcut"))
    draw = lambda prompts, images: point.tokens(prompts, point.noise(0, torch.tensor(images)))  # noqa: E731
    together = draw(PROMPTS, [0, 1])
    assert torch.equal(together, torch.cat([draw([prompt], [i]) for i, prompt in enumerate(PROMPTS)]))
    reuse = Sampler(made, rules, Accelerator(Uniform(2), Reuse(), "reuse"))
    assert not torch.equal(together, reuse.tokens(PROMPTS, reuse.noise(0, torch.arange(2))))


@pytest.mark.parametrize("kind", CLASSES)
def test_costs_grow_with_the_tokens_since_and_what_is_kept_is_counted(kind, tiny_base, make_sampling):
    sampler = Sampler(tiny_base, make_sampling(), accelerator(kind, Uniform(1)))
    reading = read_meter(sampler, partial(torch.remainder, other=10), 1)
    assert reading.flops[1] < reading.flops[3] < reading.flops[5] < reading.flops[0]
    features, positions = 2 * 17 * 48 * 8, 15 * 8  # both halves in float64; ids
    assert features < reading.cached <= features + 2 * positions
    both = read_meter(Sampler(tiny_base, make_sampling(), accelerator(kind, Uniform(3))), lambda n: n % 10, 1)
    kept = 1 if kind is AnchoredShortcut else 2
    assert kept * features < both.cached <= kept * features + 2 * positions


def test_fidelity_measures_such_a_network(tiny_base, make_sampling):
    rules = make_sampling(guidance=Constant(1.5))
    points = [Sampler(tiny_base, rules, accelerator(kind, Uniform(2), trained=False)) for kind in CLASSES]
    points.append(Sampler(tiny_base, rules, Accelerator(Uniform(2), Reuse(), "reuse")))
    with torch.inference_mode():
        walk = Walk(points)
        for step in Truth(
            Sampler(tiny_base, rules).start(torch.arange(3), points[0].noise(0, torch.arange(3)))
        ).records:
            walk.on_step(step)
    *found, wanted = walk.measured()
    assert (wanted.values[:, 1] > 0).any()
    for values in found:
        torch.testing.assert_close(values.values, wanted.values)


def test_a_file_says_how_far_it_was_trained_to_predict(tiny_base, tmp_path):
    save_shortcut(network(HistoryShortcut, max_gap=4).float(), tiny_base.fingerprint(), tmp_path / "x.safetensors")
    assert (
        Shortcut(tmp_path / "x.safetensors")
        .origin(tiny_base)
        .endswith("x.safetensors, for up to 4 cheap steps in a row")
    )


def test_bench_times_the_mean_cheap_step(tiny_base, make_sampling):
    vanilla, inputs = Sampler(tiny_base, make_sampling()), torch.arange(3)
    flops = [
        step_flops(vanilla, Shortcut(module=network(AnchoredShortcut, max_gap=most)), inputs)["cheap"]
        for most in (1, 5)
    ]
    assert flops[0] < flops[1]
    with torch.inference_mode():
        jobs = step_jobs(vanilla, Shortcut(module=network(ForecastShortcut)), inputs)
        assert torch.equal(jobs["cheap"]()[0], jobs["cheap"]()[0])
        assert torch.equal(jobs["cheap_and_tail"]().features[0], jobs["cheap"]()[0])
