"""Scorers by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from pieces import ask

from cl_toolkit import UserError
from cl_toolkit.measure.scorers import Scorer, as_scorer, last_number, score
from cl_toolkit.registry import SCORERS

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
    ("normalized_exact", "", "A", 0),
    ("normalized_exact", "the", "A", 0),
    ("normalized_exact", "...", "A", 0),
    ("normalized_exact", "a.", "A", 1),
    ("normalized_exact", "-", "+", 0),
    ("normalized_exact", "don’t", "don't", 1),
    ("numeric", "It is 42.", "42", 1),
    ("numeric", "first 1, then 42", "#### 42", 1),
    ("numeric", "1,234.50", "1234.5", 1),
    ("numeric", "1/2", "0.5", 1),
    ("numeric", "-3", "3", 0),
    ("numeric", "none", "3", 0),
    ("numeric", "1/0", "3", 0),
    ("numeric", "1000001", "1000000", 0),  # whole numbers compare exactly
    ("numeric", "1e5", "100000", 1),
    ("numeric", "0.3333333", "1/3", 1),
    ("numeric", "1000000.5", "1000000", 1),  # within a relative 1e-6
    ("numeric", "1000002", "1000000", 0),
    ("choices", "b", "b", 1),
    ("choices", "b ", "b", 0),
    ("choices_norm", "b", "b", 1),
    ("choices_norm", "a", "b", 0),
    ("token_f1", "x y z", "x y", 0.8),  # precision 2/3, recall 1
    ("token_f1", "x x", "x", 2 / 3),  # each word counts as often as it is in both
    ("token_f1", "q", "x", 0),
    ("token_f1", "", "the", 0),
    ("token_f1", "我爱你", "我爱他", 2 / 3),  # a character is a word
    ("token_f1", "東京です。", "東京", 2 / 3),
    ("token_f1", "", "", 1),
    ("rouge_l", "police killed the gunman", "police kill the gunman", 0.75),  # the paper's example, F1
    ("rouge_l", "the gunman kill police", "police kill the gunman", 0.5),
    ("rouge_l", "a b c d", "a c d", 6 / 7),
    ("rouge_l", "The end.", "the end", 1),  # a mark is of no word
    ("rouge_l", "ฉันรัก", "ฉันรัก", 1),
    ("rouge_l", "北京市", "北京", 0.8),
    ("rouge_l", "?", "!", 0),
    ("rouge_l", "", "a", 0),
    ("rouge_l", "", "", 1),
    ("fuzzy_ratio", "bcde", "abcd", 0.75),
    ("sari", "b", "b", 1),  # of the question "q"
    ("sari", "q", "b", (1 / 3 + 3) / 4),  # of single words one part in three is right, of longer n-grams there are none
]


@pytest.mark.parametrize(("scorer", "answer", "target", "value"), CASES)
def test_by_hand(scorer, answer, target, value):
    assert SCORERS.get(scorer, "test")(ask("q", target), answer) == pytest.approx(value)


def test_every_scorer_has_cases_above_and_gives_one_for_the_target():
    of_answers = [name for name in SCORERS if SCORERS.get(name, "test").reads != "likelihood"]
    assert {case[0] for case in CASES} == set(of_answers)
    for name in of_answers:
        assert SCORERS.get(name, "test")(ask("q", "42 apples"), "42 apples") == 1.0


def test_perplexity_is_over_tokens_not_over_examples():
    perplexity = SCORERS.get("perplexity", "test")
    losses = [perplexity(ask("q"), likelihood) for likelihood in (-3 * math.log(2), -math.log(16))]
    assert perplexity.aggregate(losses, [3, 1]) == pytest.approx(128**0.25)
    assert perplexity.aggregate([1e6], [1]) == pytest.approx(math.exp(700))
    assert SCORERS.get("exact_match", "test").aggregate([1.0, 0.0], [3, 1]) == 0.5


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
        (".5", 0.5),
        ("-.5", -0.5),
        ("1e5", 100000),
        ("2.5E-1", 0.25),
        ("1 000 000", 1000000),
        ("1\u202f000", 1000),
        ("1\u2009000 and 1\u00a0234.5", 1234.5),
        ("1,000", 1000),
        ("1,2,3", 3),
        ("3-5", 5),
        ("10%-20%", 20),
        ("\u22125", -5),
        ("-1/2", -0.5),
        ("1/2/3", 3),
        ("5 (see 12/2024)", 5),
        ("5, on 1/12/2024", 5),
        ("12/2024", 2024),
        ("1e999999999999", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_a_number_of_any_length_is_compared_exactly():
    for last, value in (("8", 1), ("7", 0)):
        assert SCORERS.get("numeric", "test")(ask("q", "9" * 6000 + "8"), "9" * 6000 + last) == value


def test_a_scorer_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def half(example, answer):\n    return 0.5\n")
    assert SCORERS.get(f"{path}:half", "test")(ask("q"), "") == 0.5
    path.write_text(
        'from cl_toolkit import Scorer\n\n\ndef length(example, answer):\n    """Its length."""\n'
        "    return len(answer)\n\n\nshort = Scorer(length, unit='characters', higher_is_better=False, bounded=False)\n"
    )
    short = as_scorer(SCORERS.get(f"{path}:short", "test"))
    assert (short(ask("q"), "abc"), short.unit, short.__doc__) == (3, "characters", "Its length.")
    path.write_text("def half(example, answer):\n    return 0.5\n")
    with pytest.raises(UserError, match=r"has no 'hal'; did you mean 'half'\?"):
        SCORERS.get(f"{path}:hal", "test")


@pytest.mark.parametrize(
    ("given", "value"),
    [(True, 1.0), (0, 0.0), (np.float32(0.5), 0.5), (torch.tensor(0.25), 0.25), (np.bool_(False), 0.0)],
)
def test_a_score_may_be_any_number_from_0_to_1(given, value):
    assert score("t", "s", Scorer(lambda example, answer: given), ask("q"), "a") == value


def test_a_scorer_with_another_range_says_so():
    def characters(example, answer):
        return len(answer)

    with pytest.raises(UserError, match=r"example q: expected a number from 0 to 1, got 3; .*bounded=False"):
        score("t", "s", Scorer(characters), ask("q"), "abc")
    assert score("t", "s", Scorer(characters, bounded=False), ask("q"), "abc") == 3.0


@pytest.mark.parametrize(
    ("scorer", "why"),
    [
        (lambda example, answer: None, "expected a finite number, got None"),
        (lambda example, answer: float("nan"), "expected a finite number, got nan"),
        (lambda example, answer: torch.tensor(float("inf")), "expected a finite number, got tensor(inf)"),
        (lambda example, answer: "1.0", "expected a finite number, got '1.0'"),
        (lambda example, answer: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda example, answer: torch.ones(2), "RuntimeError: "),
        (lambda example, answer: exit(0), "SystemExit"),
    ],
)
def test_anything_else_is_told_with_scorer_task_and_example(scorer, why):
    with pytest.raises(UserError) as error:
        score("sums", "my.py:f", Scorer(scorer), ask("q", identity="sums/test/3"), "a")
    assert str(error.value).startswith("task sums: scorer my.py:f: example sums/test/3: ")
    assert why in str(error.value)
