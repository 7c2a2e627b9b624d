"""Prints, as JSON lines, how compiled and captured runs compare with plain ones; a process of its own.

The shape checks of the tests are wrappers that the compiler does not follow. `backend` of the command line is torch's:
"eager" makes graphs, sizes that vary included; "aot_eager" also traces and decomposes them as for a device, but needs
no C++ compiler; "inductor" also makes the code.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from base_kinds import KINDS, drawn

from migm.runtime.compiling import PLAIN, Runtime


def compare(
    dtype: str, families: Sequence[str], names: Sequence[str], device: str = "cpu", **runtimes: Runtime
) -> None:
    """Print the share of equal tokens of every family, method and way to run, for inputs of two sizes."""
    for family in families:
        kind = KINDS[family]
        for name in names:
            plain = kind.sampler(dtype, device, name)
            for runtime, chosen in runtimes.items():
                fast = replace(plain, runtime=chosen)
                for images in ([0, 1, 2], [1]):
                    tokens = [drawn(s, kind.inputs(images), 1) for s in (replace(plain, runtime=PLAIN), fast)]
                    same = float((tokens[0] == tokens[1]).double().mean())
                    row = {"family": family, "accelerator": name, "dtype": dtype, "runtime": runtime, "same": same}
                    print(json.dumps(row), flush=True)


def with_backend(backend: str) -> None:
    """Let torch compile by this backend from here on."""
    if backend != "inductor":
        with_inductor = torch.compile
        torch.compile = lambda f, *, options, **rest: with_inductor(f, backend=backend, **rest)  # type: ignore


if __name__ == "__main__":
    backend, dtype, families, *names = sys.argv[1:]
    with_backend(backend)
    torch.set_num_threads(1)
    compare(dtype, families.split(","), names, compiled=Runtime(compile=True, cuda_graphs=False))
