"""Define the network with a forecast: it corrects the line through the last two full steps by the drawn tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from migm.runtime.kinds import Count, Share
from migm.runtime.shapes import Features
from migm.shortcuts.anchored import Body, zero
from migm.shortcuts.history import HistoryShortcut
from migm.shortcuts.network import Past


class ForecastShortcut(HistoryShortcut):
    """features + gate * (forecast - features) + S(features, forecast - features, all tokens since, times).

    The forecast is the line through the last two full steps (`migm.accelerators.extrapolation.Taylor` of order 1); it
    is the features of the last one where there is no other. The gate has a value for each channel, which begins at
    `first_gate`, and adds one for each row from the blocks' output, which begins at zero. An untrained network is
    therefore reuse by a `first_gate` of 0, and the forecast by 1.
    """

    def __init__(
        self,
        channels: Count,
        bottleneck_ratio: Count = 2,
        depth: Count = 1,
        num_heads: Count = 16,
        max_gap: Count = 3,
        body: Body = "maskgit",
        options: Mapping[str, Any] | None = None,
        first_gate: Share = 0.0,
    ):
        super().__init__(channels, bottleneck_ratio, depth, num_heads, max_gap, body, options)
        self.config["first_gate"] = first_gate
        self.gate = nn.Parameter(torch.full((channels,), float(first_gate)))
        self.row_gate = zero(nn.Linear(self.inner, 1, bias=False))

    def difference(self, features: Features, past: Past) -> Features:
        """Return the forecast less the features of the last full step."""
        assert past.span is not None  # for the type checker: `reads` asks for it
        ahead = (past.gap / past.span.clamp(min=torch.finfo(past.span.dtype).tiny)).where(past.span > 0, 0.0)
        return super().difference(features, past) * ahead.to(features.dtype)[:, None, None]

    def change(self, x: Float[Tensor, "b t ci"], features: Features, past: Past) -> Features:
        gate = self.gate + self.row_gate(x)
        return gate * self.difference(features, past) + super().change(x, features, past)
