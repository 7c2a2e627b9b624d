"""Insert prompts, names and paths into HTML, Markdown and LaTeX so that they are shown literally."""

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def filled(document: str, texts: Mapping[str, str], data: Any, **parts: str) -> str:
    """Fill the @name@ marks of a document with escaped `texts`, `data` as JSON for a script, and unchanged `parts`.

    All marks are filled in one pass: a text that itself contains a mark stays as it is.
    """
    # In a script element only < can begin an end tag or a comment.
    script = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    put = {**{name: escape(text) for name, text in texts.items()}, "data": script, **parts}
    return re.sub("@(" + "|".join(put) + ")@", lambda mark: put[mark[1]], document)


def markdown(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return " ".join(text.split("\n")).replace("|", "\\|")


def latex(text: str) -> str:
    """Escape a text for a cell of a LaTeX table."""
    return "".join(LATEX.get(c, c) for c in " ".join(text.split("\n")))
