"""Define the network with history: it also reads the difference of the last two full steps."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from migm.runtime.shapes import Features, Ratio
from migm.shortcuts.anchored import AnchoredShortcut
from migm.shortcuts.network import Past, Reads
from migm.shortcuts.parts import TimeEmbedder


class HistoryShortcut(AnchoredShortcut):
    """The anchored network that also reads the full step before the last: where its features came from, and when.

    The difference of both features has an input projection of its own, and so has the time between them. Before there
    are two full steps, both are zero. It is anchored, since a chained one would have to be trained on its own errors
    as history (docs/methods.md, Networks from full steps). An untrained network is reuse.
    """

    reads: ClassVar[Reads] = "two_full_steps"

    def add_parts(self) -> None:
        self.proj_earlier = nn.Linear(self.config["channels"], self.inner)
        self.span_embedder = TimeEmbedder(self.inner)

    def times(self, mask_ratio: Ratio, past: Past) -> Float[Tensor, "b ci"]:
        assert past.span is not None  # for the type checker: `reads` asks for it
        return super().times(mask_ratio, past) + self.span_embedder(past.span)

    def input(self, features: Features, past: Past) -> Float[Tensor, "b t ci"]:
        return super().input(features, past) + self.proj_earlier(self.difference(features, past))

    def difference(self, features: Features, past: Past) -> Features:
        """Return what the blocks read of the earlier full step: the last one's features less its features."""
        assert past.earlier is not None  # for the type checker: `reads` asks for it
        return features - past.earlier
