"""The learned predictor: a shortcut network advances the features at each cheap step."""

import copy
import functools
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from migm.bases.base import Base, Branch, Moment
from migm.bases.linear import LinearKind, quantise, with_linear
from migm.bases.transformer import PackedAttention
from migm.bases.weights import version
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Dropout, Positive
from migm.shortcuts.checkpoint import load_shortcut
from migm.shortcuts.choosing import KEY, Choice, choose
from migm.shortcuts.network import Past, reads_full_steps, reads_two


@dataclass(frozen=True)
class Shortcut:
    """MIGM-Shortcut (arXiv 2602.23996, section 3).

    `weights` is a file written by `migm.train`, refused if it was trained for another base, or a published checkpoint.
    A published checkpoint does not contain `num_heads`, `rope_theta` and `prompt`; their defaults are those of the
    published network. Without `weights` the file `trained` runs, which a training here writes, or else `bundled`, which
    came with the base; the first use chooses. A `module` may replace the files (tests, previews). `dropout` stays
    active while sampling, drawn from torch's global generator: the paper's Table 1 was measured with 0.1, an oversight
    of its evaluation script (docs/originals/maskgit.md, Evaluation with dropout). `linear` is the kind of the blocks'
    linears (`migm.bases.linear`), whatever that of the base is. A base of another kind takes the shortcuts of the plain
    one.
    """

    weights: str | Path | None = field(default=None, compare=False)
    module: nn.Module | None = field(default=None, compare=False, repr=False)
    num_heads: Count | None = None
    rope_theta: Positive | None = None
    prompt: bool | None = None
    dropout: Dropout = 0.0
    linear: LinearKind = "plain"
    trained: str | Path | None = field(default=None, compare=False)
    bundled: str | Path | None = field(default=None, compare=False)
    # By the base's fingerprint; kept, so that all images of a run are by one file, whatever is trained meanwhile.
    _choices: dict[str, Choice] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.module is not None:  # copied, since the module may still be in training, in another precision
            module = lowered(copy.deepcopy(self.module).eval(), self.linear)
            object.__setattr__(self, "module", keep_dropout(module, self.dropout))

    @property
    def captured(self) -> bool:
        """Whether a run can be captured: dropout would be the same in every replay."""
        return not self.dropout

    def fingerprint(self, base: Base) -> str:
        return self._network(base)[1]

    def origin(self, base: Base) -> str:
        """Say which file runs and where it comes from; empty for a `module`."""
        if self.module is not None:
            return ""
        network = self._network(base)[0]
        most = getattr(network, "max_gap", 1)
        trained = f", for up to {most} cheap steps in a row" if reads_full_steps(network) else ""
        return self._chosen(base).words + trained

    def history_of(self, base: Base) -> int:
        """Return the number of last full steps that the network for this base reads."""
        return 1 + reads_two(self._network(base)[0])

    def start(self, base: Base, branch: Branch) -> "_Advance | _FromFull":
        network = self._network(base)[0]
        return (_FromFull if reads_full_steps(network) else _Advance)(network, base, branch)

    def _network(self, base: Base) -> tuple[nn.Module, str]:
        """Return the network and its fingerprint; a file that several points use is read once."""
        if self.module is not None:
            return self.module, ""
        options = (("num_heads", self.num_heads), ("rope_theta", self.rope_theta), ("prompt", self.prompt))
        base_key = (*_fingerprints(base), base.spec.channels, str(base.device))
        file = self._chosen(base).file
        return _load(file, version(file), *base_key, options, self.dropout, self.linear)

    def _chosen(self, base: Base) -> Choice:
        fingerprint, plain = _fingerprints(base)
        if fingerprint not in self._choices:
            self._choices[fingerprint] = choose(self.weights, self.trained, self.bundled, {fingerprint, plain})
        return self._choices[fingerprint]


def _fingerprints(base: Base) -> tuple[str, str]:
    """Return the fingerprint of a base, and that of the same one with plain linears."""
    return base.fingerprint(), getattr(base, "plain_fingerprint", base.fingerprint)()


