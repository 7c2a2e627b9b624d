"""CLIPScore: how well an image fits its prompt, judged by a CLIP model of open_clip."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from migm.metrics.files import Need
from migm.metrics.metric import Batch, MeanMetric
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.files import tensors_hash
from migm.runtime.pictures import as_picture


class CLIPScore(MeanMetric):
    """Mean over images of 100 max(cos(image, prompt), 0), computed in float32 (Hessel et al. 2021).

    `model` and `pretrained` are open_clip's names. They are part of the metric's name, since values of
    different CLIP models do not compare. `weights` is a local file to load instead of fetching `pretrained`.
    A prompt longer than CLIP's context (77 tokens) is cut but keeps its end token, whose feature represents
    the text. The record holds the share of such prompts as `truncated`. Features of a prompt are computed once.
    """

    cut: Tensor

    def __init__(
        self,
        model: str,
        pretrained: str,
        weights: str | None = None,
        offline: bool = False,
        random_weights: bool = False,
        cache_dir: str | None = None,
    ):
        super().__init__()
        departure = "_random_weights" if random_weights else ""
        self.metric_name = f"clip_score_{model}_{pretrained}{departure}".replace("/", "-")
        source = None if random_weights else _source(model, pretrained, weights, offline, cache_dir)
        clip, self.preprocess, self.tokenizer = load_clip(model, pretrained, source, cache_dir)
        self.clip = [clip]  # a list hides the model from the metric's state
        self.reference_hash = tensors_hash(clip.state_dict())
        self.length = int(getattr(self.tokenizer, "context_length", 77))
        self.texts: dict[str, tuple[Tensor, bool]] = {}  # prompt -> feature (channels,), whether it was cut
        self.add_sums("cut")

    @staticmethod
    def needs(_name: str, node: dict[str, Any]) -> list[Need]:
        if node["random_weights"]:
            return []
        source = f"open_clip's {node['model']} {node['pretrained']}, fetched on first use unless paths.offline"
        return [Need(Path(node["weights"] or node["cache_dir"]), source)]

    def update(self, batch: Batch) -> None:
        images = batch.extracted(self.reference_hash, self.image_features)
        texts, cut = self.text_features(batch.prompts)
        cosine = (images * texts.to(images.device)).sum(1)
        self.total += 100 * cosine.clamp(min=0).double().sum()
        self.cut += sum(cut)
        self.count += len(cut)

    def details(self) -> dict[str, Any]:
        return {"truncated": (self.cut / self.count).item()}

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """Map uint8 (b, 3, h, w) to unit vectors (b, channels), resized and cropped in PIL as the model asks."""
        pixels = torch.stack([self.preprocess(as_picture(image)) for image in images])
        return normalize(self.clip[0].to(images.device).encode_image(pixels.to(images.device)), dim=1)

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Return unit vectors (b, channels) of prompts, and for each prompt whether it was too long."""
        unseen = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self.texts))
        if unseen:
            device = next(self.clip[0].parameters()).device
            features = normalize(self.clip[0].encode_text(self.tokenizer(unseen).to(device)), dim=1).cpu()
            # With room for one more token, the last place is filled only by prompts that are too long.
            longer, empty = self.tokenizer([*unseen, ""], context_length=self.length + 1)[:, -1].split([len(unseen), 1])
            self.texts.update(zip(unseen, zip(features, (longer != empty).tolist(), strict=True), strict=True))
        encoded = [self.texts[prompt] for prompt in prompts]
        return torch.stack([feature for feature, _ in encoded]), [cut for _, cut in encoded]


def load_clip(model: str, pretrained: str, source: str | None, cache_dir: str | None = None) -> tuple[Any, Any, Any]:
    """Load CLIP in float32 and eval mode -> model, image transform, tokenizer; `source` None: random weights.

    Activation and image transform are those that `pretrained` was trained with. When weights come from a file
    or from OpenAI, open_clip itself may choose other ones, not always with a warning.
    """
    open_clip = optional("open_clip")
    if model not in open_clip.list_models():
        raise UserError(f"metric.*.model={model} is unknown to open_clip; such as ViT-L-14, ViT-g-14")
    settings = open_clip.get_pretrained_cfg(model, pretrained)
    logging.disable(logging.INFO)  # open_clip tells the root logger every step
    try:
        clip, _, preprocess = open_clip.create_model_and_transforms(
            model,
            pretrained=source,
            force_quick_gelu=settings.get("quick_gelu", False),
            image_mean=settings.get("mean"),
            image_std=settings.get("std"),
            image_interpolation=settings.get("interpolation"),
            image_resize_mode=settings.get("resize_mode"),
            pretrained_text=False,
            cache_dir=cache_dir,
        )
    except RuntimeError as error:
        raise UserError(f"metric.*.weights={source} does not fit {model} ({str(error).splitlines()[0]})") from error
    finally:
        logging.disable(logging.NOTSET)
    return clip.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(model)


def _source(model: str, pretrained: str, weights: str | None, offline: bool, cache_dir: str | None) -> str:
    """Return what open_clip has to load: a file, or the tag of weights to fetch."""
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"metric.*.weights={weights}: no such file; see `python -m migm.needs`")
        return weights
    open_clip = optional("open_clip")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise UserError(f"metric.*.pretrained={pretrained} is unknown for {model}; one of {', '.join(tags)}")
    if offline:
        source = open_clip.get_pretrained_cfg(model, pretrained)
        raise FileNotFoundError(
            f"metric.*.weights=null and paths.offline=true: get {model} {pretrained} from "
            f"{source.get('hf_hub') or source.get('url')} and give its path as metric.*.weights"
        )
    return pretrained
