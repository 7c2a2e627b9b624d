"""`migm <command> [key=value ...]`, the same as `python -m migm.<command>`; without a command the list of them."""

import ast
import difflib
import os
import runpy
import sys
from pathlib import Path

from migm import __version__, wait_briefly

HERE = Path(__file__).parent
RENAMED = {"fit": "calibrate", "reference": "metric_reference", "scorers.install": "install_scorers"}
USAGE = """usage: migm <command> [key=value ...]      (python -m migm.<command> is the same)

{commands}

migm <command> --help shows what can be set, migm --version the version.
"""


def commands() -> dict[str, str]:
    """Return every command with the first line of its file, without importing it, which would take seconds."""
    descriptions = {}
    for path in sorted(HERE.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\n@command\ndef main(" in text:
            docstring = ast.get_docstring(ast.parse(text)) or ""
            descriptions[path.stem] = docstring.partition("\n")[0].partition("`: ")[2]
    return descriptions


def main() -> None:
    """Run the named command with the arguments behind it."""
    descriptions = commands()
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h", "help"):
        width = max(map(len, descriptions)) + 2
        lines = "\n".join(f"  {command:{width}}{text}" for command, text in descriptions.items())
        print(USAGE.format(commands=lines), end="")
    elif name in ("--version", "-V"):
        print(f"migm {__version__}")
    elif name not in {*descriptions, *RENAMED}:
        close = difflib.get_close_matches(name, descriptions, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: migm {name} is unknown{hint} (known: {', '.join(descriptions)})", file=sys.stderr)
        sys.exit(2)
    else:
        run(name, rest)


def run_renamed(name: str) -> None:
    """Run the command that an old name stands for, and print its new name."""
    print(f"migm.{name} is called migm.{RENAMED[name]} now; the old name goes with the next version", file=sys.stderr)
    run(RENAMED[name], sys.argv[1:])


def run(name: str, arguments: list[str]) -> None:
    """Run a module as `python -m` does: as `__main__`, through which Lightning and joblib start further processes."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for the user's components, which configs name
    sys.argv[1:] = arguments
    wait_briefly()
    runpy.run_module(f"migm.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
