"""The ImageReward adapter equals the published package; scorers in other processes lose no image silently."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_parts import PROMPTS, SMALL, photos, vocabulary, weight
from tiny_parts import naming
from torchvision.transforms.v2.functional import pil_to_tensor

from migm.bases.weights import assign_strictly
from migm.metrics import image_reward
from migm.metrics.image_reward import ImageReward, UniPercept
from migm.metrics.metric import Batch, result_name
from migm.metrics.networks.image_reward import ImageRewardScorer, RewardModel, reward_tokenizer, truncated
from migm.metrics.scorers import install
from migm.metrics.scorers.process import ScorerProcess
from migm.runtime.errors import UserError

RECORD = json.loads((Path(__file__).parent / "recorded_image_reward.json").read_text())
IMAGES = [pil_to_tensor(image) for image in photos()]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocabulary(path)
    return path


def published() -> dict[str, torch.Tensor]:
    return {name: weight(name, shape) for name, shape in RECORD["shapes"].items()}


@pytest.fixture(scope="module")
def small(vocab) -> RewardModel:
    net = RewardModel(**SMALL, vocab_size=len(vocab.read_text().split()) + 2)
    assign_strictly(net, RewardModel.from_published(published()), "recorded")
    return net


@pytest.fixture(scope="module")
def scorer(small, vocab) -> ImageRewardScorer:
    return ImageRewardScorer(small, reward_tokenizer(vocab, "vocab"))


def test_single_rewards_are_the_packages(scorer):
    found = [scorer(image[None], [prompt]).item() for image, prompt in zip(IMAGES, PROMPTS, strict=True)]
    assert found == pytest.approx(RECORD["single"], abs=1e-5)
    assert max(found) - min(found) > 1


def test_batches_of_images_and_prompts_are_the_packages(scorer):
    square = torch.stack([image for image in IMAGES if image.shape[1:] == IMAGES[0].shape[1:]])
    for prompt, expected in zip(PROMPTS, RECORD["several"], strict=False):
        for image, one in zip(IMAGES, expected, strict=True):
            assert scorer(image[None], [prompt]).item() == pytest.approx(one, abs=1e-5)
    both = scorer(square.expand(len(PROMPTS), -1, -1, -1), PROMPTS)
    alone = [scorer(square[:1], [prompt]).item() for prompt in PROMPTS]
    assert both.tolist() == pytest.approx(alone, abs=1e-5)


def test_35_tokens_are_read_and_longer_prompts_counted(scorer):
    assert [truncated(scorer.tokenizer, [prompt]) for prompt in PROMPTS] == [0, 0, 1, 1, 0, 1]
    assert truncated(scorer.tokenizer, [" ".join(["cat"] * 33)]) == 0
    assert truncated(scorer.tokenizer, [" ".join(["cat"] * 34)]) == 1
    same = scorer(IMAGES[0].expand(2, -1, -1, -1), PROMPTS[2:4])
    assert same[0] == same[1]  # they differ after the 35th token only


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.weight", ["lacks vision.encoder.layers.1.self_attn.qkv.weight"]),
        ("mlp.layers.1.weight", ["has mlp.layers.1.weight", "has not"]),
        ("blip.other", ["has blip.other", "has not"]),
    ],
)
def test_every_tensor_of_the_file_must_have_its_place(small, name, words):
    tensors = published()
    if tensors.pop(name, None) is None:
        tensors[name] = torch.zeros(1)
    with pytest.raises(UserError, match=naming("ImageReward.pt", *words)):
        assign_strictly(small, RewardModel.from_published(tensors), "ImageReward.pt")


@pytest.fixture
def metric(small, vocab, monkeypatch) -> ImageReward:
    monkeypatch.setattr(image_reward, "RewardModel", lambda: small)
    return ImageReward("none", str(vocab), offline=True, random_weights=True)


def test_the_metric_is_the_mean_and_says_what_was_cut(metric):
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        metric.update(Batch(image[None], [prompt]))
    assert metric.compute().item() == pytest.approx(sum(RECORD["single"]) / 6, abs=1e-5)
    assert metric.details() == {"truncated": 0.5}
    assert result_name(metric, 6) == "image_reward_random_weights_6"
    metric.reset()
    assert metric.count == metric.cut == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "official", "random_weights": True}, ["backend=official"]),
        ({}, ["metric.image_reward.weights=none.pt", "no such file", "THUDM/ImageReward", "paths.offline"]),
        ({"vocab": "none.txt"}, ["metric.image_reward.vocab=none.txt", "bert-base-uncased", "paths.offline"]),
        ({"vocab": __file__}, ["metric.image_reward.vocab", "no BERT vocabulary", "[PAD]"]),
    ],
)
def test_what_is_missing_or_wrong_is_refused_by_key(vocab, options, words):
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)):
        ImageReward(**{"weights": "none.pt", "vocab": str(vocab), "offline": True, **options})


@pytest.fixture
def echo():
    """A scorer that gives the number in the prompt, or does what it says."""
    made = []

    def make(**options) -> ScorerProcess:
        made.append(ScorerProcess(sys.executable, "echo", **options))
        return made[-1]

    yield make
    for process in made:
        process.close()


def items(*prompts: str) -> list[dict[str, str]]:
    return [{"image": "none.png", "prompt": prompt} for prompt in prompts]


def test_scores_come_back_in_order_from_one_process_whatever_libraries_print(echo):
    process = echo()
    assert process.score(items("1", "2.5", "-3")) == [1, 2.5, -3]
    started = process._process
    assert process.score(items("7")) == [7]
    assert process._process is started
    assert process.package == "echo 1"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("none", "no score"), ("abc", "ValueError"), ("crash", "ended with code 3"), ("nan", "not finite")],
)
def test_an_item_without_a_score_is_an_error_by_its_place_and_the_rest_goes_on(echo, bad, reason):
    process = echo()
    with pytest.raises(UserError, match=naming("echo", "1 of 3", "number 1", reason)):
        process.score(items("1", bad, "3"))
    assert process.score(items("1", "3")) == [1, 3]


def test_a_process_that_was_killed_is_started_again_within_the_batch(echo):
    process = echo()
    process.score(items("1"))
    process._process.kill()
    process._process.wait()
    assert process.score(items("4", "5")) == [4, 5]


def test_a_process_that_hangs_is_ended(echo):
    process = echo(seconds_per_item=1.0)
    with pytest.raises(UserError, match=naming("no answer within 1 s")):
        process.score(items("hang"))
    assert process.score(items("6")) == [6]


def test_a_scorer_that_cannot_start_says_its_last_words(tmp_path):
    process = ScorerProcess(sys.executable, "none")
    with pytest.raises(UserError, match=naming("none", "does not start", "code 1", "KeyError")):
        process.score(items("1"))
    with pytest.raises(UserError, match=naming("none", "does not start", "no such interpreter")):
        ScorerProcess(tmp_path / "python", "none").score(items("1"))


def test_images_are_handed_over_as_png_files_without_loss(echo, monkeypatch):
    process, seen = echo(), []
    score = process.score

    def looked_at(batch):
        seen.extend(pil_to_tensor(Image.open(item["image"])) for item in batch)
        return score(batch)

    monkeypatch.setattr(process, "score", looked_at)
    images = torch.stack([IMAGES[0], IMAGES[0].flip(2)])
    assert process(images, ["1", "2"]).tolist() == [1, 2]
    assert torch.equal(torch.stack(seen), images)


def test_an_environment_that_is_not_there_is_refused_with_its_command(vocab, tmp_path):
    weights = tmp_path / "w.pt"
    torch.save({}, weights)
    (tmp_path / "model").mkdir()
    words = naming(f"metric.*.scorers={tmp_path}/env", f"python -m migm.install_scorers {tmp_path}/env")
    with pytest.raises(UserError, match=words):
        ImageReward(str(weights), str(vocab), "official", f"{tmp_path}/env")
    with pytest.raises(UserError, match=words):
        UniPercept(str(tmp_path / "model"), f"{tmp_path}/env")
    with pytest.raises(FileNotFoundError, match=naming("metric.unipercept.weights=None", "UniPercept")):
        UniPercept(None, f"{tmp_path}/env")


def test_a_score_of_none_by_unipercept_is_an_error(echo, tmp_path, monkeypatch):
    monkeypatch.setattr(image_reward, "python_of", lambda folder: sys.executable)
    metric = UniPercept(str(tmp_path), "scorers", "cpu")
    metric.score = echo()
    monkeypatch.setattr(metric.score, "scorer", "unipercept")
    with pytest.raises(UserError, match=naming("unipercept", "2 of 2")):
        metric.update(Batch(IMAGES[0].expand(2, -1, -1, -1), torch.zeros(2, dtype=torch.long)))
    assert metric.count == 0


@pytest.mark.slow
def test_the_published_package_in_its_own_environment_gives_the_same(tmp_path):
    """At the published size with random weights; builds the environment (5.5 GB) unless MIGM_SCORERS has it."""
    scorers = Path(os.environ.get("MIGM_SCORERS", tmp_path / "scorers"))
    python = install.install(scorers)
    assert install.install(scorers) == python
    words, weights = tmp_path / "vocab.txt", tmp_path / "ImageReward.pt"
    vocabulary(words, 30522)
    subprocess.run([python, str(Path(__file__).parent / "reward_parts.py"), "make", str(weights)], check=True)
    images = torch.stack([IMAGES[3]] * 2)
    values = {}
    for backend in ("official", "adapter"):
        metric = ImageReward(str(weights), str(words), backend, str(scorers), offline=True, device="cpu")
        values[backend] = [metric.score(IMAGES[i][None], [PROMPTS[i]]).item() for i in (0, 2)]
        metric.update(Batch(images, PROMPTS[1:3]))
        values[backend].append(metric.compute().item())
        assert metric.details()["truncated"] == 0.5
        if backend == "official":
            assert metric.details()["package"] == "image-reward 1.5"
            folder = metric.score._folder.name
            bad = [{"image": f"{folder}/{name}", "prompt": "a"} for name in ("0.png", "vocab.txt")]
            with pytest.raises(UserError, match=naming("1 of 2", "number 1")):
                metric.score.score(bad)
            metric.score.close()
    assert values["official"] == pytest.approx(values["adapter"], abs=1e-5)
    assert len(set(values["official"])) == 3
    imported = "import unipercept_reward; unipercept_reward.UniPerceptRewardInferencer"
    subprocess.run([python, "-c", imported], check=True, capture_output=True)
    shutil.rmtree(tmp_path / "scorers", ignore_errors=True)
    weights.unlink()
