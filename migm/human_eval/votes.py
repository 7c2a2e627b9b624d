"""Votes on blind pairs: read them, and compute the win rate, its interval and how far raters agree."""

import csv
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

from migm.human_eval.pairs import CHOICES
from migm.runtime.errors import UserError
from migm.runtime.reading import read_text

Z = statistics.NormalDist().inv_cdf(0.975)  # half-width of a 95% interval in standard deviations
DRAWS = 2000  # resamples of the bootstrap
LOST = 0.1  # share of bad lines above which a file is taken for votes on another export
# Crowd platforms' column names -> ours, after removing prefixes such as Input. and Answer.
ALIASES = {"workerid": "rater", "worker_id": "rater", "participant_id": "rater"}


@dataclass(frozen=True)
class Vote:
    """One rater's choice on one pair: `method`, `baseline` or `tie`; `side` is left, right or tie."""

    rater: str
    pair: str
    winner: str
    side: str


def read_votes(paths: Iterable[Path], key: Mapping[str, Any]) -> tuple[list[Vote], list[str]]:
    """Read votes from CSV files with the columns study, pair, rater and choice -> votes, and problems in words.

    Lines of another study, unknown pairs and unknown choices do not count. If their share exceeds `LOST`, the file
    raises UserError. If a rater votes on a pair twice, the last vote counts.
    """
    latest: dict[tuple[str, str], tuple[Vote, str]] = {}
    problems = []
    for path in paths:
        faults, rows = defaultdict[str, list[int]](list), _rows(path)
        for number, row in rows:
            fault, where = _fault(row, key), f"{path}, line {number}"
            if fault:
                faults[fault].append(number)
                continue
            rater, pair, side = row["rater"], row["pair"], row["choice"]
            left = key["pairs"][pair]["left"]
            right = "baseline" if left == "method" else "method"
            vote = Vote(rater, pair, {"left": left, "right": right, "tie": "tie"}[side], side)
            before, earlier = latest.get((rater, pair), (vote, ""))
            if before != vote:  # saving a page twice repeats its votes, which is no problem
                problems.append(f"{earlier}: {rater} votes on pair {pair} again in {where}, which counts")
            latest[rater, pair] = (vote, where)
        reasons = [f"{_lines(numbers)}: {fault}" for fault, numbers in faults.items()]
        lost = sum(map(len, faults.values()))
        if lost > LOST * len(rows):
            raise UserError(
                f"votes={path}: {lost} of {len(rows)} lines are no votes on this export, so nothing is scored: give "
                f"the folder= that it belongs to, or remove them ({'; '.join(reasons[:3])}{'; …' * (len(reasons) > 3)})"
            )
        problems += [f"{path}, {fault}; not counted" for fault in reasons]
    return [vote for vote, _ in latest.values()], problems


def _lines(numbers: Sequence[int]) -> str:
    """Write ascending line numbers in words, such as `lines 2 to 5, 9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    ranges = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
    return f"line{'s' * (len(numbers) > 1)} {ranges}"


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line number, row) pairs, with rows keyed by our column names."""
    if not path.exists():
        raise FileNotFoundError(f"votes={path}: no such file")
    text = read_text(path, "votes")
    heading = text.partition("\n")[0]
    # Spreadsheets write any of these delimiters.
    reader = csv.DictReader(StringIO(text), delimiter=max(",;\t", key=heading.count))
    names = {}
    for name in reader.fieldnames or []:
        plain = name.rsplit(".", 1)[-1].strip().lower()
        names[name] = ALIASES.get(plain, plain)
    missing = {"study", "pair", "rater", "choice"} - set(names.values())
    if missing:
        raise UserError(f"votes={path} lacks the column {min(missing)}; it has {', '.join(names) or 'none'}")
    try:
        return [
            (reader.line_num, {names[name]: (value or "").strip() for name, value in row.items() if name in names})
            for row in reader
        ]
    except csv.Error as error:
        raise UserError(f"votes={path}, line {reader.line_num + 1} cannot be read ({error})") from error


def _fault(row: Mapping[str, str], key: Mapping[str, Any]) -> str | None:
    if row["study"] != key["study"]:
        return f"study {row['study'] or 'unnamed'} is not {key['study']}"
    if row["pair"] not in key["pairs"]:
        return f"there is no pair {row['pair'] or 'unnamed'}"
    if row["choice"] not in CHOICES:
        return f"choice {row['choice'] or 'empty'} is none of {', '.join(CHOICES)}"
    return None if row["rater"] else "no rater"


def score(votes: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """Return the method's win rate W_M / (W_M + W_V) without ties, as in the paper, and its uncertainty.

    `wilson` is the 95% interval for independent votes. `over_pairs` is the 95% interval of a bootstrap over pairs,
    valid where several raters judge the same pairs. `agreement` is the share of equal judgements between two
    raters of a pair, `alpha` is Krippendorff's (nominal; 1 is perfect, 0 chance). Both are None where no two
    raters judged the same pair.
    """
    wins, losses, ties = (sum(vote.winner == x for vote in votes) for x in ("method", "baseline", "tie"))
    if not wins + losses:
        raise UserError(f"votes: {ties} ties and nothing else; a win rate needs at least one decision")
    by_pair = defaultdict(list)
    for vote in votes:
        by_pair[vote.pair].append(vote.winner)
    judged = list(by_pair.values())
    decided = wins + losses
    return {
        "win_rate": wins / decided,
        "wilson": wilson(wins, decided),
        "over_pairs": _bootstrap(judged, seed),
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "pairs": len(judged),
        "raters": len({vote.rater for vote in votes}),
        "agreement": _agreement(judged),
        "alpha": krippendorff_alpha(judged),
        "left_share": sum(vote.side == "left" for vote in votes) / decided,
    }


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


def wilson(wins: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of the proportion wins / n of n independent draws."""
    centre = (wins + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * math.sqrt(wins * (n - wins) / n + Z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def _bootstrap(judged: Sequence[Sequence[str]], seed: int) -> tuple[float, float]:
    """Return the 95% percentile interval of the win rate over pairs drawn with replacement."""
    source = random.Random(seed)
    counts = [(judgements.count("method"), judgements.count("baseline")) for judgements in judged]
    rates = []
    while len(rates) < DRAWS:
        wins, losses = (sum(column) for column in zip(*source.choices(counts, k=len(counts)), strict=True))
        if wins + losses:  # a draw with only ties has no rate
            rates.append(wins / (wins + losses))
    low, *_, high = statistics.quantiles(rates, n=40, method="inclusive")
    return low, high


def _agreement(judged: Iterable[Sequence[str]]) -> float | None:
    same = [a == b for judgements in judged for a, b in combinations(judgements, 2)]
    return sum(same) / len(same) if same else None


def krippendorff_alpha(judged: Iterable[Sequence[Any]]) -> float | None:
    """Return 1 - observed / expected disagreement of nominal judgements, one list of any length per unit.

    Units with a single judgement are left out. The result is 1.0 where all judgements agree, and None without units.
    """
    units = [Counter(judgements) for judgements in judged if len(judgements) > 1]
    if not units:
        return None
    totals: Counter[Any] = sum(units, Counter())
    n = totals.total()
    observed = sum((unit.total() ** 2 - sum(c * c for c in unit.values())) / (unit.total() - 1) for unit in units)
    expected = (n * n - sum(c * c for c in totals.values())) / (n - 1)
    return 1 - observed / expected if expected else 1.0
