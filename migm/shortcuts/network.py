"""The class that every shortcut network derives from, by which its files are recognised."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from torch import Tensor, nn

from migm.bases.base import Control


class ShortcutNetwork(nn.Module):
    """Predicts the features of the next step; a subclass and a YAML that names it are a new network.

    `config` holds the arguments of the constructor, `channels` (those of the features) among them; a file of trained
    weights keeps it, and the network is built from it again.
    """

    config: dict[str, Any]

    def calibrate(self, embeddings: Tensor) -> None:
        """Fit fresh weights to the scale of the base's input embeddings (1, v, c), where that matters."""

    def forward(self, features: Tensor, new: Control, mask_ratio: Tensor) -> Tensor:
        """Features (b, t, c) of the next step.

        `features` (b, t, c) are those of the last step, `new` the tokens that it revealed, as the base embeds them,
        `mask_ratio` (b,) the share still masked now.
        """
        raise NotImplementedError

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Constructor arguments that a published bare state dict tells; None where it is not of this class."""
        return None


def networks() -> list[type[ShortcutNetwork]]:
    """All network classes of this package, and those of other modules that are imported.

    The modules of a config's components are imported when it is checked, so that a network of one's own is among them
    where the config names it.
    """
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
    return list(_derived(ShortcutNetwork))


def _derived(parent: type[ShortcutNetwork]) -> Iterator[type[ShortcutNetwork]]:
    for child in parent.__subclasses__():
        yield child
        yield from _derived(child)


def address(network: type[ShortcutNetwork]) -> str:
    """The import path of a class, as files and configs name it."""
    return f"{network.__module__}.{network.__qualname__}"
