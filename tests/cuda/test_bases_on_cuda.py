"""Every family of bases on a pretended CUDA device: what it gives on the CPU, to the bit, and no step waits."""

import traceback
from pathlib import Path

import pytest
import torch
from base_kinds import KINDS, METHODS, STEPPED
from pretend_cuda import Pretended, pretended
from waits import Waits

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.recap import Target
from migm.accelerators.refresh import Groups
from migm.bases.base import Moment
from migm.sampling.sampler import Sampler

NUMBERS = torch.arange(3)
QUICK = ("amused_joined", "dimo_maskgit", "dimo_meissonic", "halton", "meissonic", "mmada")
every_kind = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS]
)


def samplers(name, device, methods):
    """One base with several methods, ReCAP among them where it ranks the positions."""
    kind = KINDS[name]
    plain = kind.sampler("float64", device)
    yield plain
    if name not in STEPPED:
        return
    for method in methods:
        yield Sampler(plain.base, plain.sampling, kind.accelerator(method, plain.base))
    if name != "halton":
        recap = Accelerator(Groups(2), Target(recompute_condition=name != "amused_joined"), "recap")
        yield Sampler(plain.base, plain.sampling, recap)


def numbers(name, device):
    """Tokens and images of several methods, of in-painting, and features as a training asks for them."""
    kind, found = KINDS[name], []
    inputs = kind.inputs(range(3))
    for sampler in samplers(name, device, ("taylorseer_module", "ml_cache")):
        base, noise = sampler.base, sampler.noise(0, NUMBERS)
        tokens = sampler.tokens(inputs, noise)
        found += [tokens.cpu(), base.decode(tokens).cpu()]
        if not sampler.accelerator.name and name in STEPPED:
            spec = base.spec
            masks = torch.arange(spec.num_tokens) % 3 == 0
            initial = (torch.arange(spec.num_tokens) % spec.vocab_size).where(~masks, spec.vocab_size)
            found.append(sampler.tokens(inputs, noise, initial=initial.expand(3, -1)).cpu())
            found.append(base.tokenize(found[1]).cpu())
    guided = sampler.sampling.guidance is not None
    branch = base.branch(base.encode(inputs, guided)[0].condition)  # as a training reads what was stored
    again = base.features(tokens[:1].expand(len(branch.rows), -1), branch, at_first(len(branch.rows), base))
    return [*found, again.cpu()]


def at_first(count, base):
    return Moment.first(count, 6, base.device)


@every_kind
def test_tokens_images_and_features_are_those_of_the_cpu(name):
    wanted = numbers(name, "cpu")
    with pretended():
        found = numbers(name, "cuda")
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def where():
    frames = [frame for frame in traceback.extract_stack() if "migm" in Path(frame.filename).parts]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames[-2:]))


@every_kind
@torch.inference_mode()
def test_no_step_waits_for_the_device(name):
    """Tables that a base keeps are made in its first generation."""
    waited = {}
    with pretended():
        for sampler in samplers(name, "cuda", METHODS):
            generation, first = (sampler.start(KINDS[name].inputs(range(3)), sampler.noise(0, NUMBERS)) for _ in "ab")
            if not waited:
                list(first)
            with Waits(lambda x: isinstance(x, Pretended), where) as waits:
                list(generation)
            waited[sampler.accelerator.name] = waits.found
    assert {name: found for name, found in waited.items() if found} == {}
