"""Prints, as JSON lines, how compiled and captured runs on a card compare with plain ones; a process of its own.

The shape checks of the tests are wrappers that the compiler does not follow.
"""

import json
from dataclasses import replace

import torch

import migm
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.runtime.compiling import PLAIN, Runtime
from migm.sampling.sampler import Sampler
from migm.shortcuts.maskgit import MaskGITShortcut

RUNTIMES = {"compiled": Runtime(True, False), "captured": Runtime(False, True), "both": Runtime(True, True)}


def compare_runs() -> None:
    """Print the share of equal tokens of a float32 run with a shortcut, for each way to run and three seeds."""
    base = migm.load_base("cifar10", dtype="float32", random_weights=True)
    torch.manual_seed(0)
    net = MaskGITShortcut(base.spec.channels, num_heads=4)
    accelerator = Accelerator(Uniform(4), Shortcut(module=net), "shortcut")
    plain = Sampler(base, migm.Sampler(base, num_steps=16).sampling, accelerator, runtime=PLAIN)
    for name, runtime in RUNTIMES.items():
        fast = replace(plain, runtime=runtime)
        for seed in range(3):
            numbers = torch.arange(10) + seed
            tokens = [s.tokens(numbers % 10, s.noise(seed, numbers)) for s in (plain, fast)]
            print(json.dumps({"runtime": name, "same": float((tokens[0] == tokens[1]).double().mean())}), flush=True)


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = False
    compare_runs()
