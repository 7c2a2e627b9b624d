"""Meissonic's transformer, with the keys of its checkpoint (docs/originals/meissonic.md, Transformer)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from migm.bases.base import take
from migm.bases.llada import RMSNorm
from migm.bases.meissonic_blocks import EPS, DoubleBlock, JointContext, SingleBlock, rotations
from migm.bases.meissonic_config import CELL, MeissonicConfig

SINUSOID = 256  # channels of the embedding of a number
MICRO = 5  # numbers that describe the wanted image: width, height, crop, score


def sinusoid(values: Tensor) -> Tensor:
    """Return the embeddings (..., 256) of numbers, float32, cosines first."""
    half = SINUSOID // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], -1)


class TwoLinears(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, inputs: int, channels: int, bias: bool):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, channels, bias), nn.Linear(channels, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(x)))


class TokenEmbedding(nn.Module):
    """Tokens -> table, norm, 1x1 convolution: a function of each token alone."""

    def __init__(self, ids: int, channels: int):
        super().__init__()
        self.embeddings = nn.Embedding(ids, channels)
        self.layer_norm, self.conv = RMSNorm(channels, EPS), nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return linear(self.layer_norm(self.embeddings(ids)), self.conv.weight.flatten(1))


class Resample(nn.Module):
    """A norm and a 2x2 convolution of stride 2, by the matrices of its four places."""

    def __init__(self, channels: int, conv: type[nn.Conv2d] | type[nn.ConvTranspose2d]):
        super().__init__()
        self.norm, self.conv = RMSNorm(channels, EPS), conv(channels, channels, CELL, CELL, bias=False)

    @property
    def matrices(self) -> Tensor:
        """The matrices (4, out, in) of the places in a cell, row-major."""
        weight = self.conv.weight.permute(2, 3, 0, 1).flatten(0, 1)
        return weight.transpose(1, 2) if isinstance(self.conv, nn.ConvTranspose2d) else weight


class Inside(nn.Module):
    """An extra level in the checkpoint's names."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class MaskedHead(nn.Module):
    """Two 1x1 convolutions with a norm between: `mlm_layer`."""

    def __init__(self, channels: int, codes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.layer_norm, self.conv2 = RMSNorm(channels, EPS), nn.Conv2d(channels, codes, 1, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        """Return what the last matrix turns into logits."""
        return self.layer_norm(linear(x, self.conv1.weight.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.inner(x), self.conv2.weight.flatten(1))


class MeissonicTransformer(nn.Module):
    """Token ids (b, l) and text -> features (b, t, c): q text rows, then one row for every cell of tokens.

    A cell is 2x2 tokens, or one token without resampling. The features are what the head turns into the logits of a
    row's tokens, row by row. Ids of codes are 0...v-1, and `mask_id` is that of the mask.
    """

    def __init__(self, config: MeissonicConfig):
        super().__init__()
        self.config, c, heads = config, config.channels, config.num_attention_heads
        self.mask_id = config.vocab_size - 1
        self.embed = TokenEmbedding(config.vocab_size, c)
        if config.downsample:
            self.down_block = Inside(downsample=Resample(c, nn.Conv2d))
            self.up_block = Inside(upsample=Resample(c, nn.ConvTranspose2d))
        self.project_to_hidden_norm = RMSNorm(c, EPS)
        self.project_to_hidden = nn.Linear(c, c, bias=False)
        self.context_embedder = nn.Linear(config.joint_attention_dim, c)
        self.encoder_proj_layer_norm = RMSNorm(c, EPS)
        self.cond_embed = TwoLinears(config.pooled_projection_dim + MICRO * SINUSOID, c, bias=False)
        self.time_text_embed = Inside(
            timestep_embedder=TwoLinears(SINUSOID, c, True), text_embedder=TwoLinears(c, c, True)
        )
        self.transformer_blocks = nn.ModuleList(DoubleBlock(c, heads) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(c, heads) for _ in range(config.num_single_layers))
        self.project_from_hidden_norm = RMSNorm(c, EPS)
        self.project_from_hidden = nn.Linear(c, c, bias=False)
        self.mlm_layer = MaskedHead(c, config.codebook_size)
        self.tables: dict[object, tuple[Tensor, ...]] = {}  # rotations, by the sizes of a sequence

    @property
    def stacks(self) -> list[nn.ModuleList]:
        return [self.transformer_blocks, self.single_transformer_blocks]

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw random weights: matrices that keep the scale of their inputs, a normal table, gains 1, biases 0."""
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5) if weight.ndim > 1 else weight.zero_()
        nn.init.normal_(self.embed.embeddings.weight)
        for part in self.modules():
            if isinstance(part, RMSNorm):
                nn.init.ones_(part.weight)

    def condition(self, text: Tensor, pooled: Tensor, micro: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text rows (b, q, c) and the vector (b, c) of encoded prompts: all that the steps share.

        `text` (b, q, channels) and `pooled` (b, channels) are the text encoder's, `micro` (b, 5) describes the image.
        """
        numbers = sinusoid(micro.to(pooled.dtype)).flatten(1).to(pooled.dtype)
        vector = self.time_text_embed.text_embedder(self.cond_embed(torch.cat([pooled, numbers], 1)))  # type: ignore[operator]
        return self.encoder_proj_layer_norm(self.context_embedder(text)), vector

    def timed(self, vector: Tensor, timestep: Tensor) -> Tensor:
        """Return the conditioning vector (b, c) at a timestep (b,).

        The factor 1000 is applied in the network's precision: bfloat16 rounds (docs/originals/meissonic.md, Timestep).
        """
        numbers = sinusoid(timestep.to(vector.dtype) * 1000).to(vector.dtype)
        return self.time_text_embed.timestep_embedder(numbers) + vector  # type: ignore[operator]

    def cells(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Arrange values (b, l, ...) of the tokens of a grid as (b, r, s, ...): by cell, row-major within."""
        cell, (height, width) = self.config.cell, grid
        split = tokens.unflatten(1, (height // cell, cell, width // cell, cell))
        return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def down(self, embedded: Tensor) -> Tensor:
        """Turn the embedded tokens of cells (b, r, s, c) into rows (b, r, c)."""
        if not self.config.downsample:
            return embedded[:, :, 0]
        part = self._resample("down")
        # One product: the four places side by side.
        return linear(part.norm(embedded).flatten(2), part.matrices.transpose(0, 1).flatten(1))

    def rows_in(self, embedded: Tensor) -> Tensor:
        """Turn the embedded tokens of cells (b, r, s, c) into rows of the blocks' sequence (b, r, c)."""
        return self.project_to_hidden(self.project_to_hidden_norm(self.down(embedded)))

    def parts(self, embedded: Tensor, places: Tensor) -> Tensor:
        """Return what tokens (b, k, c), embedded, add to their cells' rows before the projection, at places (b, k)."""
        if not self.config.downsample:
            return embedded
        part = self._resample("down")
        every = linear(part.norm(embedded), part.matrices.flatten(0, 1)).unflatten(-1, (CELL**2, -1))
        return _at(every, places)

    def prepare(
        self,
        tokens: Tensor,
        text: Tensor,
        vector: Tensor,
        grid: tuple[int, int],
        rows: Tensor | None = None,
        blend: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, JointContext]:
        """Return the first block's input and the context of ids (b, l), for `rows` (b, n) alone or for all of them.

        `text` and `vector` are those of `condition` and `timed`. `blend` changes the embedded tokens (b, r, s, c) of
        all cells, before they are joined.
        """
        num_text, cell = text.shape[1], self.config.cell
        cos, sin = self._rotations((grid[0] // cell, grid[1] // cell), num_text, text.device)
        ctx, cells = JointContext(vector, cos, sin, num_text).at(rows), self.cells(tokens, grid)
        if rows is None:
            embedded = self.embed(cells)
            return torch.cat([text, self.rows_in(embedded if blend is None else blend(embedded))], 1), ctx
        assert blend is None, "noise is on all tokens"
        image = self.rows_in(self.embed(take(cells, (rows - num_text).clamp(min=0))))
        return take(text, rows.clamp(max=num_text - 1)).where(rows[..., None] < num_text, image), ctx

    def _rotations(self, grid: tuple[int, int], num_text: int, device: torch.device) -> tuple[Tensor, ...]:
        key = (grid, num_text, device)
        if key not in self.tables:
            with torch.inference_mode(False):  # training may need them too
                self.tables = {key: rotations(grid, num_text, tuple(self.config.axes_dims_rope), device)}
        return self.tables[key]

    def finalize(self, x: Tensor) -> Tensor:
        """Turn the last block's output, at any rows, into features."""
        return self.project_from_hidden(self.project_from_hidden_norm(x))

    def up(self, features: Tensor) -> Tensor:
        """Return what the head reads of every token of the rows' cells: (b, k, s, c) of features (b, k, c)."""
        if not self.config.upsample:
            return features[:, :, None]
        part = self._resample("up")
        return linear(part.norm(features), part.matrices.flatten(0, 1)).unflatten(-1, (CELL**2, -1))

    def head(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Return logits (b, k, v) of features (b, k, c) at places (b, k) in their cells, or (b, k, s, v) at all."""
        every = self.up(features)
        if places is None:
            return self.mlm_layer(every)
        return self.mlm_layer(_at(every, places))

    def _resample(self, way: str) -> Resample:
        return self.get_submodule(f"{way}_block.{way}sample")  # type: ignore[return-value]


def _at(every: Tensor, places: Tensor) -> Tensor:
    """Return the tokens (b, k, c) at places (b, k) in cells (b, k, s, c)."""
    return take(every.flatten(0, 1), places.flatten()[:, None]).view(*places.shape, -1)
