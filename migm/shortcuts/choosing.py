"""Choose the file of a shortcut: the one that was named, the one trained here, or the one bundled with the base."""

import json
import re
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from migm.bases.weights import read_tensors
from migm.config.retraining import training_command
from migm.shortcuts.checkpoint import BETWEEN

KEY = "accelerator.predictor.weights"


class Choice(NamedTuple):
    """A file of weights, and words for people: which it is and where it comes from."""

    file: str | Path | None
    words: str


def choose(
    weights: str | Path | None, trained: str | Path | None, bundled: str | Path | None, bases: Set[str]
) -> Choice:
    """Return `weights` if it is given, else `trained` if it is there, else `bundled` if it is there and fits.

    `bases` are the fingerprints of the base, one of which a bundled file has to name. Without any file raises
    FileNotFoundError with the command that trains one.
    """
    if weights is not None:
        return Choice(weights, str(weights))
    if trained is not None and Path(trained).is_file():
        return Choice(trained, f"{trained}, trained here")
    other, command = "", training_command(Path(trained or "").parent.name)
    if bundled is not None and Path(bundled).is_file():
        metadata = read_tensors(bundled, KEY)[1]
        if bases & set(metadata.get("base", "").split(BETWEEN)):
            source = made(metadata.get("card"))
            return Choice(bundled, f"{bundled}, bundled with the base{source}; to train your own: {command}")
        other = f", and {bundled} is for another base"
    raise FileNotFoundError(f"{KEY}={trained}: no such file{other}; to train one: {command}")


def made(card: str | None) -> str:
    """Return a clause about the steps and data of a shortcut, from the card in its file; empty without a card."""
    facts = json.loads(card) if card else {}
    steps = re.split(r";| \(", str(facts.get("trained", "")))[0]  # then come details
    told = ", ".join(filter(None, (steps, str(facts.get("data", "")))))
    return f" ({told})" if told else ""
