"""Write the assets of `base=cifar10_deep` from the trained files, each with a card in its metadata.

    python experiments/007-cifar10-deep/bundle.py --given <folder> --assets migm/assets/cifar10_deep

The folder holds tokenizer, base, shortcut and shortcut_r1 as safetensors. Everything is stored in bfloat16: the
precision in which the base was kept and all of it was measured. The shortcuts get this tree's fingerprints of the base.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import migm
from migm.bases.tokenizer import ConvVQ
from migm.bases.weights import assign_strictly, read_tensors
from migm.runtime.files import write_tensors
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut

DATA = "the 50,000 training photos of CIFAR-10"
MADE = "one NVIDIA H200, bfloat16 autocast; experiments/007-cifar10-deep"
LEARNED = (
    "1,770 steps of 256 pairs of 2,048 trajectories (w 1, T 60, N 32, both guidance halves, bfloat16); MSE of masked "
    "rows; Muon inside of blocks, else AdamW, 3e-3, warm-up 100 steps, linear decay over the last 80%, average 0.998"
)
MEASURED = "fd_cifarnet_5000, class_agreement_5000; bfloat16, w 1, T 60, N 32, one seed set; vanilla: 0.262, 0.919"


def card(what: str, trained: str, seconds: str, measured: Any, **more: Any) -> dict[str, Any]:
    """Return what the metadata of a file say of it."""
    return {
        "what": what,
        "data": DATA,
        "trained": trained,
        "time": seconds,
        "made_with": MADE,
        "measured_on": "NVIDIA H200",
        "measured": measured,
        **more,
    }


CARDS = {
    "tokenizer": card(
        "ConvVQ, stride 2, 16x16 tokens of 512 codes, 1.9M parameters",
        "2,500 steps of 256 photos, half mirrored; L1 + 2 MSE + codebook losses; AdamW 1e-3 (codes 3e-3), one cycle",
        "27 s",
        {"psnr of 10,000 test photos, dB": 32.7, "perplexity of the codes": 430},
        stored="trained in float32, stored in bfloat16: 32.756 instead of 32.759 dB on 1,000 test photos on a CPU",
    ),
    "base": card(
        "MaskTransformer, 16 layers, 256 channels, 13.2M parameters, averaged weights",
        "3,384 + 2,765 steps of 512 photos (34.7 + 28.3 epochs), mirrored; the second part with dropout 0.1 and shifts "
        "of up to 2 pixels; cross-entropy of all tokens, mask ratio 2/pi arccos(u), class dropped with probability "
        "0.1; Muon and AdamW, 3e-3 then 2e-3, average 0.998",
        "293 s with the tokenizer, then 255 s",
        {
            "cross-entropy of masked tokens, 2,000 test photos of airplanes and automobiles, nats at mask ratio": {
                "1": 5.872,
                "0.75": 4.183,
                "0.5": 3.728,
                "0.25": 3.428,
            },
            "the same of 2,000 training photos of airplanes and automobiles": {"1": 5.785, "0.5": 3.261},
            "fd_cifarnet_5000 / class_agreement_5000, vanilla N = 32, w 1, T 60": [0.262, 0.919],
        },
    ),
    "shortcut": card(
        "MaskGITShortcut, R = 2, D = 1, 4 heads, 256 positions, 648k parameters, averaged weights",
        LEARNED,
        "105 s, shared with three other networks",
        {
            "protocol": MEASURED,
            "B": {"12": [0.309, 0.906], "8": [0.333, 0.895], "6": [0.403, 0.888], "4": [0.581, 0.859]},
        },
        stored="trained in float32, stored in bfloat16, in which it was measured",
    ),
    "shortcut_r1": card(
        "MaskGITShortcut, R = 1, D = 1, 4 heads, 256 positions, 1.98M parameters, averaged weights",
        LEARNED,
        "105 s, shared with three other networks",
        {"protocol": MEASURED, "B": {"8": [0.319, 0.898], "6": [0.364, 0.892], "4": [0.508, 0.874]}},
        stored="trained in float32, stored in bfloat16, in which it was measured",
    ),
}


def main(given: Path, assets: Path) -> None:
    """Write the four files."""
    for name in ("tokenizer", "base"):
        tensors, _ = read_tensors(given / f"{name}.safetensors", "--given")
        if name == "tokenizer":
            with torch.device("meta"):
                empty = ConvVQ(num_codes=512, code_channels=16, channels=128, depth=2, stride=2)
            assign_strictly(empty, tensors, f"--given={given}", mapped=True)  # names and shapes are ours
        half = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        write_tensors(half, assets / f"{name}.safetensors", {"card": json.dumps(CARDS[name])})
    files = {"weights": str(assets / "base.safetensors"), "tokenizer_weights": str(assets / "tokenizer.safetensors")}
    bases = [migm.load_base("cifar10_deep", device="cpu", dtype=dtype, **files) for dtype in ("bfloat16", "float32")]
    for name in ("shortcut", "shortcut_r1"):
        path = given / f"{name}.safetensors"
        shortcut, _ = load_shortcut(path, read_tensors(path, "--given")[1]["base"], "--given")
        fingerprints = [base.fingerprint() for base in bases]
        save_shortcut(shortcut.bfloat16(), fingerprints, assets / f"{name}.safetensors", CARDS[name])
        print(name, "for the base", fingerprints)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", type=Path, required=True, help="folder of the trained files")
    parser.add_argument("--assets", type=Path, required=True, help="folder to write")
    main(**vars(parser.parse_args()))
