"""Texts of others (prompts, names, paths) put into HTML, Markdown and LaTeX, where they mean only themselves."""

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
    """An HTML document with `texts` escaped, `data` as JSON of a script element, and `parts` as they are, at @name@.

    All at once: a text that holds such a mark itself stays as it is.
    """
    # In a script element only < may begin something else, be it the end of it or a comment.
    told = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    put = {**{name: escape(text) for name, text in texts.items()}, "data": told, **parts}
    return re.sub("@(" + "|".join(put) + ")@", lambda mark: put[mark[1]], document)


def markdown(text: str) -> str:
    """A cell of a Markdown table."""
    return " ".join(text.split("\n")).replace("|", "\\|")


def latex(text: str) -> str:
    """A cell of a LaTeX table."""
    return "".join(LATEX.get(c, c) for c in " ".join(text.split("\n")))
