"""Generate images of labels or prompts and seeds into a grid and a folder."""

import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from migm.bases.base import Base, Inputs, StepRecord
from migm.bases.footprint import footprint
from migm.bases.inputs import read_prompts, review
from migm.config.building import build
from migm.config.points import point
from migm.config.roots import GenerateConfig, ImagesConfig
from migm.runtime.compiling import notice
from migm.runtime.console import Plain
from migm.runtime.device import pick_device
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.pictures import is_grid
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.runtime.writing import writing
from migm.sampling.gallery import Gallery, Grid, read_image, refuse_unknown_format
from migm.sampling.sampler import Sampler, say_weights

FIRST = 10  # number of the evalset's inputs that are drawn by default


class Generator:
    """Make images of one configuration, and add up their number and time; `advance` is called after every step.

    `initial` (l,) holds the tokens that every image keeps, and masks elsewhere.
    """

    def __init__(self, sampler: Sampler, run_seed: int, initial: Tensor | None, advance: Callable[[], Any]):
        self.sampler, self.run_seed, self.initial, self.advance = sampler, run_seed, initial, advance
        self.images = self.steps = 0  # `steps` counts each image's steps
        self.sampling_seconds = self.decoding_seconds = 0.0

    def on_step(self, record: StepRecord) -> None:
        self.steps += len(record.tokens)
        self.advance()

    def make(self, shown: int | str, seeds: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Return images (b, 3, h, w) of one label or prompt, and the seconds per image."""
        b, start = len(seeds), time.perf_counter()
        initial = None if self.initial is None else self.initial.expand(b, -1)
        noise = self.sampler.noise(self.run_seed, torch.tensor(seeds))
        replays = initial is None and self.sampler.replays  # then no step is seen
        tokens = self.sampler.tokens(repeated(shown, b), noise, [] if replays else [self], initial)
        for _ in range(self.sampler.num_steps if replays else 0):
            self.steps += b
            self.advance()
        tokens[0, 0].item()  # reading a value waits for the GPU
        middle = time.perf_counter()
        images = self.sampler.base.decode(tokens).cpu()
        sampling, decoding = middle - start, time.perf_counter() - middle
        self.images += b
        self.sampling_seconds += sampling
        self.decoding_seconds += decoding
        return images, {"sampling_seconds": sampling / b, "decoding_seconds": decoding / b}

    def summary(self) -> str:
        """Return the milliseconds of one step and of decoding one image."""
        step, decoding = self.sampling_seconds / self.steps, self.decoding_seconds / self.images
        return f"{1e3 * step:.2f} ms a step, {1e3 * decoding:.2f} ms decoding each"


def run(config: GenerateConfig) -> None:
    """Draw one row per label or prompt and one column per seed; a seed is an image's number in the run of `seed`."""
    refuse(config)
    with ExitStack() as stack:
        stack.enter_context(writing(config.output, f"output={config.output}"))
        if config.folder:
            stack.enter_context(writing(config.folder, f"folder={config.folder}", folder=True))
        make(config)


def make(config: GenerateConfig) -> None:
    """Build the sampler, then fill the grid and the folder."""
    inputs, inpainting, chosen = wanted_inputs(config), photo_and_mask(config), point(config)
    console, memory = Plain(), footprint(config.base)
    if memory:
        console.print(str(memory))
        memory.refuse_too_large(pick_device(config.device), config.batch_size or len(config.seeds or [0]))
    base = build(config.base)
    sampler = Sampler(base, *chosen)
    say_weights([sampler], console)
    # Eight seeds by default, but one seed for large images, which take long.
    seeds = list(range(8 if base.spec.num_tokens <= 256 else 1)) if config.seeds is None else config.seeds
    review(base, [str(shown) for shown in inputs] if isinstance(inputs[0], str) else torch.tensor(inputs))
    total, grid = len(inputs) * len(seeds), Grid(len(inputs), seeds, base.spec.num_tokens, inpainting and inpainting[0])
    if not grid.whole and not config.folder:
        raise UserError(f"{total} images do not fit one grid: set folder=<where to keep them>")
    initial = kept_tokens(base, *inpainting) if inpainting else None
    gallery = Gallery(Path(config.folder), inputs, settings(config, sampler, initial)) if config.folder else None
    done = dict(gallery.done) if gallery else {}
    batches = missing(len(inputs), seeds, done, config.batch_size or len(seeds))
    if done:
        there = total - sum(len(batch) for _, batch in batches)
        console.print(f"{there} of {total} images are in {config.folder} already")
    for place, path in done.items():
        if grid.holds(*place):
            grid.add(*place, read_image(path, "folder"))

    if batches and (note := notice(sampler.fast)):
        console.print(note)
    origin = {"image": config.image, "mask": config.mask, **sampler.chosen, **environment(base.device)}
    with progress(console, "steps") as bar:
        task = bar.add_task("generate", total=len(batches) * sampler.num_steps)
        generator = Generator(sampler, config.seed, initial, lambda: bar.advance(task))
        for number, (row, batch) in enumerate(batches, 1):
            images, seconds = generator.make(inputs[row], batch)
            bar.update(task, completed=number * sampler.num_steps)  # in-painting may have taken fewer steps
            for seed, image in zip(batch, images, strict=True):
                if grid.holds(row, seed):
                    grid.add(row, seed, image)
                if gallery:
                    gallery.add(row, seed, image, {**seconds, **origin})

    width, height = grid.save(Path(config.output), sampler.chosen)
    took = f": {generator.summary()}" if generator.images else ""
    shown = "" if grid.whole else f" (the first {grid.rows} x {len(grid.seeds)})"
    folder = f" and {config.folder}" if gallery else ""
    console.print(f"{generator.images} images of {width}x{height}{took}, in {config.output}{shown}{folder}")


def refuse(config: GenerateConfig) -> None:
    """Refuse keys that contradict each other or ask for nothing, before anything is built."""
    refuse_inputs(config)
    if (config.image is None) != (config.mask is None):
        raise UserError(f"image={config.image}, mask={config.mask}: in-painting needs both")
    refuse_unknown_format(config.output)
    if Path(config.output).is_file() and not is_grid(Path(config.output)):
        raise UserError(f"output={config.output} is there, and not a grid that migm made; choose another, or delete it")


def refuse_inputs(config: ImagesConfig) -> None:
    """UserError unless at most one of labels, prompt and prompts is given, and the prompt is not empty."""
    named = {"labels": config.labels, "prompt": config.prompt, "prompts": config.prompts}
    chosen = [f"{key}={value}" for key, value in named.items() if value is not None]
    if len(chosen) > 1:
        raise UserError(f"{', '.join(chosen)}: give one of labels, prompt and prompts")
    if config.prompt is not None and not config.prompt.strip():
        raise UserError(f"prompt={config.prompt} is empty: give one, or null")


def wanted_inputs(config: ImagesConfig) -> list[int] | list[str]:
    """Return the labels or prompts of the config, by default the first inputs of its evalset."""
    if config.prompts is not None:
        prompts = read_prompts(Path(config.prompts), "prompts")
        if not prompts:
            raise UserError(f"prompts={config.prompts} holds no prompt")
        return prompts
    if config.prompt is not None:
        return [config.prompt.strip()]
    if config.labels is not None:
        return config.labels
    first = build(config.evalset["inputs"])(torch.arange(FIRST))
    return list(dict.fromkeys(first.tolist() if isinstance(first, Tensor) else first))


def repeated(shown: int | str, b: int) -> Inputs:
    """Repeat a label or prompt b times, as input for a base."""
    return [shown] * b if isinstance(shown, str) else torch.full((b,), shown)


def missing(
    num_inputs: int, seeds: list[int], done: Container[tuple[int, int]], batch_size: int
) -> list[tuple[int, list[int]]]:
    """Return the images that are left to make, in batches: the number of an input and seeds for it."""
    left = [[seed for seed in seeds if (row, seed) not in done] for row in range(num_inputs)]
    return [(row, part[i : i + batch_size]) for row, part in enumerate(left) for i in range(0, len(part), batch_size)]


def photo_and_mask(config: GenerateConfig) -> tuple[Tensor, Tensor] | None:
    """Return the image (3, h, w) for in-painting and where its mask, of any size, is white (1, h', w')."""
    if config.image is None or config.mask is None:
        return None
    white = read_image(Path(config.mask), "mask", "L") >= 128
    if not white.any():
        raise UserError(f"mask={config.mask} has no white pixel (transparent is not white): nothing would be painted")
    return read_image(Path(config.image), "image"), white


def kept_tokens(base: Base, photo: Tensor, white: Tensor) -> Tensor:
    """Return the tokens (l,) of the image, masked where any pixel of the token is white."""
    masked = adaptive_max_pool2d(white.float(), base.spec.grid).flatten().bool()
    return base.tokenize(photo[None])[0].where(~masked.to(base.device), base.spec.vocab_size)


def settings(config: GenerateConfig, sampler: Sampler, initial: Tensor | None) -> dict[str, Any]:
    """Return all that an image depends on besides its label or prompt and its seed."""
    return {
        "run_seed": config.seed,
        "decoder": sampler.base.decoder_fingerprint(),
        "grid": list(sampler.base.spec.grid),
        **sampler.identity,
        "initial": None if initial is None else tensors_hash({"tokens": initial}),
    }
