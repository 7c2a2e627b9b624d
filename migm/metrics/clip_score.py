"""CLIPScore: how well an image fits its prompt, by a named CLIP of open_clip."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.v2.functional import to_pil_image

from migm.metrics.files import Need
from migm.metrics.metric import Batch, QualityMetric
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.files import tensors_hash


class CLIPScore(QualityMetric):
    """100 max(cos, 0) of image and prompt, averaged over images (Hessel et al. 2021), in float32.

    `model` and `pretrained` are open_clip's names and part of the metric's: values of different CLIPs do
    not compare. `weights` is the file of `pretrained` where it is not to be fetched. A prompt longer
    than CLIP's context (77 tokens) is cut but keeps its end token, whose feature is the text's; the
    share of such prompts is in the record as `truncated`. Features of a prompt are made once.
    """

    unit = ""
    higher_is_better = True
    total: Tensor
    cut: Tensor
    count: Tensor

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
        self.clip = [clip]  # in a list: no state of the metric
        self.reference_hash = tensors_hash(clip.state_dict())
        self.length = int(getattr(self.tokenizer, "context_length", 77))
        self.texts: dict[str, tuple[Tensor, bool]] = {}  # prompt -> feature (channels,), whether it was cut
        for name in ("total", "cut", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum", persistent=True)

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

    def compute(self) -> Tensor:
        return self.total / self.count

    def details(self) -> dict[str, Any]:
        return {"truncated": (self.cut / self.count).item()}

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """uint8 (b, 3, h, w) -> unit vectors (b, channels), through the model's own resize and crop in PIL."""
        pixels = torch.stack([self.preprocess(to_pil_image(image.cpu())) for image in images])
        return normalize(self.clip[0].to(images.device).encode_image(pixels.to(images.device)), dim=1)

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Unit vectors (b, channels) of prompts, and which of them were too long."""
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self.texts))
        if new:
            device = next(self.clip[0].parameters()).device
            features = normalize(self.clip[0].encode_text(self.tokenizer(new).to(device)), dim=1).cpu()
            # With room for one more token, only a prompt that is too long fills the last place.
            longer, empty = self.tokenizer([*new, ""], context_length=self.length + 1)[:, -1].split([len(new), 1])
            self.texts.update(zip(new, zip(features, (longer != empty).tolist(), strict=True), strict=True))
        found = [self.texts[prompt] for prompt in prompts]
        return torch.stack([feature for feature, _ in found]), [cut for _, cut in found]


def load_clip(model: str, pretrained: str, source: str | None, cache_dir: str | None = None) -> tuple[Any, Any, Any]:
    """CLIP in float32 and eval mode, its image transform, its tokenizer; without a `source` random weights.

    Activation and image transform are those that `pretrained` was trained with: open_clip itself takes
    other ones, with a warning or without, when the weights come from a file or from OpenAI.
    """
    open_clip = optional("open_clip")
    if model not in open_clip.list_models():
        raise UserError(f"metric.*.model={model} is unknown to open_clip; such as ViT-L-14, ViT-g-14")
    known = open_clip.get_pretrained_cfg(model, pretrained)
    logging.disable(logging.INFO)  # open_clip tells the root logger every step
    try:
        clip, _, preprocess = open_clip.create_model_and_transforms(
            model,
            pretrained=source,
            force_quick_gelu=known.get("quick_gelu", False),
            image_mean=known.get("mean"),
            image_std=known.get("std"),
            image_interpolation=known.get("interpolation"),
            image_resize_mode=known.get("resize_mode"),
            pretrained_text=False,
            cache_dir=cache_dir,
        )
    except RuntimeError as error:
        raise UserError(f"metric.*.weights={source} does not fit {model} ({str(error).splitlines()[0]})") from error
    finally:
        logging.disable(logging.NOTSET)
    return clip.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(model)


def _source(model: str, pretrained: str, weights: str | None, offline: bool, cache_dir: str | None) -> str:
    """What open_clip is to load: a file, or the tag that it fetches."""
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
