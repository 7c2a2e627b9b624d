"""Records a sampling run of this project's own, which is replayed where the original cases are absent.

python tests/reference/record_own.py    writes recorded/own.safetensors; only where the sampler is meant to change
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.maskgit import MaskGIT
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Ramp
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import Increments
from migm.sampling.select import Confidence
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.trajectories.record import Recorder

FILE = Path(__file__).parent / "recorded" / "own.safetensors"


def parts() -> tuple[MaskTransformer, MaskGITShortcut]:
    """The models of the recorded run, with random weights."""
    transformer = MaskTransformer(16, 24, 10, channels=16, depth=1, num_heads=2, mlp_channels=32)
    return transformer, MaskGITShortcut(16, bottleneck_ratio=2, num_heads=2)


def run(transformer: MaskTransformer, shortcut: MaskGITShortcut) -> dict[str, Tensor]:
    """Tokens, reveal order and features of every step of four images."""
    base = MaskGIT(transformer, ConvVQ(24, 4, 4, 1), random_weights=True, dtype="float32", device="cpu")
    sampling = Sampling(6, 3, Increments("arccos"), GumbelMax(), Confidence(4.5), Ramp(2.8))
    sampler = Sampler(base, sampling, Accelerator(Uniform(3), Shortcut(module=shortcut), "shortcut"))
    labels, images, recorder = torch.tensor([1, 5, 0, 9]), torch.arange(4), Recorder(torch.float32)
    tokens = sampler.tokens(labels, sampler.noise(0, images), [recorder])
    made = recorder.trajectories(images)
    return {"tokens": tokens, "order": made.order, "features": made.features}


def read() -> dict[str, Tensor]:
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


if __name__ == "__main__":
    torch.manual_seed(0)
    transformer, shortcut = parts()
    torch.nn.init.normal_(transformer.bias)
    weights = {f"base.{name}": value for name, value in transformer.state_dict().items()}
    weights |= {f"shortcut.{name}": value for name, value in shortcut.state_dict().items()}
    save_file({**weights, **run(transformer, shortcut)}, FILE)
