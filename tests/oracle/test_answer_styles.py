"""The rules of answer style diversification."""

from collections import Counter

import pytest
from pieces import ask, configured, task_view

from cl_toolkit.errors import UserError
from cl_toolkit.strategies.answer_styles import STYLES, AnswerStyles, own_style, restyle

EXAMPLE = ask("2 + 2?", "4", "id")
WRONG = ["5", "6", "7"]


def restyled(style, draws=(0,), wrong=WRONG):
    draws = iter(draws)
    return restyle(EXAMPLE, style, wrong, lambda n: next(draws))


def test_yes_no():
    true, false = restyled("yes_no", (0,)), restyled("yes_no", (1, 2))
    assert (true.question, true.target) == ("2 + 2?\nIs the answer 4? Answer yes or no.", "yes")
    assert (false.question, false.target) == ("2 + 2?\nIs the answer 7? Answer yes or no.", "no")
    assert true.choices == ("yes", "no")
    assert restyled("yes_no", (), wrong=[]).target == "yes"  # nothing to ask wrongly about


def test_multiple_choice():
    found = restyled("multiple_choice", (1,))
    assert found.question == "2 + 2?\nA. 5\nB. 4\nC. 6\nD. 7\nAnswer with the letter of the right choice."
    assert found.target == "B"
    assert found.choices == ("A", "B", "C", "D")


def test_explanations():
    assert restyled("brief").target == "The answer is 4."
    assert restyled("detailed").target == "The question was: 2 + 2? The answer to it is 4."
    assert restyled("brief").question.startswith("2 + 2?\n")


@pytest.mark.parametrize(
    ("example", "style"),
    [
        (ask("q", "yes"), "yes_no"),
        (ask("q", "Yes", choices=("Yes", "No")), "yes_no"),
        (ask("q", "red", choices=("red", "blue")), "multiple_choice"),
        (ask("q", "red"), "short"),
        (ask("q", "it is red because of the setting sun"), "brief"),
        (ask("q", "word " * 40), "detailed"),
    ],
)
def test_the_style_that_an_example_comes_in(example, style):
    assert own_style(example) == style


EXAMPLES = [ask(f"question {i}?", f"answer {i % 7}", f"id{i}") for i in range(100)]


def styles(strategy, view):
    found = {e.id: e for batch in strategy.batches(None, view, view.batches()) for e in batch}
    return found, Counter(e.extra.get("style", "own") for e in found.values())


def test_the_share_is_spread_evenly_over_the_four_other_styles():
    found, counts = styles(AnswerStyles(), task_view(EXAMPLES))
    assert counts == {"own": 80, "yes_no": 5, "multiple_choice": 5, "brief": 5, "detailed": 5}
    assert set(found) == {e.id for e in EXAMPLES}
    for original in EXAMPLES:
        changed = found[original.id]
        assert changed.question.startswith(original.question)
        if changed.extra.get("style") == "multiple_choice":
            lines = changed.question.split("\n")[1:-1]
            assert len(set(lines)) == len(lines) == 4
            assert lines["ABCD".index(changed.target)][3:] == original.target
        if changed.extra.get("style") == "yes_no":
            assert (f"Is the answer {original.target}?" in changed.question) == (changed.target == "yes")


def test_what_is_drawn_depends_on_seed_and_task_alone():
    def drawn(**changes):
        return {k: v.question for k, v in AnswerStyles().rewrite(task_view(EXAMPLES, **changes)).items()}

    assert drawn() == drawn()
    assert drawn() != drawn(index=1)
    assert drawn() != drawn(seeds={"data": 0, "memory": 1, "rollout": 0})


def test_a_long_answer_is_not_asked_for_in_short():
    long = [ask(f"q{i}", f"a long answer of more than six words number {i}", f"id{i}") for i in range(20)]
    styled = AnswerStyles(AnswerStyles.Config(share=1.0)).rewrite(task_view(long))
    assert {e.extra["style"] for e in styled.values()} == {"yes_no", "multiple_choice"}
    coloured = [ask(f"q{i}", "red", f"id{i}", choices=("red", "blue")) for i in range(20)]
    styled = AnswerStyles(AnswerStyles.Config(share=1.0)).rewrite(task_view(coloured))
    assert {e.extra["style"] for e in styled.values()} == set(STYLES) - {"multiple_choice"}
    assert all(e.choices is None and e.target == "red" for e in styled.values() if e.extra["style"] == "short")


def test_rehearsed_examples_are_left_alone_and_share_zero_changes_nothing():
    view = task_view(EXAMPLES[:1])
    memory = [ask("question 0?", "answer 0", "id0", source="memory")]
    assert AnswerStyles(AnswerStyles.Config(share=1.0)).batches(None, view, [memory])[0] == memory
    batches = view.batches()
    assert AnswerStyles(AnswerStyles.Config(share=0.0)).batches(None, view, batches) is batches


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_bad_settings(share):
    with pytest.raises(UserError, match="share: expected"):
        configured(AnswerStyles, share=share)


@pytest.mark.parametrize(("style", "wanted"), [("multiple_choice", [4]), ("yes_no", [2, 3])])
@pytest.mark.parametrize("which", ["first", "last"])
def test_the_right_answer_may_stand_anywhere(style, wanted, which):
    """What is drawn: one of four places; yes or no, then one of three wrong answers. The last of each is used too."""
    asked = []

    def draw(n):
        asked.append(n)
        return n - 1 if which == "last" or style == "yes_no" else 0

    found = restyle(EXAMPLE, style, WRONG, draw)
    assert asked == wanted
    if style == "multiple_choice":
        assert found.target == {"first": "A", "last": "D"}[which]
    else:
        assert "Is the answer 7?" in found.question
