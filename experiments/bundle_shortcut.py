"""Bundle a trained shortcut with its base: bfloat16, beside the base's weights, with a card of how it was made.

    python experiments/bundle_shortcut.py --trained outputs/cifar10_shortcut

The folder is one that `migm.train` wrote: shortcut.safetensors, config.yaml, the log of the training, and results.jsonl
where points were measured.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from migm.bases.weights import read_tensors
from migm.config.building import build
from migm.evaluation.results import read
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut

FILE = "shortcut.safetensors"


def measured(folder: Path) -> dict[str, Any]:
    """Return last validation errors, and metric -> point -> value by the first seed set."""
    (log,) = sorted(folder.glob("train/version_*/metrics.csv"))[-1:]
    last = [row for row in csv.DictReader(log.open()) if row["val/feature_mse"]][-1]
    found: dict[str, Any] = {key: float(last[key]) for key in ("val/feature_mse", "val/reuse_mse")}
    results = folder / "results.jsonl"
    for record in read(results) if results.is_file() else ():
        if "seed_set" in record and record["seed_set"] == 1:
            point = f"{record['accelerator']} {record['num_steps']},{record['num_full_steps']}"
            found.setdefault(record["metric"], {})[point] = round(record["value"], 4)
    return found


def card(folder: Path, config: Any) -> dict[str, Any]:
    """Return the card: network, training, data, command, measurements."""
    shortcut, data, trainer = config.shortcut, config.data, config.trainer
    kind = shortcut["_target_"].rpartition(".")[2]
    sizes = ", ".join(f"{k}={v}" for k, v in shortcut.items() if k not in ("_target_", "channels"))
    return {
        "what": f"{kind}, {sizes}; averaged weights",
        "data": f"{data.num_images - data.num_val_images:,} trajectories of vanilla N = {config.sampling.num_steps}",
        "trained": f"{trainer.max_steps:,} steps of {data.batch_size} pairs; seed {config.seed}",
        "measured": measured(folder),
        "stored": "trained in float32, stored in bfloat16",
    }


def main(trained: Path) -> None:
    """Write the file, for the base in float32 and in bfloat16."""
    config = OmegaConf.load(trained / "config.yaml")
    base = OmegaConf.to_container(config.base, resolve=True)
    bases = [build({**base, "device": "cpu", "dtype": dtype}) for dtype in ("bfloat16", "float32")]
    path = trained / FILE
    shortcut, _ = load_shortcut(path, read_tensors(path, "--trained")[1]["base"], "--trained")
    weights = Path(base["weights"])
    target = (weights if weights.is_dir() else weights.parent) / FILE
    save_shortcut(shortcut.bfloat16(), [b.fingerprint() for b in bases], target, card(trained, config))
    print(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True, help="folder that migm.train wrote")
    main(**vars(parser.parse_args()))
