"""Win rate, intervals and agreement, against closed forms, a textbook example and simulated raters."""

import random
from pathlib import Path

import pytest
from scipy.stats import binomtest
from tiny_parts import naming

from migm.human_eval.votes import Vote, krippendorff_alpha, read_votes, score, wilson
from migm.runtime.errors import UserError

KEY = {"study": "abc", "pairs": {"1": {"left": "method"}, "2": {"left": "baseline"}, "3": {"left": "method"}}}


def written(path: Path, *rows: str, header: str = "study,pair,rater,choice") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def votes(*winners: str) -> list[Vote]:
    return [Vote("r", str(n), winner, "left") for n, winner in enumerate(winners)]


def test_sides_become_winners_by_the_key(tmp_path):
    path = written(tmp_path / "a.csv", "abc,1,anna,left", "abc,2,anna,left", "abc,3,anna,tie", "abc,1,ben,right")
    found, problems = read_votes([path], KEY)
    assert [(v.rater, v.pair, v.winner) for v in found] == [
        ("anna", "1", "method"),
        ("anna", "2", "baseline"),
        ("anna", "3", "tie"),
        ("ben", "1", "baseline"),
    ]
    assert problems == []


def test_columns_of_a_crowd_platform_are_found(tmp_path):
    header = "\ufeffHITId,WorkerId,Input.study,Input.pair,Input.prompt,Answer.choice"
    path = written(tmp_path / "a.csv", 'h,w1,abc,2,"a, b",right', header=header)
    assert read_votes([path], KEY) == ([Vote("w1", "2", "method", "right")], [])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("other,1,anna,left", "study other is not abc"),
        ("abc,9,anna,left", "no pair 9"),
        ("abc,1,anna,both", "choice both"),
        ("abc,1,anna,", "choice empty"),
        ("abc,1,,left", "no rater"),
        ("abc,1", "choice empty"),
    ],
)
def test_lines_that_are_no_votes_are_named_and_do_not_count(tmp_path, row, words):
    others = [f"abc,2,r{i},left" for i in range(10)]
    path = written(tmp_path / "a.csv", "abc,1,anna,left", row, *others)
    found, (problem,) = read_votes([path], KEY)
    assert len(found) == 11
    assert problem.startswith(f"{path}, line 3: ")
    assert words in problem


def test_of_two_votes_on_a_pair_the_last_counts_and_the_first_is_named(tmp_path):
    first, second = written(tmp_path / "a.csv", "abc,1,anna,left"), written(tmp_path / "b.csv", "abc,1,anna,right")
    found, (problem,) = read_votes([first, second], KEY)
    assert [vote.winner for vote in found] == ["baseline"]
    assert f"{first}, line 2" in problem
    assert f"{second}, line 2" in problem


def test_a_file_without_the_columns_is_refused_naming_one(tmp_path):
    with pytest.raises(UserError, match=naming("a.csv", "choice")):
        read_votes([written(tmp_path / "a.csv", "1,2,3", header="study,pair,rater")], KEY)
    with pytest.raises(FileNotFoundError, match=naming("votes=", "none.csv")):
        read_votes([tmp_path / "none.csv"], KEY)


def test_ties_are_left_out_of_the_rate_and_counted():
    found = score(votes("method", "method", "method", "baseline", "tie", "tie"))
    assert found["win_rate"] == 0.75
    assert (found["wins"], found["losses"], found["ties"], found["pairs"], found["raters"]) == (3, 1, 2, 6, 1)
    assert (found["agreement"], found["alpha"]) == (None, None)
    with pytest.raises(UserError, match="2 ties"):
        score(votes("tie", "tie"))


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 5), (17, 40), (40, 40), (512, 1000)])
def test_wilson_is_that_of_scipy(wins, n):
    reference = binomtest(wins, n).proportion_ci(0.95, "wilson")
    assert wilson(wins, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_alpha_is_that_of_krippendorff_s_example():
    """Four observers, twelve units, missing values: nominal alpha 0.743 (Krippendorff, Computing alpha-reliability)."""
    table = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[row[i] for row in table if row[i] != "."] for i in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_one_for_perfect_and_about_zero_for_random_raters():
    assert krippendorff_alpha([["a", "a"], ["b", "b", "b"]]) == 1.0
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) == 1.0
    assert krippendorff_alpha([["a"], ["b"]]) is None
    source = random.Random(0)
    assert abs(krippendorff_alpha([[source.choice("ab") for _ in range(3)] for _ in range(3000)]) or 0) < 0.03


def simulated(rate: float, pairs: int, raters: int, source: random.Random) -> list[Vote]:
    """Raters who see the same merits: every pair has an own chance that the method wins, of mean `rate`."""
    made = []
    for pair in range(pairs):
        chance = source.betavariate(2 * rate, 2 * (1 - rate))
        for rater in range(raters):
            winner = "tie" if source.random() < 0.1 else "method" if source.random() < chance else "baseline"
            made.append(Vote(f"r{rater}", str(pair), winner, "left"))
    return made


def test_a_known_preference_is_recovered_within_the_interval_in_19_of_20_studies():
    source, covered, rates = random.Random(1), {"wilson": 0, "over_pairs": 0}, []
    for _ in range(60):
        found = score(simulated(0.7, pairs=60, raters=5, source=source))
        rates.append(found["win_rate"])
        for name in covered:
            covered[name] += found[name][0] <= 0.7 <= found[name][1]
        assert found["alpha"] > 0
    assert sum(rates) / len(rates) == pytest.approx(0.7, abs=0.015)
    assert covered["over_pairs"] >= 54
    assert covered["wilson"] < covered["over_pairs"]  # votes on the same pair are not independent


def test_a_score_is_the_same_again(tmp_path):
    made = simulated(0.6, 20, 3, random.Random(0))
    assert score(made, seed=1) == score(made, seed=1)


def test_a_raters_habit_of_one_side_shows():
    made = [Vote("r", str(n), "method" if n % 2 else "baseline", "left") for n in range(9)]
    assert score([*made, Vote("r", "9", "method", "right")])["left_share"] == 0.9
