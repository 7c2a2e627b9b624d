"""Define the base class of all shortcut networks, and list its subclasses."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from torch import Tensor, nn

from migm.bases.base import Control


class ShortcutNetwork(nn.Module):
    """A network that predicts the features of the next step; a new one is a subclass and a YAML that names it.

    `config` holds the constructor arguments, among them `channels`, the number of channels of the features. A file of
    trained weights includes the config, and the network is built again from it.
    """

    config: dict[str, Any]

    def calibrate(self, embeddings: Tensor) -> None:
        """Fit fresh weights to the scale of the base's input embeddings (1, v, c); by default, do nothing."""

    def forward(self, features: Tensor, new: Control, mask_ratio: Tensor) -> Tensor:
        """Return the features (b, t, c) of the next step.

        `features` (b, t, c) are those of the last step. `new` are the tokens that the last step revealed, as the base
        embeds them. `mask_ratio` (b,) is the share that is still masked now.
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


def address(network: type[ShortcutNetwork]) -> str:
    """Return the import path of a class, as files and configs name it."""
    return f"{network.__module__}.{network.__qualname__}"
