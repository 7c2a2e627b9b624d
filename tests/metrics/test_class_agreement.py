"""Share of images in the class they were asked for, and the batch that metrics share."""

import pytest
import torch
from tiny_parts import feature_net

from migm.bases.inputs import Classes
from migm.evaluation.evalset import EvalSet
from migm.metrics.class_agreement import ClassAgreement
from migm.metrics.metric import Batch
from migm.runtime.errors import UserError

CLASSES = Classes(10)


@pytest.fixture
def metric(tmp_path) -> ClassAgreement:
    feature_net(tmp_path / "net.safetensors")
    return ClassAgreement(str(tmp_path / "net.safetensors"))


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("right", [0, 7, 20])
@pytest.mark.parametrize("size", [20, 6, 1])
def test_it_is_the_share_of_agreeing_labels_at_any_batch_size(metric, right, size):
    pictures = images(20)
    labels = metric.net[0].embed(pictures)[1].clone()
    labels[right:] = (labels[right:] + 1) % 10
    for part, wanted in zip(pictures.split(size), labels.split(size), strict=True):
        metric.update(Batch(part, wanted))
    assert metric.compute().item() == pytest.approx(right / 20)


def test_reset_forgets_everything(metric):
    pictures = images(4)
    labels = metric.net[0].embed(pictures)[1]
    metric.update(Batch(pictures, (labels + 1) % 10))
    assert metric.compute() == 0
    metric.reset()
    metric.update(Batch(pictures, labels))
    assert metric.compute() == 1


def test_metrics_of_one_batch_embed_it_once(metric, monkeypatch):
    calls, embed = [], type(metric.net[0]).embed
    monkeypatch.setattr(type(metric.net[0]), "embed", lambda net, x: calls.append(1) or embed(net, x))
    batch = Batch(images(3), torch.zeros(3, dtype=torch.long))
    metric.update(batch)
    ClassAgreement(metric.weights).update(batch)
    assert len(calls) == 1


def test_an_evalset_is_all_images_once_with_the_classes_in_turn():
    batches = list(EvalSet(25, CLASSES, [1], 7, "reference").batches())
    assert [len(numbers) for numbers, _ in batches] == [7, 7, 7, 4]
    numbers, labels = (torch.cat(x) for x in zip(*batches, strict=True))
    assert numbers.tolist() == list(range(25))
    assert labels.tolist() == [i % 10 for i in range(25)]


def test_an_evalset_of_prompts_gives_each_image_its_own():
    batches = EvalSet(5, lambda images: [f"prompt {i}" for i in images.tolist()], [1], 2).batches()
    assert [(numbers.tolist(), inputs) for numbers, inputs in batches] == [
        ([0, 1], ["prompt 0", "prompt 1"]),
        ([2, 3], ["prompt 2", "prompt 3"]),
        ([4], ["prompt 4"]),
    ]


def test_a_metric_that_needs_the_other_kind_of_inputs_is_refused(metric):
    labelled, prompted = Batch(images(2), torch.tensor([4, 1])), Batch(images(2), ["a dog", "a cat"])
    assert labelled.labels.tolist() == [4, 1]
    assert prompted.prompts == ["a dog", "a cat"]
    with pytest.raises(UserError, match=r"evalset\.inputs: .*'a dog'"):  # no caption that names a class
        metric.update(prompted)
    with pytest.raises(UserError, match=r"needs prompts, but evalset\.inputs gives labels"):
        _ = labelled.prompts


def test_a_mirrored_image_has_the_same_features_and_class(metric):
    pictures, net = images(6), metric.net[0]
    ahead, mirrored = net.embed(pictures), net.embed(pictures.flip(-1))
    torch.testing.assert_close(ahead, mirrored)
    assert not torch.allclose(net(pictures / 127.5 - 1)[0], ahead[0])  # the mean, not the image alone
