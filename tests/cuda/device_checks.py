"""What runs on a device, one path at a time: each gives numbers that are the same on the CPU and on CUDA."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from omegaconf import OmegaConf
from tiny_parts import ROOT, text_base
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.maskgit import MaskGIT
from migm.benchmarks.steps import step_jobs
from migm.config.building import build
from migm.pretraining.vq import reconstruct
from migm.sampling.calibrate import calibrate
from migm.sampling.generation import kept_tokens
from migm.sampling.loop import Sampling
from migm.sampling.sampler import VANILLA, Sampler
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training.objective import GuidedObjective, made_ready
from migm.training.run import embeddings
from migm.trajectories.dataset import InMemory, PairDataset, Pairs
from migm.trajectories.record import Trajectories, record
from migm.trajectories.replay import stored_features, with_features

PROMPTS = ["a red bird on a lake at night", "a cat", "an old grey ship"]
Check = Callable[..., list[Tensor]]  # of a Place
CONF = ROOT / "conf"
KEPT = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "tokens": None}


class Place:
    """One family of tiny bases on `device`, with all that is asked of it; weights do not depend on the device."""

    def __init__(self, kind: str, device: str, cpu_base: MaskGIT, sampling: Sampling):
        self.kind, self.sampling = kind, sampling
        self.known: dict[str, Trajectories] = {}
        if kind == "maskgit":
            parts = copy.deepcopy((cpu_base.transformer, cpu_base.tokenizer))
            self.base: Any = MaskGIT(*parts, random_weights=True, dtype="float64", device=device)
        else:
            self.base = text_base(device=device)

    def inputs(self, images: Tensor) -> Any:
        return images % 10 if self.kind == "maskgit" else [PROMPTS[i % 3] for i in images.tolist()]

    def sampler(self, accelerator: Accelerator = VANILLA) -> Sampler:
        return Sampler(self.base, self.sampling, accelerator)

    def shortcut(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            if self.kind == "maskgit":
                return MaskGITShortcut(48, num_heads=4)
            return DiMOOShortcut(48, num_heads=4, mlp_channels=32, rope_theta=1e4)

    def recorded(self, kept: str = "float32") -> Trajectories:
        if kept not in self.known:
            chosen = {"seed": 0, "inputs": self.inputs, "batch_size": 2, "dtype": KEPT[kept]}
            self.known[kept] = record(self.sampler(), torch.arange(3), **chosen)
        return self.known[kept]

    def batch(self, kept: str = "float32", together: bool = False) -> Pairs:
        """Pairs of several steps and both halves, where a training would have them."""
        pairs = PairDataset(InMemory(self.recorded(kept)), together=together)
        return move_data_to_device(pairs.__getitems__(list(range(0, len(pairs), 3))), self.base.device)


def configured(group: str, name: str, **context: Any) -> Any:
    """A node of conf/, its one-level defaults included."""
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    parents = [parent for parent in node.pop("defaults", []) if parent != "_self_"]  # type: ignore[union-attr]
    node = OmegaConf.merge(*(OmegaConf.load(CONF / group / f"{parent}.yaml") for parent in parents), node)
    whole = OmegaConf.create({**context, "node": node})
    return build(OmegaConf.to_container(whole, resolve=True)["node"])  # type: ignore[index, call-overload]


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


SAMPLER = {
    "seed": 0,
    "sampling": {
        "num_steps": 4,
        "schedule": {"_target_": "migm.sampling.schedule.CosineFloor"},
        "draw": {"_target_": "migm.sampling.draw.InverseCDF"},
        "select": {"_target_": "migm.sampling.select.Confidence", "temperature": 1.0},
    },
}


def trained(place: Place, objective: str = "mse", optimizer: str = "adamw") -> list[Tensor]:
    """Losses of a calibrated shortcut's training steps, and its weights; after the first the optimizer is restored."""
    shortcut, make = place.shortcut(), configured("optimizer", optimizer)
    shortcut.calibrate(embeddings(place.base, place.inputs))
    shortcut.to(place.base.device)
    judge = made_ready(configured("objective", objective, **SAMPLER), place.sampling.guidance)
    batch = place.batch(together=isinstance(judge, GuidedObjective) and judge.together)
    used, losses = make(shortcut.named_parameters()), []
    for i in range(3 if objective == "rollout_3" else 2):  # a roll-out grows with them
        loss, log = judge(shortcut, place.base, batch, i)
        loss.backward()
        used.step()
        used.zero_grad()
        losses += [loss.detach().cpu(), *(value.cpu() for value in log.values())]
        if not i:
            state = move_data_to_device(used.state_dict(), torch.device("cpu"))
            used = make(shortcut.named_parameters())
            used.load_state_dict(state)
    return [*losses, *(weight.detach().cpu() for weight in shortcut.parameters())]


def stored(place: Place, kept: str = "float32") -> list[Tensor]:
    """What is recorded, and the pairs and the features of an image that come of it."""
    made = place.recorded(kept)
    pairs = with_features(place.batch(kept), place.base)
    image = {name: tensor[0] for name, tensor in made.tensors().items()}
    return [
        *made.tensors().values(),
        *(x.cpu() for x in pairs if isinstance(x, Tensor)),
        stored_features(image, place.base),
    ]


def drawn(place: Place, accelerator: Accelerator, initial: Tensor | None = None) -> list[Tensor]:
    """Tokens and images."""
    numbers, sampler = torch.arange(3), place.sampler(accelerator)
    tokens = sampler.tokens(place.inputs(numbers), sampler.noise(0, numbers), initial=initial)
    return [tokens.cpu(), place.base.decode(tokens).cpu()]


def painted(place: Place) -> list[Tensor]:
    """Images whose right half alone is drawn."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=generator)
    white = (torch.arange(32) >= 16).expand(1, 20, -1)
    kept = kept_tokens(place.base, photo, white)
    return [kept.cpu(), *drawn(place, VANILLA, kept.expand(3, -1))]


def tokenized(place: Place) -> list[Tensor]:
    """Tokens of photos of the CPU, as pretraining makes them, and what they are drawn as."""
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return [place.base.tokenizer.to_tokens(photos).cpu(), reconstruct(place.base.tokenizer, photos)]


def benched(place: Place) -> list[Tensor]:
    """What the parts of a step that are timed give, tokens to images aside, which it draws at random."""
    jobs: Any = step_jobs(place.sampler(), Shortcut(module=place.shortcut()), place.inputs(torch.arange(2)))
    with torch.inference_mode():
        made = {name: job() for name, job in jobs.items()}
    stepped = [made[name].tokens for name in ("tail", "cheap_and_tail")]
    return [torch.tensor(x.shape) for x in (*made["full"], *made["cheap"], *stepped)]


def fitted(place: Place) -> list[Tensor]:
    """What `migm.calibrate` works out."""
    found = calibrate(place.sampler(), place.inputs, 3, 2, seed=0)
    return [torch.from_numpy(found.gram)]
