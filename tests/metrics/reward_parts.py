"""What the checks of ImageReward share with the published package: weights, vocabulary, images, prompts.

Run by the scorers' interpreter, `python reward_parts.py record <file>` writes rewards of the published
package at a small size, and `python reward_parts.py make <file>` weights of the published size. Imports nothing
of migm.
"""

import json
import os
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SMALL = {"vision_channels": 64, "vision_layers": 2, "vision_heads": 2, "text_layers": 2}
TEXT = "a red blue green truck cat ship on the of photo with and dog house sky ##s ##ing ##ed , . !"
WORDS = TEXT.split() + [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
PROMPTS = [
    "a red truck",
    "A photo of the BLUE ship, with cats and dogs!",
    "a red truck on the green house and " * 9 + "a ship",
    "a red truck on the green house and " * 9 + "the sky",
    "déjà vu zx[ENC]",
    "the sky with a photo of the blue cat and a red truck on a ship . " * 4,
]
SIZES = [(64, 64), (300, 200), (50, 90), (224, 224), (256, 256), (100, 101)]


def vocabulary(path: Path, count: int = 0) -> int:
    """Write a BERT vocabulary of at least `count` words -> its size."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]
    words += [f"[unused{i}]" for i in range(count - len(words))]
    path.write_text("\n".join(words) + "\n")
    return len(words)


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """Values that depend on the tensor's name alone and keep activations of order one."""
    if name.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    some = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(min(int(np.prod(shape)), 49_999))
    drawn = np.resize(some.astype(np.float32), shape)  # repeated: 447 million draws take their time
    if len(shape) > 1:
        return torch.from_numpy(drawn / np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(0.1 * drawn + ("norm" in name.lower() and name.endswith("weight")))


def photos() -> list[Image.Image]:
    """As many pictures as prompts, of several sizes and shapes."""
    drawn = []
    for i, size in enumerate(SIZES):
        coarse = np.random.RandomState(i).randint(0, 256, (5, 5, 3)).astype(np.uint8)
        drawn.append(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return drawn


def published(vocab_size: int, small: bool):
    """The package's model with the weights above, in a working directory that holds what it looks for."""
    from ImageReward.ImageReward import ImageReward
    from ImageReward.models.BLIP import blip_pretrain, vit

    sys.path.insert(0, str(Path(__file__).parents[2] / "migm" / "metrics" / "scorers"))
    from worker import MED_CONFIG

    config = {**MED_CONFIG, "vocab_size": vocab_size}
    if small:
        config["num_hidden_layers"] = SMALL["text_layers"]
        sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 224}
        blip_pretrain.create_vit = lambda *_: (vit.VisionTransformer(**sizes), 64)
    Path("med_config.json").write_text(json.dumps(config))
    model = ImageReward(med_config="med_config.json").eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: weight(name, shape) for name, shape in shapes.items()})
    return model, shapes


def main() -> None:
    task, target = sys.argv[1], Path(sys.argv[2]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        words = Path("bert-base-uncased")
        words.mkdir()
        (words / "config.json").write_text('{"model_type": "bert"}')
        known = vocabulary(words / "vocab.txt", 0 if task == "record" else 30522)
        model, shapes = published(known + 2, task == "record")
        if task == "make":
            torch.save(model.state_dict(), target)
            return
        with torch.inference_mode():
            single = [model.score(prompt, image) for prompt, image in zip(PROMPTS, photos(), strict=True)]
            several = [model.inference_rank(prompt, photos())[1] for prompt in PROMPTS[:3]]
    package = f"image-reward {version('image-reward')}"
    target.write_text(
        json.dumps({"package": package, "shapes": shapes, "single": single, "several": several}, indent=1)
    )


if __name__ == "__main__":
    main()
