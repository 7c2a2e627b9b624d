"""Both families of bases at tiny size in float64, and the methods of conf/accelerator as they are configured."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from placed_parts import is_placed, write_placed
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.base import Branch, StepRecord
from migm.config.building import build, conf_path
from migm.runtime.identity import identity
from migm.sampling.calibrate import calibrate
from migm.sampling.loop import Sampling
from migm.sampling.noise import Noise
from migm.sampling.sampler import Sampler
from migm.shortcuts.checkpoint import save_shortcut
from migm.shortcuts.network import ShortcutNetwork

N, B = 8, 3
LABELS = [3, 7, 0]
PROMPTS = ["a red bird on a lake at night, far away, under the moon", "a cat", "an old grey ship in a storm"]
FOLDER = Path(conf_path()) / "accelerator"


def of_another_base(file: Path) -> bool:
    """Whether a method's weights are published or bundled for one base, which is not among the families."""
    return any(origin in file.read_text(encoding="utf-8") for origin in ("hf://", "${paths.assets}"))


FILES = [file for file in FOLDER.glob("*.yaml") if file.stem != "auto"]  # by which a front chooses one of the others
METHODS = sorted(file.stem for file in FILES if not of_another_base(file))


@dataclass
class Family:
    """A base, three images to ask it for, how to sample them, and the folder of what its methods learned."""

    name: str
    base: Any
    inputs: Sequence[Any]
    sampling: Sampling
    folder: Path
    runs: dict[int, tuple[Accelerator, tuple[Tensor, list[StepRecord]]]] = field(default_factory=dict)

    def some(self, images: Sequence[int]) -> Any:
        chosen = [self.inputs[i] for i in images]
        return torch.tensor(chosen) if isinstance(chosen[0], int) else chosen

    def accelerator(self, method: str, **changes: Any) -> Accelerator:
        """A method of conf/accelerator with B full steps where it has a choice; `changes` are keys of its YAML."""
        cfg = OmegaConf.create(
            {
                "accelerator": OmegaConf.load(FOLDER / f"{method}.yaml"),
                "sampling": {"num_steps": N, "num_full_steps": changes.pop("num_full_steps", B)},
                "paths": {"output_dir": str(self.folder)},
                "name": self.name,
            }
        )
        for key, value in changes.items():
            OmegaConf.update(cfg.accelerator, key.replace("__", "."), value, force_add=True)
        return build(OmegaConf.to_container(cfg.accelerator, resolve=True))  # type: ignore[index]

    def run(
        self,
        accelerator: Accelerator,
        images: Sequence[int] = (0, 1, 2),
        observers: Sequence[Any] = (),
        base: Any = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, list[StepRecord]]:
        """Generate these images -> their tokens and the record of every step."""
        records: list[StepRecord] = []
        watch = [SimpleNamespace(on_step=records.append), *observers]
        sampler = Sampler(base or self.base, self.sampling, accelerator)
        noise = noise or sampler.noise(0, torch.tensor(images))
        return sampler.tokens(self.some(images), noise, watch), records

    def first(self, accelerator: Accelerator) -> tuple[Tensor, list[StepRecord]]:
        """The first run of an accelerator with all three images, remembered for this very object."""
        if id(accelerator) not in self.runs:
            self.runs[id(accelerator)] = accelerator, self.run(accelerator)  # kept, so that no other has its id
        return self.runs[id(accelerator)][1]

    @functools.cached_property
    def vanilla(self) -> tuple[Tensor, list[StepRecord]]:
        """What the base draws at every step by itself."""
        return self.run(Accelerator(Always()))

    def learn(self, shortcut: Callable[[bool], ShortcutNetwork]) -> None:
        """Write what the methods read: a random network, one without cross attention, and a calibration on 6 images."""
        fingerprint = self.base.fingerprint()
        for suffix, cross in (("", True), ("_no_cross_attention", False)):
            network = shortcut(cross).float()
            save_shortcut(network, fingerprint, self.folder / f"{self.name}{suffix}" / "shortcut.safetensors")
        sampler = Sampler(self.base, self.sampling)
        calibration = calibrate(sampler, lambda images: self.some((images % 3).tolist()), 6, 3, seed=3)
        calibration.save(self.folder / self.name / f"calibration_n{N}.safetensors")
        for method in filter(is_placed, METHODS):
            self._place(method, fingerprint)

    def _place(self, method: str, fingerprint: str) -> None:
        """Write full steps for a method that reads them."""
        about: dict[str, Any] = {"base": [fingerprint], "sampling": self.sampling.identity}
        write_placed(self.folder / self.name, method, N, (B, N))  # whose predictor can be made now
        accelerator = self.accelerator(method)
        known = {"identity": identity(accelerator.predictor), "fingerprint": accelerator.fingerprint(self.base)}
        write_placed(self.folder / self.name, method, N, (B, N), **about, predictor=known)


def alone(branch: Branch, base: Any) -> list[Branch]:
    """Every sequence of a branch as a branch of its own, without padding."""
    return [base.branch(ids[ids >= 0][None]) for ids in branch.condition]


def sequences(record: StepRecord) -> list[list[Tensor]]:
    """The features (t, c) of every image's sequences without padding, conditional first."""
    found: list[list[Tensor]] = []
    for branch, features in zip(record.branches, record.features, strict=True):
        masks = [slice(None)] * len(features) if branch.mask is None else list(branch.mask)
        kept = [f[mask] for f, mask in zip(features, masks, strict=True)]
        images = len(kept) // branch.copies
        found += [kept[i * images : (i + 1) * images] for i in range(branch.copies)]
    return [list(halves) for halves in zip(*found, strict=True)]


def branches_of(record: StepRecord, base: Any) -> list[list[Branch]]:
    """The branches that belong to `sequences`."""
    found: list[list[Branch]] = []
    for branch in record.branches:
        single = alone(branch, base)
        images = len(single) // branch.copies
        found += [single[i * images : (i + 1) * images] for i in range(branch.copies)]
    return [list(halves) for halves in zip(*found, strict=True)]


def tokens_before(records: Sequence[StepRecord], base: Any) -> list[Tensor]:
    """The tokens (b, l) that each step saw: all masked at the first."""
    first = torch.full_like(records[0].tokens, base.spec.vocab_size)
    return [first, *(record.tokens for record in records[:-1])]


def shared_rows_are_computed_once(family: Family, accelerator: Accelerator) -> None:
    """Local steps that reveal all positions ask for each of the rows that these share, once."""
    seen: list[Tensor | None] = []
    prepare = family.base.prepare

    def watched(tokens: Tensor, branch: Branch, moment: Any, rows: Tensor | None = None) -> Any:
        seen.append(rows)
        return prepare(tokens, branch, moment, rows)

    family.base.prepare = watched
    try:
        family.run(accelerator)
    finally:
        del family.base.prepare
    rows = next(rows for rows in seen if rows is not None)
    assert rows.shape[1] == family.base.spec.num_tokens // family.base.spec.positions_per_row
    assert all(len(set(row.tolist())) == len(row) for row in rows)
