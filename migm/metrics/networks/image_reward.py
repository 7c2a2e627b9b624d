"""ImageReward (Xu et al. 2023) on Hugging Face's BLIP classes, from the authors' weight file.

The `image-reward` package gives equal values but cannot be installed beside open_clip. It is the
second backend, in an environment of its own (`migm.metrics.scorers`).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from migm.bases.weights import assign_strictly, read_tensors
from migm.runtime.errors import UserError
from migm.runtime.extras import optional

WEIGHTS_URL = "https://huggingface.co/THUDM/ImageReward/resolve/main/ImageReward.pt"
VOCAB_URL = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the rewards on the authors' data
TEXT_LENGTH = 35  # tokens read of a prompt, start and end included
SIDE = 224
# Names in the authors' file -> names of our vision modules; the text encoder's names agree.
VISION = (
    (r"cls_token$", "embeddings.class_embedding"),
    (r"pos_embed$", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"norm\.", "post_layernorm."),
)
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class RewardModel(nn.Module):
    """Vision transformer, text encoder that attends to the image, and five linear layers on its first token.

    The defaults are the published sizes; smaller ones serve tests.
    """

    def __init__(
        self,
        vision_channels: int = 1024,
        vision_layers: int = 24,
        vision_heads: int = 16,
        text_layers: int = 12,
        vocab_size: int = 30524,
    ):
        super().__init__()
        blip, text = optional("transformers"), optional("transformers.models.blip.modeling_blip_text")
        vision_config = blip.BlipVisionConfig(
            hidden_size=vision_channels,
            intermediate_size=4 * vision_channels,
            num_hidden_layers=vision_layers,
            num_attention_heads=vision_heads,
            image_size=SIDE,
            patch_size=16,
            layer_norm_eps=1e-6,
        )
        text_config = blip.BlipTextConfig(
            vocab_size=vocab_size,
            encoder_hidden_size=vision_channels,
            num_hidden_layers=text_layers,
            num_attention_heads=12,
            is_decoder=True,  # builds the attention to the image; called as an encoder
        )
        self.vision = blip.BlipVisionModel(vision_config)
        self.text = text.BlipTextModel(text_config, add_pooling_layer=False)
        widths = (text_config.hidden_size, 1024, 128, 64, 16, 1)
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map normalised images (b, 3, 224, 224), token ids and their mask (b, 35) to rewards (b,)."""
        seen = self.vision(images).last_hidden_state
        whole = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = self.text(
            tokens, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=whole, is_decoder=False
        )
        return (self.head(read.last_hidden_state[:, 0]).squeeze(1) - MEAN) / STD

    @staticmethod
    def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of `ImageReward.pt` to this module's names, without those that no reward depends on."""
        return {_ours(name): tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}


def _ours(name: str) -> str:
    if name.startswith("blip.visual_encoder."):
        inner = name.removeprefix("blip.visual_encoder.")
        for pattern, ours in VISION:
            if re.match(pattern, inner):
                return f"vision.{re.sub(pattern, ours, inner)}"
    if layer := re.fullmatch(r"mlp\.layers\.([02467])\.(weight|bias)", name):
        return f"head.{'02467'.index(layer[1])}.{layer[2]}"  # the others are dropouts
    return name.replace("blip.text_encoder.", "text.", 1)


class ImageRewardScorer:
    """Score images against prompts; `net` is put into eval mode."""

    def __init__(self, net: nn.Module, tokenizer: Any):
        self.net, self.tokenizer = net.eval().requires_grad_(False), tokenizer
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        square = [v2.Resize(SIDE, v2.InterpolationMode.BICUBIC), v2.CenterCrop(SIDE), v2.PILToTensor()]
        self.transform = v2.Compose([*square, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Map uint8 (b, 3, h, w) and b prompts to float32 (b,), resized by PIL as in the authors' package."""
        pixels = torch.stack([self.transform(v2.functional.to_pil_image(image.cpu())) for image in images])
        read = self.tokenizer.encode_batch(list(prompts))
        tokens, mask = torch.tensor([t.ids for t in read]), torch.tensor([t.attention_mask for t in read])
        device = images.device
        return self.net.to(device)(pixels.to(device), tokens.to(device), mask.to(device)).float()


def reward_tokenizer(vocab: Path, key: str) -> Any:
    """Return BERT's uncased word-piece tokenizer with BLIP's two extra tokens, cut and padded to 35 tokens."""
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    words = vocab.read_text(encoding="utf-8").split("\n")
    missing = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in words]
    if missing:
        raise UserError(f"{key}={vocab} is no BERT vocabulary: it lacks {', '.join(missing)}")
    tokenizer = BertWordPieceTokenizer(str(vocab), lowercase=True)
    tokenizer.add_special_tokens(["[DEC]", "[ENC]"])
    tokenizer.enable_truncation(TEXT_LENGTH)
    tokenizer.enable_padding(pad_id=words.index("[PAD]"), length=TEXT_LENGTH)
    return tokenizer


def truncated(tokenizer: Any, prompts: Sequence[str]) -> int:
    """Count the prompts that are longer than the tokenizer's limit."""
    return sum(bool(read.overflowing) for read in tokenizer.encode_batch(list(prompts)))


def load_reward_model(path: Path, key: str) -> RewardModel:
    """Load the network with the authors' weights; every tensor must have its place."""
    net = RewardModel()
    assign_strictly(net, RewardModel.from_published(read_tensors(path, key)[0]), f"{key}={path}")
    return net
