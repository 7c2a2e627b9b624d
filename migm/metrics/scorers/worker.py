"""Score images inside the scorers' environment: JSON lines in, scores out. Imports nothing of migm.

The first line holds the settings, `{"scorer": "image_reward", ...}`, answered by `{"ready": true, ...}`. Then
each line is a batch, `{"items": [{"image": path, "prompt": text}, ...]}`, answered by
`{"scores": [{"score": 0.5} or {"error": "..."}, ...]}` in the same order.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Score = Callable[[dict[str, str]], Any]

# BLIP's text encoder, as in the med_config.json beside ImageReward's weights.
MED_CONFIG = {
    "hidden_act": "gelu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def image_reward(settings: dict[str, Any]) -> tuple[Score, str]:
    """Load ImageReward by the published package, which reads its tokenizer below the working directory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path("bert-base-uncased")
    folder.mkdir(exist_ok=True)
    shutil.copy(settings["vocab"], folder / "vocab.txt")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    Path("med_config.json").write_text(json.dumps(MED_CONFIG))
    import ImageReward  # pyright: ignore[reportMissingImports]
    import torch

    model = ImageReward.load(settings["weights"], device=settings["device"], med_config="med_config.json")

    @torch.inference_mode()
    def score(item: dict[str, str]) -> float:
        return model.score(item["prompt"], item["image"])

    return score, f"image-reward {version('image-reward')}"


def unipercept(settings: dict[str, Any]) -> tuple[Score, str]:
    """Load UniPercept's quality scorer (IQA), 0 to 100; the package's answer None becomes an error."""
    from unipercept_reward import UniPerceptRewardInferencer  # pyright: ignore[reportMissingImports]

    model = UniPerceptRewardInferencer(model_path=settings["weights"], device=settings["device"])

    def score(item: dict[str, str]) -> float | None:
        (scores,) = model.reward(image_paths=[item["image"]])
        return None if scores is None else scores["iqa"]

    return score, f"unipercept-reward {version('unipercept-reward')}"


def echo(_settings: dict[str, Any]) -> tuple[Score, str]:
    """Return a scorer for tests of the pipe: each prompt says what to do."""

    def score(item: dict[str, str]) -> Any:
        if item["prompt"] == "crash":
            os._exit(3)
        if item["prompt"] == "hang":
            time.sleep(1000)
        if item["prompt"] == "none":
            return None
        print("what a library prints")
        return float(item["prompt"])

    return score, "echo 1"


SCORERS = {"image_reward": image_reward, "unipercept": unipercept, "echo": echo}


def outcome(score: Score, item: dict[str, str]) -> dict[str, Any]:
    """Return the score of one item, or its error."""
    try:
        value = score(item)
    except Exception as error:  # the failure of an item must not stop the others: the caller refuses it
        return {"error": f"{type(error).__name__}: {error}"}
    if value is None:
        return {"error": "the scorer gave no score"}
    return {"score": value} if math.isfinite(value) else {"error": f"the score {value} is not finite"}


def main() -> None:
    """Answer until the other side closes the pipe."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the error stream, not between the answers
    settings = json.loads(sys.stdin.readline())
    score, package = SCORERS[settings["scorer"]](settings)
    print(json.dumps({"ready": True, "package": package}), file=answers, flush=True)
    for line in sys.stdin:
        scores = [outcome(score, item) for item in json.loads(line)["items"]]
        print(json.dumps({"scores": scores}), file=answers, flush=True)


if __name__ == "__main__":
    main()
