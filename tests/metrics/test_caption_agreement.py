"""The share of mentioned facts that images show, and labels read from captions."""

import pytest
import torch
from tiny_parts import composed, feature_net

from migm.cifar10 import captions
from migm.cifar10.captions import Facts, caption, facts_of
from migm.cifar10.classes import CLASSES
from migm.config.building import build, load
from migm.config.roots import TrainConfig
from migm.metrics.caption_agreement import CaptionAgreement
from migm.metrics.class_agreement import ClassAgreement
from migm.metrics.metric import Batch
from migm.runtime.errors import UserError


@pytest.fixture
def metric(tmp_path) -> CaptionAgreement:
    feature_net(tmp_path / "net.safetensors")
    return CaptionAgreement(str(tmp_path / "net.safetensors"))


def red_on_black() -> torch.Tensor:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, 0, 8:24, 8:24] = 220
    return image


def seen(metric: CaptionAgreement, images: torch.Tensor) -> list[Facts]:
    return facts_of(images, [CLASSES[i] for i in metric.net[0].embed(images)[1].tolist()])


def another(name: str) -> str:
    return CLASSES[(CLASSES.index(name) + 1) % 10]


def test_every_mentioned_fact_counts_once_and_others_not(metric):
    (true,) = seen(metric, red_on_black())
    assert true[1:] == ("dark", "red", "black")
    cases = [
        (true, 1),
        (Facts(true.name), 1),
        (Facts(another(true.name)), 0),
        (true._replace(background="blue"), 3 / 4),
        (Facts(another(true.name), "bright", "red"), 1 / 3),
        (Facts(true.name, None, "blue", "blue"), 1 / 3),
    ]
    for wanted, share in cases:
        metric.reset()
        metric.update(Batch(red_on_black(), [caption(wanted)]))
        assert metric.compute().item() == pytest.approx(share)


@pytest.mark.parametrize("size", [12, 5, 1])
def test_it_is_a_share_of_pairs_at_any_batch_size(metric, size):
    images = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(images.float(), size=(32, 32), mode="nearest").to(torch.uint8)
    images[:4] = red_on_black()
    facts = seen(metric, images)
    wanted = [f._replace(name=another(f.name)) for f in facts[:6]] + facts[6:]
    mentioned = sum(fact is not None for f in facts for fact in f)
    prompts = [caption(f) for f in wanted]
    for start in range(0, 12, size):
        metric.update(Batch(images[start : start + size], prompts[start : start + size]))
    assert mentioned > 12
    assert metric.compute().item() == pytest.approx((mentioned - 6) / mentioned)


def test_what_is_almost_dark_is_dark_enough(metric):
    images = torch.full((1, 3, 32, 32), 93, dtype=torch.uint8)  # 0.365: between the two rules
    (true,) = seen(metric, images)
    assert true.brightness is None
    metric.update(Batch(images, [caption(Facts(true.name, "dark"))]))
    assert metric.compute() == 1


def test_class_agreement_reads_the_classes_of_captions(metric):
    agreement = ClassAgreement(metric.weights)
    (true,) = seen(metric, red_on_black())
    prompts = [caption(true), caption(true._replace(name=another(true.name)))]
    agreement.update(Batch(red_on_black().repeat(2, 1, 1, 1), prompts))
    assert agreement.compute() == 0.5


def test_labels_and_foreign_prompts_are_refused(metric):
    with pytest.raises(UserError, match="needs prompts"):
        metric.update(Batch(red_on_black(), torch.tensor([0])))
    for one in (metric, ClassAgreement(metric.weights)):
        with pytest.raises(UserError, match="'an astronaut'"):
            one.update(Batch(red_on_black(), ["an astronaut"]))


def test_the_reference_hash_follows_net_and_rules(metric, tmp_path, monkeypatch):
    feature_net(tmp_path / "other.safetensors", seed=1)
    other = CaptionAgreement(str(tmp_path / "other.safetensors"))
    monkeypatch.setattr(captions, "COLOURS", captions.COLOURS[::-1])
    changed = CaptionAgreement(metric.weights)
    assert len({metric.reference_hash, other.reference_hash, changed.reference_hash}) == 3


def test_the_configuration_builds_it_on_the_bundled_net():
    config = load(composed("train", "metric=caption_agreement", "device=cpu"), TrainConfig)
    built = build(config.metric["caption_agreement"])
    assert isinstance(built, CaptionAgreement)
    assert built.net[0].channels == 256
