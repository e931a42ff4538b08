"""What `cl-toolkit new` writes keeps the laws of its kind from the start, and so does its test say."""

from dataclasses import replace

import pytest
from files import call

from cl_toolkit.check import check
from cl_toolkit.check.suites import find_suite
from cl_toolkit.cli import scaffold
from cl_toolkit.errors import UserError
from cl_toolkit.registry import load_reference

UNSAID = {"strategy": {14}, "objective": {1, 2, 3, 10, 11, 14}}
"""The laws that say nothing about what is written: its tags do not say `forks`; it is no strategy."""


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_it_keeps_every_law_from_the_start(kind, tmp_path):
    reference, own_test = scaffold.new(kind, "my-pull", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_pull.py", "test_my_pull.py"]
    suite, _ = find_suite(reference, {})
    assert suite.kind == kind
    results = check(reference)
    assert {r.law.number: r.seen for r in results if r.passed is False} == {}
    assert {r.law.number for r in results if r.passed is None} == UNSAID.get(kind, set())
    its_test_asks_for_that(own_test, reference, results)
    with pytest.raises(UserError, match="is there already"):
        scaffold.new(kind, "my_pull", tmp_path)


def its_test_asks_for_that(path, reference, results):
    """The test beside it checks the same, passes with these results, and fails with a broken law."""
    test, given = load_reference(f"{path}:test_it_keeps_the_laws", "here"), {reference: results}
    test.__globals__["check"] = given.__getitem__
    test()
    given[reference] = [replace(results[0], passed=False), *results[1:]]
    with pytest.raises(AssertionError):
        test()


def test_what_is_written_speaks_of_nothing_but_itself(tmp_path):
    for kind in scaffold.KINDS:
        scaffold.new(kind, f"one_{kind}", tmp_path)
    for path in tmp_path.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "my_idea" not in text
        assert "MyIdea" not in text


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("stratgy", "mine", "new 'stratgy': is no kind of thing that can be begun; did you mean 'strategy'"),
        ("model", "mine", "known: objective, probe, scorer, strategy, stream, tracker"),
        ("scorer", "choices", "new scorer choices: is the name of cl_toolkit.measure.scorers:choices"),
        ("stream", "1st", "new stream 1st: expected a name of small letters"),
    ],
)
def test_what_cannot_be_begun_is_refused(kind, name, words, tmp_path):
    with pytest.raises(UserError) as error:
        scaffold.new(kind, name, tmp_path)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_how_to_check_it(tmp_path, monkeypatch, capsys):
    code, said, _ = call(monkeypatch, capsys, "new", "scorer", "mine", "--folder", tmp_path)
    assert code == 0
    assert said.endswith(f"cl-toolkit check {tmp_path / 'mine.py'}:mine\n")
    code, said, _ = call(monkeypatch, capsys, "check", f"{tmp_path / 'mine.py'}:mine")
    assert code == 0
    assert "keeps every law that applies" in said
