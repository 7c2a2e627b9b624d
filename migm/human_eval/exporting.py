"""Export blind pairs, and count their votes."""

from pathlib import Path
from typing import Any

from migm.config.roots import HumanevalConfig
from migm.human_eval.pairs import export, find_pairs, read_key
from migm.human_eval.votes import read_votes, score, wilson
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.files import write_json


def hand_out(config: HumanevalConfig) -> None:
    """Write the page, the CSV and the key; UserError without two folders of images."""
    if not config.method or not config.baseline:
        raise UserError(
            f"method={config.method}, baseline={config.baseline}: give two folders of migm.generate to export "
            "pairs, or votes=[...] to read what was voted on an export"
        )
    folder, console = Path(config.folder), Plain()
    pairs = find_pairs(Path(config.method), Path(config.baseline), config.num_pairs, config.seed)
    export(pairs, folder, config.question, config.url)
    n = len(pairs)
    low, high = wilson(n // 2, n)
    console.print(f"{n} pairs; one vote on each tells the win rate to about ±{50 * (high - low):.0f} points")
    console.print(f"hand out {folder / 'page'} (open index.html) or {folder / 'crowd.csv'} with page/images")
    console.print(f"keep {folder / 'key.json'} to yourself: it tells which side is which")


def count(config: HumanevalConfig) -> None:
    """Print and write the score of the votes, and print what is wrong with their files, line by line."""
    folder, console = Path(config.folder), Plain()
    votes, problems = read_votes(map(Path, config.votes), read_key(folder / "key.json"))
    for problem in problems:
        console.print(problem, style="yellow")
    scores = score(votes, config.seed)
    write_json(folder / "score.json", {**scores, "problems": problems})
    for line in score_lines(scores):
        console.print(line)
    console.print(f"score in {folder / 'score.json'}")


def score_lines(scores: dict[str, Any]) -> list[str]:
    """Return the score in words, line by line."""
    (low, high), (lowest, highest) = scores["wilson"], scores["over_pairs"]
    decided = scores["wins"] + scores["losses"]
    lines = [
        f"win rate {scores['win_rate']:.1%}: {scores['wins']} of {decided} decisions, {scores['ties']} ties; "
        f"95% interval {low:.1%} to {high:.1%} (independent votes), {lowest:.1%} to {highest:.1%} (over pairs)",
        f"{scores['raters']} raters, {scores['pairs']} pairs, left chosen in {scores['left_share']:.1%} of decisions",
    ]
    if scores["alpha"] is not None:
        lines.append(
            f"raters agree in {scores['agreement']:.1%} of judgements, Krippendorff's alpha {scores['alpha']:.2f}"
        )
    return lines
