"""CLIPScore equals open_clip's own steps, keeps long prompts apart, and needs no network."""

import open_clip
import pytest
import torch
from PIL import Image
from tiny_parts import naming
from torch import Tensor

from migm.metrics.clip_score import CLIPScore, load_clip
from migm.metrics.metric import Batch, result_name
from migm.runtime.errors import UserError

MODEL = "ViT-S-32-alt"
PROMPTS = ["a red truck", "a photo of a cat on a green sofa", "a red truck", "Ein Schiff, bei Nacht!"]
LONG = ["a red truck " * 70, "a blue ship " * 70]  # over 200 tokens


@pytest.fixture(autouse=True)
def no_network(monkeypatch) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", refuse)


@pytest.fixture(scope="module")
def make():
    def made(**options) -> CLIPScore:
        torch.manual_seed(0)
        return CLIPScore(**{"model": MODEL, "pretrained": "none", "random_weights": True, **options})

    return made


@pytest.fixture(scope="module")
def metric(make) -> CLIPScore:
    return make()


def photos(count: int, height: int = 40, width: int = 56) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, height // 8, width // 8), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


def measured(metric: CLIPScore, images: Tensor, prompts: list[str], size: int) -> float:
    metric.reset()
    for start in range(0, len(images), size):
        metric.update(Batch(images[start : start + size], prompts[start : start + size]))
    return metric.compute().item()


def test_the_score_is_open_clips(metric):
    torch.manual_seed(0)
    clip, _, preprocess = open_clip.create_model_and_transforms(MODEL)
    clip.eval()
    images = photos(4)
    pixels = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.no_grad():
        shown = clip.encode_image(pixels, normalize=True)
        said = clip.encode_text(open_clip.get_tokenizer(MODEL)(PROMPTS), normalize=True)
    cosine = (shown * said).sum(1)
    assert (cosine < 0).any()
    assert (cosine > 0).any()
    expected = 100 * cosine.clamp(min=0).mean().item()
    assert measured(metric, images, PROMPTS, 4) == pytest.approx(expected, rel=1e-5)


def test_batches_do_not_matter(metric):
    values = [measured(metric, photos(4), PROMPTS, size) for size in (1, 2, 4)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_prompts_of_200_tokens_differ_and_are_counted(metric):
    features, cut = metric.text_features([*LONG, PROMPTS[0]])
    assert cut == [True, True, False]
    assert features[0] @ features[1] < 0.999
    measured(metric, photos(4), [*LONG, *PROMPTS[:2]], 3)
    assert metric.details() == {"truncated": 0.5}
    metric.reset()
    assert metric.count == 0


@pytest.mark.parametrize(("words", "cut"), [(75, False), (76, True)])
def test_a_prompt_that_just_fits_is_not_counted_as_cut(metric, words, cut):
    """With start and end, 75 words of one token each are the 77 that CLIP reads."""
    assert metric.text_features([" ".join(["cat"] * words)])[1] == [cut]


def test_a_prompt_is_encoded_once(make, monkeypatch):
    metric, asked = make(), []
    encode = metric.clip[0].encode_text
    monkeypatch.setattr(metric.clip[0], "encode_text", lambda tokens: asked.append(len(tokens)) or encode(tokens))
    measured(metric, photos(4), PROMPTS, 2)
    measured(metric, photos(4), PROMPTS, 4)
    assert asked == [2, 1]


def test_the_name_says_model_and_weights_and_the_hash_which_they_were(make, metric):
    assert result_name(metric, 8) == f"clip_score_{MODEL}_none_random_weights_8"
    torch.manual_seed(1)
    other = CLIPScore(MODEL, "none", random_weights=True)
    assert make().reference_hash == metric.reference_hash != other.reference_hash


def test_weights_from_a_file_are_read_and_named_by_their_tag(metric, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(metric.clip[0].state_dict(), path)
    loaded = CLIPScore(MODEL, "mine", weights=str(path), offline=True)
    assert loaded.metric_name == f"clip_score_{MODEL}_mine"
    assert loaded.reference_hash == metric.reference_hash
    assert measured(loaded, photos(4), PROMPTS, 4) == measured(metric, photos(4), PROMPTS, 4)
    torch.save({"visual.proj": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=naming("metric.*.weights", "clip.pt", MODEL)):
        CLIPScore(MODEL, "mine", weights=str(path))


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_the_activation_is_the_one_that_the_weights_were_trained_with(tag, quick):
    clip = load_clip("ViT-B-32", tag, None)[0]
    kinds = {type(module).__name__ for module in clip.modules()}
    assert ("QuickGELU" in kinds) == quick
    assert ("GELU" in kinds) != quick


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "ViT-L-15"}, ["model=ViT-L-15", "ViT-L-14"]),
        ({"model": "ViT-L-14", "pretrained": "openay"}, ["pretrained=openay", "openai"]),
        ({"model": "ViT-L-14", "pretrained": "openai", "offline": True}, ["paths.offline=true", "openai", "weights"]),
        ({"weights": "none.pt"}, ["weights=none.pt", "no such file"]),
    ],
)
def test_what_is_not_there_is_refused_by_key(make, options, words):
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)):
        make(random_weights=options.get("model") == "ViT-L-15", **options)


def test_labels_instead_of_prompts_are_refused(metric):
    with pytest.raises(UserError, match="needs prompts"):
        metric.update(Batch(photos(2), torch.zeros(2, dtype=torch.long)))
