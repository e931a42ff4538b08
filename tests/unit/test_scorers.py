"""Scorers by hand."""

from itertools import combinations

import pytest
from pieces import ask

from cl_toolkit import UserError
from cl_toolkit.registry import SCORERS
from cl_toolkit.scorers import last_number

CASES = [
    ("class_accuracy", "3", "3", 1),
    ("class_accuracy", "8", "3", 0),
    ("exact_match", "Ja", "Ja", 1),
    ("exact_match", " Ja\n", "Ja", 1),
    ("exact_match", "ja", "Ja", 0),
    ("exact_match", "", "Ja", 0),
    ("normalized_exact", "The Answer!", "answer", 1),
    ("normalized_exact", "an  answer", "a answer", 1),
    ("normalized_exact", "answers", "answer", 0),
    ("normalized_exact", "theory", "ory", 0),  # an article is a whole word
    ("normalized_exact", "ÄPFEL", "äpfel", 1),
    ("numeric", "It is 42.", "42", 1),
    ("numeric", "first 1, then 42", "#### 42", 1),
    ("numeric", "1,234.50", "1234.5", 1),
    ("numeric", "1/2", "0.5", 1),
    ("numeric", "-3", "3", 0),
    ("numeric", "none", "3", 0),
    ("numeric", "1/0", "3", 0),
    ("numeric", "1000000.5", "1000000", 1),  # within a relative 1e-6
    ("numeric", "1000002", "1000000", 0),
    ("choices", "b", "b", 1),
    ("choices", "b ", "b", 0),
    ("token_f1", "x y z", "x y", 0.8),  # precision 2/3, recall 1
    ("token_f1", "x x", "x", 2 / 3),  # each word counts as often as it is in both
    ("token_f1", "q", "x", 0),
    ("token_f1", "", "the", 1),  # nothing is left on both sides
    ("rouge_l", "police killed the gunman", "police kill the gunman", 0.75),  # the paper's example, F1
    ("rouge_l", "the gunman kill police", "police kill the gunman", 0.5),
    ("rouge_l", "a b c d", "a c d", 6 / 7),
    ("rouge_l", "", "a", 0),
    ("rouge_l", "", "", 1),
]


@pytest.mark.parametrize(("scorer", "answer", "target", "value"), CASES)
def test_by_hand(scorer, answer, target, value):
    assert SCORERS.get(scorer, "test")(ask("q", target), answer) == pytest.approx(value)


def test_every_scorer_has_cases_above_and_gives_one_for_the_target():
    assert {case[0] for case in CASES} == set(SCORERS)
    for name in SCORERS:
        assert SCORERS.get(name, "test")(ask("q", "42 apples"), "42 apples") == 1.0


def longest_common(a, b):
    """By trying all subsequences."""
    for length in range(len(a), 0, -1):
        for picked in combinations(a, length):
            rest = iter(b)
            if all(word in rest for word in picked):
                return length
    return 0


def test_the_longest_common_subsequence_by_brute_force():
    import random

    rng, rouge = random.Random(0), SCORERS.get("rouge_l", "test")
    for _ in range(200):
        a, b = ([rng.choice("abc") for _ in range(rng.randint(1, 7))] for _ in range(2))
        common = longest_common(a, b)
        assert rouge(ask("q", " ".join(b)), " ".join(a)) == pytest.approx(2 * common / (len(a) + len(b)))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("a 5", 5),
        ("5 a 6", 6),
        ("+7.25", 7.25),
        ("x-1", -1),
        ("3.", 3),
        ("", None),
        ("--", None),
        ("12,345,678", 12345678),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_a_scorer_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def half(example, answer):\n    return 0.5\n")
    assert SCORERS.get(f"{path}:half", "test")(ask("q"), "") == 0.5
    with pytest.raises(UserError, match=r"has no 'hal'; did you mean 'half'\?"):
        SCORERS.get(f"{path}:hal", "test")
