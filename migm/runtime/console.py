"""Print what the commands say, with every character of a path, name or prompt as it is."""

from typing import Any

from rich.console import Console, RenderableType
from rich.rule import Rule

UNBROKEN = 10_000  # characters a line in a file, a pipe or a job's log, where no window limits the width


class Plain(Console):
    """A rich console without markup; `style=` gives colours.

    Outside a terminal, no line is broken or cut, so that the output can be copied and parsed; tables are as wide as
    they need to be. In a terminal, long lines of text go on in the next line, and tables fit the window.
    """

    def __init__(self, **settings: Any):
        super().__init__(markup=False, emoji=False, **settings)
        if not self.is_terminal:
            self.width = UNBROKEN

    def print(self, *objects: RenderableType, **settings: Any) -> None:
        settings.setdefault("soft_wrap", all(isinstance(item, str) for item in objects))
        super().print(*objects, **settings)

    def rule(self, title: str, **settings: Any) -> None:
        """Print a line with a title, as wide as the terminal, or 80 characters elsewhere."""
        super().print(Rule(title, **settings), width=None if self.is_terminal else 80)
