"""Define the base class of all shortcut networks, and list its subclasses."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from migm.bases.base import Control
from migm.runtime.shapes import Features, Ratio

Reads = Literal["last_step", "full_step", "two_full_steps"]


class Past(NamedTuple):
    """The full steps that a prediction starts from, for networks that read more than the last step."""

    mask_ratio: Ratio  # at the last full step
    gap: Ratio  # steps since that step, over N
    earlier: Features | None = None  # of the full step before it; those of the last one where there is none
    span: Ratio | None = None  # steps between both, over N; 0 where there is no earlier one


class ShortcutNetwork(nn.Module):
    """A network that predicts the features of the next step; a new one is a subclass and a YAML that names it.

    `config` holds the constructor arguments, among them `channels`, the number of channels of the features. A file of
    trained weights includes the config, and the network is built again from it.

    `reads` says where a prediction starts from. By "last_step" predictions are chained: the features are those of the
    last step, predicted or not. By "full_step" the features are those of the last full step, the new tokens are all
    that were revealed since, and `forward` takes a `Past` as fourth argument; by "two_full_steps" the `Past` also
    holds features of the full step before. Such a network learns to predict up to `max_gap` steps ahead.
    """

    config: dict[str, Any]
    reads: ClassVar[Reads] = "last_step"
    max_gap: int = 1

    def calibrate(self, embeddings: Tensor) -> None:
        """Fit fresh weights to the scale of the base's input embeddings (1, v, c); by default, do nothing."""

    def forward(self, features: Tensor, new: Control, mask_ratio: Tensor, *past: Past) -> Tensor:
        """Return the features (b, t, c) of the next step.

        `features` (b, t, c) are those of the last step. `new` are the tokens that the last step revealed, as the base
        embeds them. `mask_ratio` (b,) is the share that is still masked now. By other values of `reads`, features and
        new tokens are those since the last full step, and there is one `past`.
        """
        raise NotImplementedError

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the constructor arguments for a published bare state dict; None if it is not of this class."""
        return None


def networks() -> list[type[ShortcutNetwork]]:
    """Return all network classes of this package, and those of other imported modules.

    The modules of a config's components are imported when the config is checked, so that a network of the user's own
    is included if the config names it.
    """
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
    return list(_derived(ShortcutNetwork))


def _derived(parent: type[ShortcutNetwork]) -> Iterator[type[ShortcutNetwork]]:
    for child in parent.__subclasses__():
        yield child
        yield from _derived(child)


def reads_full_steps(network: nn.Module) -> bool:
    """Return whether a network's predictions start from full steps, so that they are not chained."""
    return getattr(network, "reads", "last_step") != "last_step"


def address(network: type[ShortcutNetwork]) -> str:
    """Return the import path of a class, as files and configs name it."""
    return f"{network.__module__}.{network.__qualname__}"


def reads_two(network: nn.Module) -> bool:
    """Return whether a network also reads the full step before the last."""
    return getattr(network, "reads", "last_step") == "two_full_steps"
