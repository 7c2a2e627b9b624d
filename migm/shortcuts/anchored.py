"""Define the anchored network: it predicts several steps ahead from the last full step, and is never chained."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, ClassVar, Literal, get_type_hints

from jaxtyping import Float
from torch import Tensor, nn

from migm.bases.base import Control
from migm.config.fitting import fitted
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count
from migm.runtime.shapes import Features, Ratio
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.shortcuts.network import Past, Reads, ShortcutNetwork
from migm.shortcuts.parts import TimeEmbedder

Body = Literal["maskgit", "dimoo"]
BODIES: dict[str, type[MaskGITShortcut] | type[DiMOOShortcut]] = {"maskgit": MaskGITShortcut, "dimoo": DiMOOShortcut}
OURS = {"channels", "bottleneck_ratio", "depth", "num_heads", "time", "cross_attention"}  # not of `options`


class AnchoredShortcut(ShortcutNetwork):
    """features + S(features of the last full step, all tokens revealed since, mask ratios then and now).

    Errors of predictions do not add up, since none is made from another (docs/methods.md, Networks from full steps).
    `max_gap` is the most steps ahead that it learns to predict. `body` is the network of the published shortcuts whose
    blocks it has, with R and D as there; `options` are further arguments of it. The output projection begins at zero:
    an untrained network is reuse. The times are added before the blocks too, as the change is larger after more steps.
    """

    reads: ClassVar[Reads] = "full_step"

    def __init__(
        self,
        channels: Count,
        bottleneck_ratio: Count = 2,
        depth: Count = 1,
        num_heads: Count = 16,
        max_gap: Count = 3,
        body: Body = "maskgit",
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        sizes = {"bottleneck_ratio": bottleneck_ratio, "depth": depth, "num_heads": num_heads}
        self.config = {"channels": channels, **sizes, "max_gap": max_gap, "body": body, "options": dict(options or {})}
        self.max_gap = max_gap
        self.body = BODIES[body](channels, **sizes, **checked_options(body, options or {}))
        self.inner = channels // bottleneck_ratio
        self.body.proj_out = zero(nn.Linear(self.inner, channels))
        self.anchor_embedder = TimeEmbedder(self.inner)
        self.add_parts()

    def add_parts(self) -> None:
        """Make the layers that a network of this kind has beyond these; by default none."""

    @property
    def blocks(self) -> nn.Module:
        return self.body.blocks

    def calibrate(self, embeddings: Float[Tensor, "... c"]) -> None:
        self.body.calibrate(embeddings)

    def forward(self, features: Features, new: Control, mask_ratio: Ratio, past: Past) -> Features:
        """Return the features now, from those of the last full step and all tokens that were revealed since."""
        time = self.times(mask_ratio, past)
        x = self.body.hidden(self.input(features, past) + time[:, None], new, time)
        return features + self.change(x, features, past)

    def times(self, mask_ratio: Ratio, past: Past) -> Float[Tensor, "b ci"]:
        """Return the embedding of the present time and of that of the full step."""
        return self.body.time_embedder(mask_ratio) + self.anchor_embedder(past.mask_ratio)

    def input(self, features: Features, past: Past) -> Float[Tensor, "b t ci"]:
        """Return what the blocks read."""
        return self.body.proj_in(features)

    def change(self, x: Float[Tensor, "b t ci"], features: Features, past: Past) -> Features:
        """Return what is added to the features of the full step, from the output of the blocks."""
        return self.body.proj_out(x)


def checked_options(body: Body, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a body; UserError for unknown names and for values that its constructor forbids."""
    network = BODIES[body]
    hints, known = get_type_hints(network.__init__, include_extras=True), set(signature(network).parameters) - OURS
    for name in options:
        if name not in known:
            names = ", ".join(sorted(known))
            raise UserError(f"shortcut.options.{name} is unknown: shortcut.body={body} takes {names}")
    return {name: fitted(f"shortcut.options.{name}", value, hints[name]) for name, value in options.items()}


def zero(linear: nn.Linear) -> nn.Linear:
    """Return the layer with all weights zero."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear
