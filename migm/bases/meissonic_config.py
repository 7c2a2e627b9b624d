"""Sizes of Meissonic's transformer, as its checkpoint names them (docs/originals/meissonic.md, Checkpoints)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from migm.runtime.errors import UserError
from migm.runtime.files import write_json
from migm.runtime.kinds import Count, Length
from migm.runtime.reading import read_text

CELL = 2  # tokens of a row of the blocks' sequence in each direction, where the network resamples


@dataclass(frozen=True)
class MeissonicConfig:
    """Sizes of a Meissonic transformer, under the names of its `config.json`."""

    num_attention_heads: Count
    attention_head_dim: Count
    num_layers: Count  # double-stream blocks
    num_single_layers: Count
    joint_attention_dim: Count  # channels of the text encoder's rows
    pooled_projection_dim: Count  # channels of its pooled vector
    axes_dims_rope: Annotated[Sequence[Count], Length(3, 3)]
    vocab_size: Count  # rows of the input table, the last of which is the mask
    codebook_size: Count
    downsample: bool = True  # 2x2 tokens share a row of the blocks' sequence
    upsample: bool = True

    def __post_init__(self) -> None:
        width = self.channels
        if self.pooled_projection_dim != width:
            raise UserError(
                f"base.transformer.pooled_projection_dim={self.pooled_projection_dim} must be the width, "
                f"num_attention_heads * attention_head_dim = {width}"
            )
        axes = list(self.axes_dims_rope)
        if sum(axes) != self.attention_head_dim or any(size % 2 for size in axes):
            raise UserError(
                f"base.transformer.axes_dims_rope={axes} must be three even numbers that add up to "
                f"attention_head_dim={self.attention_head_dim}"
            )
        if self.downsample != self.upsample:
            raise UserError(
                f"base.transformer.downsample={self.downsample}, upsample={self.upsample}: "
                "tokens that are joined to rows have to be parted again, so both or none"
            )
        if self.vocab_size <= self.codebook_size:
            raise UserError(
                f"base.transformer.vocab_size={self.vocab_size} must be above codebook_size={self.codebook_size}: "
                "its last id is the mask"
            )

    @property
    def channels(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def cell(self) -> int:
        """The tokens in each direction that share a row of the blocks' sequence."""
        return CELL if self.downsample else 1

    def check(self, path: Path) -> None:
        """Refuse a checkpoint whose `config.json` has other sizes; entries that are not read may differ."""
        try:
            found = {field.name: json.loads(read_text(path))[field.name] for field in fields(self)}
        except (json.JSONDecodeError, TypeError) as error:
            raise UserError(f"{path} is not a JSON object ({error})") from error
        except KeyError as error:
            raise UserError(f"{path} lacks {error}: not the config.json of a Meissonic transformer") from error
        for name, value in found.items():
            ours = getattr(self, name)
            if value != (list(ours) if isinstance(value, list) else ours):
                setting = f"base.transformer.{name}"
                raise UserError(f"{setting}={ours}, but {path} says {value}; set {setting}={value}")

    def write(self, path: Path) -> None:
        """Write a `config.json` that `check` accepts."""
        write_json(path, {"_class_name": "Transformer2DModel", **vars(self), "axes_dims_rope": [*self.axes_dims_rope]})