@functools.lru_cache(maxsize=8)
def _load(
    weights: str | Path | None,
    _version: object,
    base_fingerprint: str,
    plain_fingerprint: str,
    channels: int,
    _device: str,  # part of the cache's key: the network is moved to the features' device
    options: tuple[tuple[str, Any], ...],
    dropout: float,
    kind: LinearKind,
) -> tuple[nn.Module, str]:
    module, fingerprint = load_shortcut(weights, base_fingerprint, KEY, plain_fingerprint, **dict(options))
    if module.config["channels"] != channels:
        raise UserError(
            f"{KEY}={weights} is for features of {module.config['channels']} channels, this base has {channels}"
        )
    return keep_dropout(lowered(module, kind), dropout), with_linear(fingerprint, kind)


class _Advance:
    features: Tensor
    fast: Fast = staticmethod(as_it_is)

    def __init__(self, module: nn.Module, base: Base, branch: Branch):
        self.module, self.base, self.branch = module, base, branch
        self.ready = False

    def update(self, step: int, features: Tensor) -> None:
        if not self.ready:
            self.module.to(features.device, features.dtype)
            self.ready = True
        self.features = features

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        run = self.fast(advance)
        self.features = run(self.module, self.base, self.branch, self.features, tokens, new_positions, moment)
        return self.features


class _FromFull:
    """The state of a network that starts every prediction from full steps.

    It keeps the features of the last ones, and the positions of all tokens revealed since, ascending.
    """

    fast: Fast = staticmethod(as_it_is)

    def __init__(self, module: nn.Module, base: Base, branch: Branch):
        self.module, self.base, self.branch = module, base, branch
        self.both = reads_two(module)
        self.steps: deque[int] = deque(maxlen=1 + self.both)
        self.features: deque[Tensor] = deque(maxlen=1 + self.both)
        self.positions: list[Tensor] = []

    def update(self, step: int, features: Tensor) -> None:
        if not self.steps:
            self.module.to(features.device, features.dtype)
        self.steps.append(step)
        self.features.append(features)
        self.positions = []

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        since = torch.cat([*self.positions, new_positions], 1).sort(1).values
        self.positions = [since]
        run, past = self.fast(advance), self._past(step, since.shape[1], moment)
        return run(self.module, self.base, self.branch, self.features[-1], tokens, since, moment, past)

    def _past(self, step: int, revealed: int, moment: Moment) -> Past:
        """Return the full steps that a prediction starts from; `revealed` tokens ago was the last one."""
        ratio = (moment.mask_ratio + revealed / self.base.spec.num_tokens).repeat(self.branch.copies)
        gap, span = ((s / moment.num_steps) for s in (step - self.steps[-1], self.steps[-1] - self.steps[0]))
        past = Past(ratio, torch.full_like(ratio, gap))
        return past._replace(earlier=self.features[0], span=torch.full_like(ratio, span)) if self.both else past


def advance(
    module: nn.Module,
    base: Base,
    branch: Branch,
    features: Tensor,
    tokens: Tensor,
    new_positions: Tensor,
    moment: Moment,
    past: Past | None = None,
) -> Tensor:
    """Return the features of a branch now: the network reads the new tokens as the base embeds them."""
    new = base.control(tokens.gather(1, new_positions), new_positions, branch)
    more = () if past is None else (past,)
    return module(features, new, moment.mask_ratio.repeat(branch.copies), *more)


def lowered(module: nn.Module, kind: LinearKind) -> nn.Module:
    """Replace the linears of the module's `blocks` by those of a kind."""
    if kind != "plain":
        blocks = getattr(module, "blocks", None)
        if not isinstance(blocks, nn.Module):
            raise UserError(f"accelerator.predictor.linear={kind}, but a {type(module).__name__} has no blocks")
        quantise(blocks, kind, "accelerator.predictor.linear")
    return module


def keep_dropout(module: nn.Module, dropout: float) -> nn.Module:
    """Set the rate of the module's dropout, attention weights included, and keep it active, unless the rate is 0."""
    if not dropout:
        return module
    if not any(isinstance(part, nn.Dropout) for part in module.modules()):
        raise UserError(f"accelerator.predictor.dropout={dropout}, but a {type(module).__name__} has none")
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
            part.train()
        elif isinstance(part, PackedAttention):
            part.dropout = dropout
            part.train()
    return module
