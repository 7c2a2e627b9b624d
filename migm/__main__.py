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
    """Every command and what it does, by the first line of its file; nothing is imported, which would take seconds."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\n@command\ndef main(" in text:
            docstring = ast.get_docstring(ast.parse(text)) or ""
            found[path.stem] = docstring.partition("\n")[0].partition("`: ")[2]
    return found


def main() -> None:
    """Run the command that is named, with the arguments behind it."""
    known = commands()
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h", "help"):
        width = max(map(len, known)) + 2
        print(USAGE.format(commands="\n".join(f"  {each:{width}}{told}" for each, told in known.items())), end="")
    elif name in ("--version", "-V"):
        print(f"migm {__version__}")
    elif name not in {*known, *RENAMED}:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: migm {name} is unknown{hint} (known: {', '.join(known)})", file=sys.stderr)
        sys.exit(2)
    else:
        run(name, rest)


def run_renamed(name: str) -> None:
    """Run the command that an old name stands for, and say what it is called now."""
    print(f"migm.{name} is called migm.{RENAMED[name]} now; the old name goes with the next version", file=sys.stderr)
    run(RENAMED[name], sys.argv[1:])


def run(name: str, arguments: list[str]) -> None:
    """As `python -m` does: the module becomes `__main__`, by which Lightning and joblib start further processes."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # components of one's own, by their _target_
    sys.argv[1:] = arguments
    wait_briefly()
    runpy.run_module(f"migm.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
