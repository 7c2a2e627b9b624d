"""The commands of the tiny experiments one after the other on a device, and what they leave to compare."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import migm.bench
import migm.generate
import migm.train
from migm.trajectories.store import Store

Call = Callable[..., tuple[int, str, str]]

SMALL = [
    "base.dtype=float32",
    "trainer.precision=32-true",
    "optimizer=adamw",  # Muon's own precision is that of the device
    "sampling.num_steps=5",
    "sampling.num_full_steps=2",
    "data.num_images=6",
    "data.num_val_images=2",
    "data.shard_images=4",
    "data.collect_batch_size=3",
    "data.batch_size=4",
    "evalset.num_images=4",
    "evalset.batch_size=2",
    "trainer.max_steps=4",
    "report=false",
]
KINDS = {
    "maskgit": ["+experiment=tiny_shortcut", "points.vanilla=[5]", "points.reuse=[[5,2]]", "points.shortcut=[[5,2]]"],
    "dimoo": [
        "+experiment=dimoo_tiny",
        "base.random_weights=true",
        "base.tokenizer_dtype=float32",  # auto decodes large maps in bfloat16 on CUDA
        "base.transformer.n_layers=2",
        "points.vanilla=[5]",
        "points.reuse=[[5,2]]",
        "points.ml_cache=[5]",
        "points.shortcut=[[5,2]]",
    ],
}
SHOWN = {"maskgit": "labels=[3,7]", "dimoo": "prompt='a dark photo of a red truck'"}
TIMED = ("seconds_per_image", "peak_bytes", "cache_bytes")
BENCH = {
    "compute": ["batch_sizes=[2]", "repeats=1"],
    "loading": [
        "part=loading",
        "data.batch_size=4",
        "loading.num_images=8",
        "loading.tar_images=2",
        "loading.online_images=2",
        "loading.batches=2",
        "loading.base_batches=1",
        "loading.cold_pairs=1",
    ],
}


@dataclass
class Left:
    """What the commands wrote."""

    stored: dict[str, Tensor]  # trajectories
    shortcut: dict[str, Tensor]
    values: dict[tuple[str, str], float]  # of metrics and of counted costs, by metric and accelerator
    images: np.ndarray  # painted into


def run(
    call: Call, kind: str, device: str, folder: Path, assets: Path, bench: Sequence[str] = (), like: Path | None = None
) -> Left:
    """Collect, train, evaluate and paint into an image; then the parts of `bench`, and what all costs with any.

    Painting is by the shortcut of the run in `like`, where there is one, since trainings round otherwise on
    another device.
    """
    name = {"maskgit": "tiny_shortcut", "dimoo": "dimoo_tiny"}[kind]
    shared = [*KINDS[kind], f"paths.output_dir={folder}", f"device={device}"]
    if kind == "maskgit":
        shared.append(f"paths.assets={assets}")

    def done(main: Callable[[], None], *more: str) -> None:
        code, out, err = call(main, *shared, *more)
        assert code == 0, out + err

    done(migm.train.main, *SMALL, f"cost={str(bool(bench)).lower()}")
    few = [line for line in SMALL if line.startswith(("base", "sampling", "optimizer"))]
    weights = f"accelerator.predictor.weights={(like or folder) / name / 'shortcut.safetensors'}"
    photo = [f"{part}={picture(folder / f'{part}.png', kind)}" for part in ("image", "mask")]
    done(migm.generate.main, *few, SHOWN[kind], "seeds=[0,1]", weights, f"folder={folder / 'painted'}", *photo)
    for part in bench:
        done(migm.bench.main, *few, *BENCH[part])

    (manifest,) = folder.rglob("manifest.jsonl")
    lines = (folder / name / "results.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if not record["metric"].startswith(TIMED)]
    painted = sorted((folder / "painted").rglob("*.png"))
    return Left(
        stored(Store(manifest.parent)),
        load_file(folder / name / "shortcut.safetensors"),
        {(record["metric"], record["accelerator"]): record["value"] for record in records},
        np.stack([np.array(Image.open(path)) for path in painted]).astype(int),
    )


def stored(store: Store) -> dict[str, Tensor]:
    """Every tensor of every shard."""
    return {f"{i} {name}": x.clone() for i in range(len(store.shards)) for name, x in store.open(i).items()}


def picture(path: Path, kind: str) -> Path:
    """A photo of noise of the size that a base draws; or a mask, white in its upper half."""
    side = {"maskgit": 16, "dimoo": 32}[kind]
    noise = np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8)
    white = np.where(np.arange(side)[:, None] < side // 2, 255, 0).repeat(side, 1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(white if path.stem == "mask" else noise).save(path)
    return path


def compare(found: Left, wanted: Left, rounding: bool) -> None:
    """Tokens are equal, and all else: to the bit, or as near as another device's `rounding` leaves it."""
    assert found.stored.keys() == wanted.stored.keys()
    for name, right in wanted.stored.items():
        close = {"rtol": 2**-6, "atol": 2**-6} if rounding and right.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(found.stored[name], right, **close, msg=lambda text, name=name: f"{name}: {text}")
    assert found.shortcut.keys() == wanted.shortcut.keys()
    for name, right in wanted.shortcut.items():
        off = (found.shortcut[name] - right).abs()
        # The first steps of AdamW are of one size, whatever the gradient: where it is near 0 their sign is rounding.
        assert off.mean() <= 1e-3 * rounding, name
        assert off.max() <= 4 * 2 * 2e-3 * rounding, name
    for key, right in wanted.values.items():
        if not rounding or (key[1] != "shortcut" and "agreement" not in key[0]):
            assert found.values[key] == pytest.approx(right, rel=0.02 * rounding), key
    assert np.abs(found.images - wanted.images).max() <= 2 * rounding
