"""Similarity and SARI, by hand and against the values that their own code gives."""

import pytest

from cl_toolkit.measure.rewriting import fuzzy_ratio, sari, sari_of
from cl_toolkit.measure.scorers import score
from cl_toolkit.types import Example, Message

SOURCE = "About 95 species are currently accepted ."
REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


@pytest.mark.parametrize(
    ("answer", "value"),
    # what `evaluate`'s corrected form of the authors' script gives for its three examples
    [
        ("About 95 you now get in .", 0.2695360195360195),
        ("About 95 species are now agreed .", 0.6170965608465607),
        ("About 95 species are currently agreed .", 0.5088681849551415),
    ],
)
def test_sari_is_what_others_compute(answer, value):
    assert sari_of(SOURCE, answer, REFERENCES) == pytest.approx(value, abs=1e-12)


def test_sari_by_hand():
    # one word each: kept nothing of what is wanted, deleted rightly, added rightly
    assert sari_of("a", "b", ["b"]) == pytest.approx((1 / 4) * ((1 + 1 + 1) / 3) + 3 / 4)
    assert sari_of("a", "a", ["a"]) == 1
    # n = 1: keep 0 of 1 wanted, so F1 0; delete: precision 0 of 1; nothing added, nothing to add; higher n: nothing at all
    assert sari_of("a", "", ["a"]) == pytest.approx((1 / 4) * ((0 + 0 + 1) / 3) + 3 / 4)


def test_all_references_are_read_at_once():
    example = Example(
        id="1",
        messages=(Message(role="user", content=SOURCE),),
        target=REFERENCES[0],
        extra={"references": REFERENCES[1:]},
    )
    answer = "About 95 species are now agreed ."
    assert score("t", "sari", sari, example, answer) == sari_of(SOURCE, answer, REFERENCES)


def test_fuzzy_ratio():
    example = Example(id="1", target="abcd")
    assert fuzzy_ratio(example, "bcde") == 0.75
    assert fuzzy_ratio(example, "") == 0
    assert fuzzy_ratio(Example(id="1", target=""), "") == 1
