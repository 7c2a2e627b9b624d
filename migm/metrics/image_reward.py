"""ImageReward and UniPercept-IQA: trained scorers that predict what people like."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from migm.metrics.files import Need, required
from migm.metrics.metric import Batch, MeanMetric
from migm.metrics.networks.image_reward import (
    VOCAB_URL,
    WEIGHTS_URL,
    ImageRewardScorer,
    RewardModel,
    load_reward_model,
    reward_tokenizer,
    truncated,
)
from migm.metrics.scorers.install import python_of
from migm.metrics.scorers.process import ScorerProcess
from migm.runtime.device import DeviceName, pick_device
from migm.runtime.errors import UserError
from migm.runtime.files import file_hash, tensors_hash
from migm.runtime.reading import files_of


class ImageReward(MeanMetric):
    """Mean ImageReward; `official` runs the published package in its own environment, `adapter` our port of it.

    A prompt is read up to 35 tokens. The record holds the share of longer prompts as `truncated`.
    """

    cut: Tensor

    def __init__(
        self,
        weights: str,
        vocab: str,
        backend: Literal["adapter", "official"] = "adapter",
        scorers: str = "",
        sha256: str = "",
        offline: bool = False,
        random_weights: bool = False,
        device: DeviceName = "auto",
    ):
        super().__init__()
        self.add_sums("cut")
        if backend == "official" and random_weights:
            raise UserError("metric.image_reward.backend=official has no random weights; choose adapter")
        key = "metric.image_reward"
        words = required(vocab, "", VOCAB_URL, offline, f"{key}.vocab")
        self.tokenizer = reward_tokenizer(words, f"{key}.vocab")
        file = None if random_weights else required(weights, sha256, WEIGHTS_URL, offline, f"{key}.weights")
        if backend == "official":
            assert file is not None
            self.metric_name, self.reference_hash = "image_reward_official", file_hash(file)[:12]
            settings = {"weights": str(file.absolute()), "vocab": str(words.absolute())}
            self.score = ScorerProcess(python_of(scorers), "image_reward", str(pick_device(device)), settings)
        else:
            net = load_reward_model(file, f"{key}.weights") if file else RewardModel()
            self.metric_name = "image_reward" + "_random_weights" * random_weights
            self.score, self.reference_hash = ImageRewardScorer(net, self.tokenizer), tensors_hash(net.state_dict())

    @staticmethod
    def needs(_name: str, node: dict[str, Any]) -> list[Need]:
        files = [Need(Path(node["vocab"]), VOCAB_URL)]
        if not node["random_weights"]:
            files.append(Need(Path(node["weights"]), WEIGHTS_URL))
        return files + ([environment(node["scorers"])] if node["backend"] == "official" else [])

    def update(self, batch: Batch) -> None:
        self.add(self.score(batch.images, batch.prompts))
        self.cut += truncated(self.tokenizer, batch.prompts)

    def details(self) -> dict[str, Any]:
        package = {"package": self.score.package} if isinstance(self.score, ScorerProcess) else {}
        return {"truncated": (self.cut / self.count).item(), **package}


def environment(folder: str) -> Need:
    """Return the need for the scorers' own environment."""
    return Need(Path(folder), f"python -m migm.install_scorers {folder}")


class UniPercept(MeanMetric):
    """UniPercept-IQA (Cao et al. 2025), 0 to 100, by the published package; `weights` is the model's folder.

    The hash in the record covers names and sizes of the files: hashing 16 GB of content would take too long.
    """

    metric_name = "unipercept_iqa"

    def __init__(self, weights: str | None, scorers: str, device: DeviceName = "auto"):
        super().__init__()
        if weights is None or not Path(weights).is_dir():
            raise FileNotFoundError(
                f"metric.unipercept.weights={weights}: no such folder; give Thunderbolt215215/UniPercept's (16 GB)"
            )
        files = [path for path in files_of(Path(weights)) if path.is_file()]
        self.reference_hash = tensors_hash({}, *(f"{path.name} {path.stat().st_size}" for path in files))
        settings = {"weights": str(Path(weights).absolute())}
        self.score = ScorerProcess(python_of(scorers), "unipercept", str(pick_device(device)), settings)

    @staticmethod
    def needs(_name: str, node: dict[str, Any]) -> list[Need]:
        source = "https://huggingface.co/Thunderbolt215215/UniPercept, whole; then metric.unipercept.weights=<folder>"
        return [Need(Path(node["weights"] or "UniPercept"), source), environment(node["scorers"])]

    def update(self, batch: Batch) -> None:
        self.add(self.score(batch.images, [""] * len(batch.images)))

    def details(self) -> dict[str, Any]:
        return {"package": self.score.package}
