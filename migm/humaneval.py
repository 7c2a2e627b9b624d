"""`python -m migm.humaneval`: blind pairs of two methods' images for people to judge, and what their votes say."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.roots import HumanevalConfig
from migm.human_eval.pairs import export, find_pairs, read_key
from migm.human_eval.votes import read_votes, score, score_lines, wilson
from migm.runtime.console import Plain
from migm.runtime.errors import UserError, command
from migm.runtime.files import write_json
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="humaneval", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Export pairs, or with `votes` read what was voted on them."""
    config = load(cfg, HumanevalConfig)
    if config.votes and (config.method or config.baseline):
        raise UserError(
            f"votes={config.votes} with method={config.method}, baseline={config.baseline}: give the votes alone to "
            "score an export, or the two folders alone to make one"
        )
    with writing(config.folder, f"folder={config.folder}", folder=True):
        if config.votes:
            count(config)
        else:
            hand_out(config)


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


if __name__ == "__main__":
    main()
