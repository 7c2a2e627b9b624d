"""Laws of every method (docs/originals/methods.md, Laws), each a function that raises AssertionError if broken."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from types import SimpleNamespace
from typing import Any

import replays
import torch
from families import Family, N, branches_of, sequences, tokens_before
from tiny_parts import moment
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.calibration import Calibration, LearnedWeights
from migm.accelerators.extrapolation import FoCa, Hermite, Newton, Taylor
from migm.accelerators.predictor import TargetedState
from migm.accelerators.predictors.dllm_cache import PromptResponse
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.ml_cache import Subset
from migm.accelerators.predictors.recap import Target
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.runs import full_step
from migm.accelerators.teacache import Accumulate
from migm.bases.base import Branch, StepRecord
from migm.evaluation.meter import held_bytes
from migm.sampling.loop import guided_logits
from migm.sampling.noise import KeyedNoise

ROUNDING = 1e-9
FORMULA = {Taylor: "taylor", Newton: "newton", Hermite: "hermite", FoCa: "foca"}
Records = Sequence[StepRecord]


def same(ours: Records, theirs: Records, tolerance: float = 0.0) -> None:
    """Tokens equal, features too or within a tolerance, padding left out."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.tokens, b.tokens), f"tokens of step {a.index}"
        for x, y in zip(chain(*sequences(a)), chain(*sequences(b)), strict=True):
            close(x, y, tolerance)


def close(ours: Tensor, theirs: Tensor, tolerance: float = ROUNDING) -> None:
    """Of the same shape and nowhere further apart than that."""
    assert ours.shape == theirs.shape
    assert not len(ours) or float((ours - theirs).abs().max()) <= tolerance


def is_vanilla(family: Family, accelerator: Accelerator) -> None:
    """Laws 5, 6 and 8: what leaves nothing out is vanilla sampling at every step."""
    tokens, records = family.first(accelerator)
    wanted, vanilla = family.vanilla
    assert torch.equal(tokens, wanted)
    same(records, vanilla, ROUNDING)


def full_steps_are_the_bases(family: Family, accelerator: Accelerator) -> None:
    """At a full step the features are those of the present tokens, whatever was cached before."""
    _, records = family.first(accelerator)
    every = getattr(accelerator.predictor, "prompt_interval", 1)  # elsewhere dLLM-Cache keeps the prompt
    full = [r for r in records if r.is_full and r.index % every == 0]
    assert full[0].index == 0
    for record in full:
        tokens = tokens_before(records, family.base)[record.index]
        for branch, features in zip(record.branches, record.features, strict=True):
            wanted = family.base.features(tokens, branch, record.moment)
            same_rows(features, wanted, branch)


def same_rows(ours: Tensor, theirs: Tensor, branch: Branch) -> None:
    kept = torch.ones(ours.shape[:2], dtype=torch.bool) if branch.mask is None else branch.mask
    close(ours[kept], theirs[kept])


def tokens_follow_the_schedule(family: Family, accelerator: Accelerator) -> None:
    """Law 11: what is revealed stays, as many are masked as the schedule says, and all are tokens in the end."""
    tokens, records = family.first(accelerator)
    v, left = family.base.spec.vocab_size, family.base.spec.num_tokens
    counts = family.sampling.schedule.counts(left, N)
    for before, record, count in zip(tokens_before(records, family.base), records, counts, strict=True):
        assert torch.equal(record.mask_ratio, torch.full((3,), left / family.base.spec.num_tokens))
        left -= count
        known = before < v
        assert torch.equal(record.tokens[known], before[known])
        assert ((record.tokens == v).sum(1) == left).all()
        new = torch.zeros_like(known).scatter(1, record.new_positions, True)
        assert torch.equal(new, (record.tokens < v) & ~known)
        assert (record.new_positions.diff(dim=1) > 0).all()
    assert torch.equal(tokens, records[-1].tokens)
    assert left == 0


def no_state_is_kept(family: Family, accelerator: Accelerator) -> None:
    """Two generations in a row are equal, and one with whole others between its steps is too."""
    _, records = family.first(accelerator)
    _, again = family.run(accelerator)
    same(again, records)
    _, other = family.run(accelerator, [1])
    between: dict[int, Records] = {}

    def on_step(record: StepRecord) -> None:
        if record.index in (0, 4):
            between[record.index] = family.run(accelerator, [1])[1]

    _, interleaved = family.run(accelerator, observers=[SimpleNamespace(on_step=on_step)])
    same(interleaved, records)
    assert len(between) == 2
    for run in between.values():
        same(run, other)


def batch_is_one_by_one(family: Family, accelerator: Accelerator) -> None:
    """Three images together, with prompts of several lengths, equal each of them alone."""
    _, records = family.first(accelerator)
    for image in range(3):
        _, own = family.run(accelerator, [image])
        for a, b in zip(own, records, strict=True):
            assert torch.equal(a.tokens[0], b.tokens[image])
            for x, y in zip(sequences(a)[0], sequences(b)[image], strict=True):
                close(x, y)


