"""Measure how linears in lower precision change the tokens of the bundled bases, in float32 on a CPU.

Run from the repository's root; it takes some eight minutes of one core and writes linears.jsonl and linears.md beside
itself. `--shortcuts name=file ...` measures trained shortcuts instead of the short trainings that it makes.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import migm
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.base import Base, StepRecord
from migm.bases.linear import KINDS
from migm.config.roots import EvaluateConfig
from migm.door.configs import built, config_of
from migm.reporting.tables import markdown
from migm.runtime.errors import UserError
from migm.runtime.provenance import environment
from migm.sampling.loop import guided_logits
from migm.sampling.sampler import Sampler

HERE = Path(__file__).parent
BASES = ("cifar10", "dimoo_tiny")
IMAGES, BATCH = 200, 100
WHOLE = 20  # images of whole runs
STEPS = {"num_steps": 8, "num_full_steps": 2}
EVERY = 2  # a base is compared at every second step
# Short: the network only has to be one that was trained.
TRAINING = {"num_images": 16, "max_steps": 100, "overrides": {"data.num_val_images": 8, "data.batch_size": 32}}
Features = Callable[[StepRecord], Sequence[Tensor]]


class Along:
    """Compares, at every step of a run, the guided logits at the masked tokens and the tokens drawn from them."""

    def __init__(self, sampler: Sampler, other: Sampler, noise: Any, features: Features):
        self.sampler, self.other, self.noise, self.features = sampler, other.base, noise, features
        self.divergence = self.equal = self.rows = 0.0

    def on_step(self, record: StepRecord) -> None:
        found = self.features(record)
        if not found:
            return
        base, sampling = self.sampler.base, self.sampler.sampling
        before = record.tokens_before(base.spec.vocab_size)
        masked = (before == base.spec.vocab_size).nonzero()[:, 1].view(len(before), -1)
        at = (masked, sampling.guidance, record.index, record.num_steps)
        logits = [
            guided_logits(who, record.branches, each, *at).float()
            for who, each in ((base, record.features), (self.other, found))
        ]
        plain, lower = (each.log_softmax(-1) for each in logits)
        drawn = [sampling.draw(each, self.noise, record.index, masked)[0] for each in logits]
        self.divergence += float((plain.exp() * (plain - lower)).sum())
        self.equal += float((drawn[0] == drawn[1]).sum())
        self.rows += masked.numel()


class Advanced:
    """Features of a cheap step by another shortcut, from the same features as the plain one had."""

    def __init__(self, predictor: Shortcut, base: Base):
        self.predictor, self.base = predictor, base
        self.last: StepRecord | None = None

    def __call__(self, record: StepRecord) -> Sequence[Tensor]:
        last, self.last = self.last, record
        if record.is_full or last is None:
            return []
        found = []
        for branch, features in zip(record.branches, last.features, strict=True):
            run: Any = self.predictor.start(self.base, branch)
            run.update(last.index, features)
            found.append(run.predict(record.index, last.tokens, last.new_positions, record.moment))
        return found


@torch.inference_mode()
def compared(sampler: Sampler, others: Sequence[Sampler], inputs: Any, features: Any) -> list[dict[str, float]]:
    """Return shares of equal tokens, and the divergence in nats a token, of other samplers from the first.

    `features` makes of every other sampler its function of a step.
    """
    sums = torch.zeros(len(others), 3, dtype=torch.float64)
    for first in range(0, IMAGES, BATCH):
        numbers = torch.arange(first, min(first + BATCH, IMAGES))
        noise = sampler.noise(0, numbers)
        observers = [Along(sampler, other, noise, features(other)) for other in others]
        sampler.tokens(inputs(numbers), noise, observers)
        sums += torch.tensor([[each.divergence, each.equal, each.rows] for each in observers], dtype=torch.float64)
    numbers = torch.arange(WHOLE)
    whole = [each.tokens(inputs(numbers), each.noise(0, numbers)) for each in (sampler, *others)]
    return [
        {"kl": kl / rows, "equal_draws": drawn / rows, "equal_tokens": float((tokens == whole[0]).float().mean())}
        for (kl, drawn, rows), tokens in zip(sums.tolist(), whole[1:], strict=True)
    ]


def features_of(sampler: Sampler) -> Features:
    """Return a function that runs a base on the state of every second step."""
    base, mask = sampler.base, sampler.base.spec.vocab_size
    return lambda record: [
        base.features(record.tokens_before(mask), branch, record.moment)
        for branch in record.branches
        if not record.index % EVERY
    ]


def of_base(name: str, plain: Base, sampling: Any, inputs: Any) -> list[dict[str, Any]]:
    """Compare all kinds of linears, and bfloat16 as a yardstick, with plain linears in float32."""
    kinds = (*((kind, "float32") for kind in KINDS), ("plain", "bfloat16"))
    bases = [migm.load_base(name, device="cpu", dtype=dtype, linear=kind) for kind, dtype in kinds]
    found = compared(Sampler(plain, sampling), [Sampler(base, sampling) for base in bases], inputs, features_of)
    return [
        {"base": name, "part": "base", "kind": kind, "dtype": dtype, **each}
        for (kind, dtype), each in zip(kinds, found, strict=True)
    ]


def of_shortcut(name: str, base: Base, sampling: Any, inputs: Any, file: Path) -> list[dict[str, Any]]:
    """Compare the kinds of a shortcut between full steps of the plain base."""
    records = []
    for kind in KINDS:
        about = {"base": name, "part": "shortcut", "kind": kind, "dtype": "float32"}
        predictors = Shortcut(file), Shortcut(file, linear=kind)
        try:
            predictors[1].fingerprint(base)
        except UserError as error:
            records.append({**about, "refused": str(error)})
            continue
        plain, lower = (Sampler(base, sampling, Accelerator(Uniform(2), each, "shortcut")) for each in predictors)
        found = compared(plain, [lower], inputs, lambda other: Advanced(other.accelerator.predictor, other.base))
        records.append({**about, **found[0]})
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the note of the records."""
    columns = ["base", "network", "linears", "KL, nats a token", "equal draws", "equal tokens"]
    rows = []
    for record in records:
        if "refused" not in record:
            kind = record["kind"] if record["dtype"] == "float32" else f"{record['kind']}, {record['dtype']}"
            found = [f"{record['kl']:.2g}", *(f"{record[key]:.4f}" for key in ("equal_draws", "equal_tokens"))]
            rows.append([record["base"], record["part"], kind, *found])
    refused = [f"{r['base']}, {r['part']}, {r['kind']}: refused, {r['refused']}." for r in records if "refused" in r]
    notes = [
        "# Linears in lower precision: what they change",
        f"Written by `linears.py`. {IMAGES} images, 8 steps (shortcut: 2 of them full), float32 on a CPU, against",
        "plain linears in float32. KL of the guided distributions and the share of equal draws are over all masked",
        "tokens on the states of the plain run, at every second step; for the shortcut over each cheap step, one at a",
        f"time from the plain features. Equal tokens are those of {WHOLE} whole runs with the same noise, where one",
        "other token changes all later ones. bfloat16 with plain linears, which the published models run in, is there",
        "to compare with. Where no trained shortcut is given, it is one after 100 steps of training, hardly more than",
        "its initial weights: its rows say how much rounding moves, not how good it is.",
        "",
        markdown(columns, rows),
    ]
    return "\n".join([*notes, *(["", *refused] if refused else [])]) + "\n"


def main() -> None:
    """Measure all bases and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shortcuts", nargs="*", default=[], metavar="BASE=FILE")
    given = dict(pair.split("=", 1) for pair in parser.parse_args().shortcuts)
    records = []
    for name in BASES:
        config = config_of(EvaluateConfig, name)
        base = migm.load_base(name, device="cpu", dtype="float32")
        sampling = built({**config.sampling, **STEPS})
        inputs = built(config.evalset["inputs"])
        records += of_base(name, base, sampling, inputs)
        with TemporaryDirectory() as folder:
            if name not in given:
                migm.train_shortcut(base, folder=Path(folder) / "run", **TRAINING)
            file = Path(given.get(name, Path(folder) / "run" / "shortcut.safetensors"))
            trained = {"training": "given" if name in given else TRAINING}
            records += [{**each, **trained} for each in of_shortcut(name, base, sampling, inputs, file)]
    about = {"images": IMAGES, **environment(torch.device("cpu"))}
    lines = [json.dumps({**record, **about}) for record in records]
    (HERE / "linears.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (HERE / "linears.md").write_text(table(records), encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    main()
