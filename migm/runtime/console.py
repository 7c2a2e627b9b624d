"""What the commands print: texts as they are, whatever characters a path, a name or a prompt holds."""

from typing import Any

from rich.console import Console, RenderableType
from rich.rule import Rule

UNBROKEN = 10_000  # characters a line where nobody looks through a window: a file, a pipe, a job's log


class Plain(Console):
    """rich's console without its markup; colours are given by `style=`.

    Where output is no terminal nothing is broken or cut, so that it can be copied and parsed: tables are as
    wide as they need to be. In a terminal a line of text goes on at its edge, and tables fit into it.
    """

    def __init__(self, **settings: Any):
        super().__init__(markup=False, emoji=False, **settings)
        if not self.is_terminal:
            self.width = UNBROKEN

    def print(self, *objects: RenderableType, **settings: Any) -> None:
        settings.setdefault("soft_wrap", all(isinstance(each, str) for each in objects))
        super().print(*objects, **settings)

    def rule(self, title: str, **settings: Any) -> None:
        """A line with a title, over a terminal's width or 80 characters."""
        super().print(Rule(title, **settings), width=None if self.is_terminal else 80)
