"""Sample from Python: base, steps and accelerator by name or object -> PIL images."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Uniform
from migm.bases.base import Base
from migm.config.by_front import AUTO
from migm.config.points import Chosen, point
from migm.config.roots import GenerateConfig
from migm.door.configs import NAME, built, config_of, hydra_on_our_tree, random_state
from migm.door.images import Images
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.pictures import as_picture
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.sampling import sampler as core
from migm.sampling.generation import Generator
from migm.sampling.loop import Sampling


class Sampler(core.Sampler):
    """Make images of a base in `num_steps` steps, of which `num_full_steps` run the base.

    `accelerator` is a name of conf/accelerator, an Accelerator, or a predictor (`migm.load_shortcut`), which then runs
    between evenly spread full steps; without it the base runs at every step. `sampling` is a name of conf/sampling or a
    Sampling, by default the base's own. `overrides` change keys of both, such as {"sampling.guidance.guidance_scale":
    3, "accelerator.policy.interval": 4}. Instead, `speed`, `quality` (a share of vanilla's) or accelerator="auto" take
    steps and accelerator from the base's front, or from the file `front` (docs/fronts.md). Any object of tier 1
    (`migm.bases.base.Base`) is a base. Raises UserError for values that do not fit together.
    """

    def __init__(
        self,
        base: Base,
        num_steps: int | None = None,
        num_full_steps: int | None = None,
        accelerator: Any = None,
        sampling: str | Sampling | None = None,
        overrides: Mapping[str, Any] | None = None,
        variant: str = "",
        speed: float | None = None,
        quality: float | None = None,
        front: str | Path | None = None,
    ):
        for group, part in {"sampling": sampling, "accelerator": accelerator}.items():
            unused = [key for key in overrides or () if key.partition(".")[0] == group]
            if unused and part is not None and not isinstance(part, str):
                raise UserError(f"overrides={unused}: {group} is an object here; change it itself, or give its name")
        steps = {"num_steps": num_steps, "num_full_steps": num_full_steps}
        given = {f"sampling.{key}": value for key, value in steps.items() if value is not None} | dict(overrides or {})
        by_name = isinstance(accelerator, str)
        if speed is not None or quality is not None or accelerator == AUTO:
            wanted = {"speed": speed, "quality": quality, "front": None if front is None else str(front)}
            chosen = by_front(base, wanted, {"accelerator": accelerator, "sampling": sampling}, given)
            super().__init__(base, *chosen._replace(variant=variant or chosen.variant))
        else:
            if front is not None:
                raise UserError(f"front={front} chooses by speed=, quality= or accelerator={AUTO!r}; give one of them")
            if isinstance(sampling, Sampling):
                steps = {key: getattr(sampling, key) if value is None else value for key, value in steps.items()}
                given |= {f"sampling.{key}": value for key, value in steps.items()}
            named = {
                "accelerator": accelerator if isinstance(accelerator, str) else "vanilla",
                "sampling": sampling if isinstance(sampling, str) else None,
            }
            config = config_of(GenerateConfig, base, given, **named)
            rules = replace(sampling, **steps) if isinstance(sampling, Sampling) else built(config.sampling)
            made = accelerator_of(accelerator, config, rules)
            super().__init__(base, rules, made, variant, built(config.runtime))
        if by_name or self.decision:
            core.say_weights([self], Plain())

    def __call__(
        self,
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        seeds: Sequence[int] = range(1),
        run_seed: int = 0,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Images:
        """Return images of every label or prompt with every seed, in this order, the same as `migm.generate` makes.

        A seed is the number of an image in the run of `run_seed`. A batch holds `batch_size` seeds of one input.
        """
        if (labels is None) == (prompts is None):
            raise UserError(f"labels={labels}, prompts={prompts}: give one of labels and prompts")
        inputs = list(labels if labels is not None else prompts or ())
        if not inputs or not len(seeds):
            raise UserError(f"labels={labels}, prompts={prompts}, seeds={list(seeds)}: nothing to draw")
        base_inputs: Any = torch.tensor(inputs) if labels is not None else inputs
        self.base.review(base_inputs)
        size, images, start = batch_size or len(seeds), [], time.perf_counter()
        with progress(Plain(quiet=not show_progress), "steps") as bar:
            parts = [list(seeds)[i : i + size] for i in range(0, len(seeds), size)]
            task = bar.add_task("generate", total=len(inputs) * len(parts) * self.num_steps)
            generator = Generator(self, run_seed, None, lambda: bar.advance(task))
            for shown in inputs:
                for part in parts:
                    images += map(as_picture, generator.make(shown, part)[0])
        record = {
            **self.identity,
            **self.chosen,
            "decoder": self.base.decoder_fingerprint(),
            "labels" if labels is not None else "prompts": inputs,
            "seeds": list(seeds),
            "run_seed": run_seed,
            "seconds": time.perf_counter() - start,
            **environment(self.base.device),
        }
        return Images(images, record, len(seeds))


def accelerator_of(accelerator: Any, config: GenerateConfig, rules: Sampling) -> Accelerator:
    """Return the accelerator of a name or predictor, or the given one; UserError if N does not fit."""
    if accelerator is None or isinstance(accelerator, str):
        accelerator = built(config.accelerator)
    elif not isinstance(accelerator, Accelerator):
        accelerator = Accelerator(Uniform(rules.num_full_steps), accelerator, type(accelerator).__name__.lower())
    accelerator.plan(rules.num_steps)
    return accelerator


def by_front(base: Base, wanted: Mapping[str, Any], parts: Mapping[str, Any], given: Mapping[str, Any]) -> Chosen:
    """Return the sampler that the front of a base chooses by `wanted`: speed, quality and front.

    `parts` are accelerator and sampling, `given` further keys and values. Raises UserError where they contradict the
    choice, for a part that is an object, and for a base of one's own without a file.
    """
    for group, part in parts.items():
        if part is not None and not isinstance(part, str):
            raise UserError(f"{group} is an object here, but {AUTO!r}, speed= and quality= go by names; give its name")
    if not hasattr(base, NAME) and wanted["front"] is None:
        raise UserError("front=None: a base of one's own has no front; python -m migm.tune makes one, front= names it")
    changes = {key: value for key, value in given.items() if not key.startswith("accelerator.")}
    config = config_of(GenerateConfig, base, {**changes, **wanted}, accelerator=AUTO, sampling=parts["sampling"])
    named = {group: part for group, part in parts.items() if part is not None}
    with hydra_on_our_tree(), random_state():
        return point(config, list({**named, **given}.items()))
