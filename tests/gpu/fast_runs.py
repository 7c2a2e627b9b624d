"""Prints, as JSON lines, how compiled and captured runs of a family of bases compare with plain ones on a device.

A process of its own: the shape checks of the tests are wrappers that the compiler does not follow. `DEVICE KIND`: a
kind of `base_kinds.py`, or `cifar10`, the bundled base at its true size with random weights.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from base_kinds import KINDS, STEPPED, Kind, drawn

import migm
from migm.runtime.compiling import PLAIN, Runtime
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler

RUNTIMES = {"compiled": Runtime(True, False), "captured": Runtime(False, True), "both": Runtime(True, True)}


def cifar10(dtype: str, device: str) -> Kind:
    base = migm.load_base("cifar10", dtype=dtype, device=device, random_weights=True)
    sampling: Sampling = migm.Sampler(base, num_steps=16).sampling
    return Kind(lambda *_: base, lambda _: sampling, base.spec.channels, labelled=True)


def compare_runs(device: str, name: str) -> None:
    """Print the share of equal tokens of float32 runs, for each method, way to run and of three seeds.

    A CPU, which rehearses it, captures nothing.
    """
    kind = KINDS[name] if name in KINDS else cifar10("float32", device)
    runtimes = {key: each for key, each in RUNTIMES.items() if device == "cuda" or not each.cuda_graphs}
    for method in ("vanilla", "shortcut", "ml_cache") if name not in KINDS or name in STEPPED else ("vanilla",):
        plain: Sampler = replace(kind.sampler("float32", device, method), runtime=PLAIN)
        for runtime, chosen in runtimes.items():
            if chosen.cuda_graphs and not plain.accelerator.captured:
                continue
            fast = replace(plain, runtime=chosen)
            for seed in range(3):
                tokens = [drawn(each, kind.inputs([seed, (seed + 1) % 3]), seed) for each in (plain, fast)]
                same = float((tokens[0] == tokens[1]).double().mean())
                print(json.dumps({"kind": name, "method": method, "runtime": runtime, "same": same}), flush=True)


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    compare_runs(*sys.argv[1:])
