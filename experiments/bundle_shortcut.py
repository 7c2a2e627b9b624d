"""Write a trained shortcut as the one bundled beside its base's weights, in bfloat16, with a card in its metadata.

    python experiments/bundle_shortcut.py --base cifar10 --trained outputs/cifar10_shortcut/shortcut.safetensors
        --steps "4,000 steps of 64 pairs of 704 trajectories" --to migm/assets/shortcut.safetensors
        --command "python -m migm.train +experiment=cifar10_shortcut" [--results <results.jsonl of that file>]

The card holds data, steps and command. A second call with `--results` adds what `migm.evaluate` measured of the file.
"""

import argparse
from pathlib import Path

import migm
from migm.evaluation.results import read
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut

DATA = "the 50,000 training photos of CIFAR-10"


def main(base: str, trained: Path, steps: str, command: str, results: Path | None, to: Path) -> None:
    """Write the file `to`, which fits the base in bfloat16 and in float32."""
    fingerprints = [migm.load_base(base, device="cpu", dtype=dtype).fingerprint() for dtype in ("bfloat16", "float32")]
    shortcut, _ = load_shortcut(trained, fingerprints[1], "--trained")
    kept = load_shortcut(to, fingerprints[1], "--to")[1] if results else ""
    told = [r for r in read(results) if r["predictor"] == kept] if results else []
    measured = {f"{r['metric']} ({r['num_steps']},{r['num_full_steps']})": round(r["value"], 4) for r in told}
    card = {"data": DATA, "trained": steps, "command": command, "measured": measured}
    save_shortcut(shortcut.bfloat16(), fingerprints, to, card)
    print(f"{to}: {to.stat().st_size:,} bytes, {card}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in {"base": str, "trained": Path, "steps": str, "command": str, "to": Path}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--results", type=Path)
    main(**vars(parser.parse_args()))