def noise_is_left_alone(family: Family, accelerator: Accelerator) -> None:
    """An accelerator draws nothing: the sampler asks for its noise as ever, torch's generator stays where it is."""

    class Asked(KeyedNoise):
        def uniform(self, purpose: int, step: Any, positions: Tensor, width: int | None = None) -> Tensor:
            asked.append((step, purpose))
            return super().uniform(purpose, step, positions, width)

    asked: list[tuple[Any, int]] = []
    state = torch.get_rng_state()
    family.run(accelerator, noise=Asked(0, torch.arange(3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert asked == [(step, purpose) for step in range(N) for purpose in (0, 1)]


def nothing_is_patched(family: Family, accelerator: Accelerator) -> None:
    """A generation leaves base, policy and predictor as they were: no attribute, hook, method or weight changes."""
    family.first(accelerator)  # weights and calibrations are read at the first

    def seen() -> dict[str, Any]:
        modules = dict(family.base.transformer.named_modules())
        objects = {"base": family.base, "policy": accelerator.policy, "predictor": accelerator.predictor, **modules}
        rule = getattr(accelerator.predictor, "rule", None)
        known = {name: attributes(value) for name, value in {**objects, "rule": rule}.items()}
        kinds = {type(value) for value in (*objects.values(), rule)}
        known["classes"] = {kind: {name: id(value) for name, value in vars(kind).items()} for kind in kinds}
        known["weights"] = [(id(p), p._version) for p in family.base.transformer.parameters()]
        known["bytes"] = held_bytes([accelerator.policy, accelerator.predictor])
        return known

    before = seen()
    family.run(accelerator)
    assert seen() == before


def attributes(value: Any) -> dict[str, Any]:
    """All of an object's attributes by identity, the contents of its dictionaries too (hooks of modules)."""
    inner = getattr(value, "__dict__", {})
    return {k: {n: id(x) for n, x in v.items()} if isinstance(v, dict) else id(v) for k, v in inner.items()}


def unchanged_tokens_keep_their_features(family: Family, accelerator: Accelerator) -> None:
    """Laws 2 and 5: cheap steps on the tokens of the only full step come out as it did."""
    base, generator = family.base, torch.Generator().manual_seed(0)
    tokens = torch.randint(0, base.spec.vocab_size + 1, (3, base.spec.num_tokens), generator=generator)
    now, none = moment(torch.full((3,), 0.5)), torch.zeros(3, 0, dtype=torch.long)
    for branch in base.encode(family.some((0, 1, 2)), guided=True):
        state = accelerator.predictor.start(base, branch)  # type: ignore[union-attr]
        features = full_step(base, branch, state, 0, tokens, now)
        if isinstance(state, TargetedState):
            state.target(torch.tensor([[5, 0, 9], [1, 2, 3], [15, 7, 8]]))
        for step in (1, 2, 5):
            same_rows(state.predict(step, tokens, none, now), features, branch)


def new_tokens_are_exact(family: Family, accelerator: Accelerator) -> None:
    """Law 4 in a generation: with a single layer, rows that a cheap step computes are those of a full pass.

    All others' keys and values are of their present token, so what the step before revealed comes out exactly.
    """
    shallow = one_layer(family)
    _, records = shallow.run(accelerator)
    cheap = 0
    for last, record in pairwise(records):
        cheap += not record.is_full
        for branch, features in zip(record.branches, record.features, strict=True):
            wanted = shallow.base.features(last.tokens, branch, record.moment)
            rows = branch.rows.gather(1, last.new_positions.repeat(branch.copies, 1))
            close(take_rows(features, rows), take_rows(wanted, rows))
    assert cheap > 2


def take_rows(features: Tensor, rows: Tensor) -> Tensor:
    return features.gather(1, rows[..., None].expand(*rows.shape, features.shape[-1]))


def one_layer(family: Family) -> Family:
    """The family with the first layer of its base alone."""
    base = copy.deepcopy(family.base)
    if hasattr(base.transformer, "stacks"):
        first, *others = base.transformer.stacks
        del first[1:]
        for stack in others:
            del stack[:]
        return dataclasses.replace(family, base=base)
    trunk = getattr(base.transformer, "transformer", base.transformer)
    name = "layers" if hasattr(trunk, "layers") else "blocks"
    setattr(trunk, name, getattr(trunk, name)[:1])
    return dataclasses.replace(family, base=base)


def is_its_replay(family: Family, accelerator: Accelerator, images: Sequence[int] = (0, 1, 2)) -> None:
    """Features at every step, of every sequence of these images, are those of the method written once more for one."""
    _, records = family.first(accelerator)
    branches = branches_of(records[0], family.base)
    steps, found = tokens_before(records, family.base), [sequences(record) for record in records]
    for image in images:
        halves = branches[image]
        own = [tokens[image : image + 1] for tokens in steps]
        plan = plan_of(family, accelerator, halves, own)
        for half, branch in enumerate(halves):
            for ours, wanted in zip(found, replay(family, accelerator, branch, own, plan), strict=True):
                close(ours[image][half], wanted)


def replay(
    family: Family, accelerator: Accelerator, branch: Branch, steps: Sequence[Tensor], plan: list[bool]
) -> Iterator[Tensor]:
    """The replay that belongs to an accelerator, with its settings."""
    known, made_of = (family.base, branch, steps, plan), accelerator.predictor
    if isinstance(made_of, Shortcut):
        return replays.network(*known, made_of._network(family.base)[0])
    if isinstance(made_of, Subset):
        return replays.max_logit(*known, **vars(made_of))
    if isinstance(made_of, Target):
        return replays.targets(*known, made_of.recompute_condition)
    if isinstance(made_of, PromptResponse):
        return replays.similarity(*known, made_of.prompt_interval, made_of.transfer_ratio)
    if isinstance(made_of, Forecast):
        rule, order = made_of.rule, getattr(made_of.rule, "max_order", 0)
        if isinstance(rule, LearnedWeights):
            calibration = Calibration.load(rule.calibration, family.base, N, "calibration")
            return replays.least_squares(*known, torch.from_numpy(calibration.gram), order)
        kind = replays.boundary if made_of.granularity == "boundary" else replays.modules
        published = "_published" if getattr(rule, "fixed_step", False) else ""
        return kind(*known, FORMULA[type(rule)] + published, order)
    residual = isinstance(made_of, Reuse) and made_of.of == "residual"
    return (replays.modules if residual else replays.boundary)(*known)


def plan_of(
    family: Family, accelerator: Accelerator, branches: Sequence[Branch], steps: Sequence[Tensor]
) -> list[bool]:
    """The full steps of one image: the policy's, or TeaCache's as its paper sums them up."""
    policy = accelerator.policy
    if not isinstance(policy, Accumulate):
        return policy.plan(N)  # type: ignore[union-attr]
    known = policy.coefficients or (1.0, 0.0)
    if policy.calibration is not None:
        known = Calibration.load(policy.calibration, family.base, N, "calibration").polynomials[policy.indicator]
    passes, seen = [replays.Passes(family.base, branch, steps) for branch in branches], []
    for tokens in steps:
        first = [p.start(tokens) for p in passes]
        shown = [x if policy.indicator == "input" else family.base.blocks[0](x, ctx) for x, ctx in first]
        seen.append(torch.cat([x.flatten() for x in shown]))
    plan, total = [True], 0.0
    for i in range(1, N):
        change = float((seen[i] - seen[i - 1]).abs().sum() / seen[i - 1].abs().sum())
        total += sum(c * change ** (len(known) - 1 - j) for j, c in enumerate(known))
        plan.append(total >= policy.delta or i == N - 1)
        total = 0.0 if plan[-1] else total
    return plan


def targets_are_ranked(family: Family, accelerator: Accelerator) -> None:
    """ReCAP: cheap steps reveal, in order, what their full step scored best, and draw at these positions alone."""
    _, records = family.first(accelerator)
    plan, sampling, noise = accelerator.policy.plan(N), family.sampling, KeyedNoise(0, torch.arange(3))  # type: ignore[union-attr]
    ranked = torch.empty(3, 0, dtype=torch.long)
    for record in records:
        before = tokens_before(records, family.base)[record.index]
        if plan[record.index]:
            assert not ranked.shape[1]
            masked = (before == family.base.spec.vocab_size).nonzero()[:, 1].view(3, -1)
            shown = (family.base, record.branches, record.features, masked, sampling.guidance, record.index, N)
            _, log_prob = sampling.draw(guided_logits(*shown), noise, record.index, masked, N)
            scores = sampling.select(log_prob, noise, record.index, N, masked)
            end = next((j for j in range(record.index + 1, N) if plan[j]), N)
            count = sum(r.new_positions.shape[1] for r in records[record.index : end])
            ranked = masked.gather(1, scores.argsort(dim=1, descending=True)[:, :count])
        count = record.new_positions.shape[1]
        assert torch.equal(record.new_positions, ranked[:, :count].sort(dim=1).values)
        ranked = ranked[:, count:]


def one_pass_is_two(family: Family, accelerator: Accelerator, one_pass: Family) -> None:
    """Both guidance halves in one pass, the shorter padded, equal two passes."""
    _, records = family.first(accelerator)
    _, together = one_pass.run(accelerator)
    assert (len(records[0].branches), len(together[0].branches)) == (2, 1)
    same(together, records, ROUNDING)
