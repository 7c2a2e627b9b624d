"""Read prompts with a CLIP text encoder of transformers (docs/originals/amused.md, Text)."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from migm.bases.base import Branch, Inputs, prompts_of
from migm.bases.clip_words import CLIPWords, PaddedChecksums, Words
from migm.bases.weights import assign_strictly, locate, sampled
from migm.runtime.device import without_values
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.files import tensors_hash
from migm.runtime.kinds import Count, Limits, Positive
from migm.runtime.reading import read_text

WEIGHTS = "model.safetensors"
# Parts of a whole CLIP's file that a text encoder has not, and a buffer that earlier versions of transformers stored.
OTHER_HALF = ("vision_model.", "visual_projection.", "logit_scale", "text_model.embeddings.position_ids")
KEPT = 512  # prompts whose rows are kept: 160 MB at width 1024 in float32


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of a CLIP text encoder, under the names of its `config.json`.

    `hidden_act` None takes the activation from that file, and `gelu` for random weights.
    """

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    projection_dim: Count
    vocab_size: Count = 49408
    max_position_embeddings: Annotated[int, Limits(least=3)] = 77  # two are the markers around a prompt
    layer_norm_eps: Positive = 1e-5
    hidden_act: Literal["gelu", "quick_gelu"] | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"base.text.hidden_size={self.hidden_size} must be a multiple of "
                f"base.text.num_attention_heads={self.num_attention_heads}"
            )

    def activation(self, path: Path) -> str:
        """Return the activation of a checkpoint; refuse its `config.json` if it has another size."""
        try:
            content = json.loads(read_text(path))
            content = content.get("text_config", content)  # a whole CLIP nests the sizes of its text encoder
            found = _transformers().CLIPTextConfig(**content)
        except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no config.json of a CLIP text encoder ({_line(error)})") from error
        for name, value in asdict(self).items():
            if value is not None and (held := getattr(found, name)) != value:
                raise UserError(f"base.text.{name}={value}, but {path} says {held}; set base.text.{name}={held}")
        return str(found.hidden_act)


class TextRows(NamedTuple):
    """Prompts as a text encoder gives them."""

    text: Float[Tensor, "b q cq"]  # hidden states before the last layer, without the final norm
    pooled: Float[Tensor, "b cp"]  # the projected, normed row of the end marker


@dataclass(frozen=True)
class TextBranch(Branch):
    """Sequences with the rows of their prompts; without these, `CLIPText.of` reads the prompts' ids."""

    text: Float[Tensor, "cb q cq"] | None = None
    pooled: Float[Tensor, "cb cp"] | None = None


class CLIPText:
    """A frozen CLIP text encoder and its tokenizer: prompts -> ids -> rows.

    `weights` and `words` are folders or `hf://owner/repository/folder`: the encoder with its `config.json`, and the
    tokenizer. With `random_weights` neither is needed; ids are checksums of words unless `words` is a local folder.

    Every prompt has all positions: it is padded, nothing masks the padding, and one that is too long is cut. The
    network runs in float32, for one prompt at a time, so that rows do not depend on the batch; those of the last
    prompts are kept, in `dtype`.
    """

    def __init__(
        self,
        config: CLIPTextConfig,
        weights: str | Path | None,
        words: str | Path | None,
        random_weights: bool,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.config, self.device, self.dtype = config, device, dtype
        length = config.max_position_embeddings
        self.words: Words
        if random_weights and not (words is not None and Path(words).is_dir()):
            self.words = PaddedChecksums(config.vocab_size, length)
        else:
            self.words = CLIPWords(words, length, config.vocab_size, "base.text_tokenizer")
        net = random_encoder(config) if random_weights else published_encoder(config, weights, "base.text_encoder")
        self.net: Any = net.to(device, torch.float32).eval().requires_grad_(False)
        self.kept: OrderedDict[tuple[int, ...], TextRows] = OrderedDict()

    def ids(self, prompts: Sequence[str]) -> Int[Tensor, "b q"]:
        """Return the ids of prompts, on the CPU."""
        return torch.tensor([self.words(prompt) for prompt in prompts])

    def left_out(self, prompts: Sequence[str]) -> str:
        """Return a clause about prompts that are cut, empty if there are none."""
        return self.words.left_out(prompts)

    def rows(self, ids: Int[Tensor, "b q"]) -> TextRows:
        """Return what the encoder gives for ids; the host waits for ids that are on a device."""
        keys = [tuple(row) for row in ids.tolist()]
        found = [self._row(key) for key in keys]
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return TextRows(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def of(self, branch: Branch) -> TextRows:
        """Return the rows of a branch's prompts."""
        if isinstance(branch, TextBranch) and branch.text is not None and branch.pooled is not None:
            return TextRows(branch.text, branch.pooled)
        return self.rows(branch.condition)

    def _row(self, key: tuple[int, ...]) -> TextRows:
        if key not in self.kept:
            self.kept[key] = TextRows(*(x.to(self.dtype) for x in self.run(torch.tensor([key], device=self.device))))
        self.kept.move_to_end(key)
        return self.kept[key]

    @torch.no_grad()
    def run(self, ids: Int[Tensor, "b q"]) -> TextRows:
        """Run the network on ids, in its own precision, without looking at what is kept."""
        out = self.net(input_ids=ids, output_hidden_states=True)
        return TextRows(out.hidden_states[-2], out.text_embeds)

    def fingerprint(self) -> str:
        """Return a short hash of the weights and of how prompts become ids."""
        return tensors_hash(sampled(self.net), str(self.net.config.hidden_act), self.words.fingerprint())


class ReadsPrompts:
    """The review of a base that reads prompts by a text encoder."""

    text: CLIPText

    def review(self, inputs: Inputs) -> str:
        prompts = prompts_of(inputs)
        self.text.ids(prompts)
        return self.text.left_out(prompts)


def random_encoder(config: CLIPTextConfig) -> nn.Module:
    """Return an encoder of these sizes with random weights of torch's generator."""
    return _encoder(config, config.hidden_act or "gelu")


def published_encoder(config: CLIPTextConfig, folder: str | Path | None, key: str) -> nn.Module:
    """Return the encoder of a folder or hub address, loaded strictly; a whole CLIP's vision half is left out."""
    if folder is None:
        raise UserError(f"{key} is not set: a folder or hf://owner/repository/folder with {WEIGHTS} and config.json")
    activation = config.activation(locate(f"{folder}/config.json", key))
    path, origin = locate(f"{folder}/{WEIGHTS}", key), f"{key}={folder}/{WEIGHTS}"
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if not name.startswith(OTHER_HALF)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{origin} is not a complete safetensors file ({error})") from error
    with without_values():
        net = _encoder(config, activation)
    assign_strictly(net, tensors, origin, mapped=True)
    positions = torch.arange(config.max_position_embeddings)[None]
    net.text_model.embeddings.position_ids = positions  # type: ignore[union-attr]  a buffer that no file holds
    return net


def _encoder(config: CLIPTextConfig, activation: str) -> nn.Module:
    library = _transformers()
    # eos_token_id 2 takes the row with the highest id as the prompt's: the first end marker.
    markers = {"bos_token_id": config.vocab_size - 2, "eos_token_id": 2}
    sizes = {**asdict(config), "hidden_act": activation, **markers}
    return library.CLIPTextModelWithProjection(library.CLIPTextConfig(**sizes))


def _transformers() -> Any:
    return optional("transformers", "base.text_encoder")


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
