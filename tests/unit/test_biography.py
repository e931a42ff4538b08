"""The stream `biography`: facts about people whom nobody knows, asked in words that were not trained."""

import pytest

from cl_toolkit.benchmarks.biography import QUESTIONS, Biography
from cl_toolkit.config.typed import typed
from cl_toolkit.data.facts import task_hash
from cl_toolkit.errors import UserError
from cl_toolkit.study.cells import load_run


def tasks_of(names=None, **settings):
    stream = Biography(typed(Biography.Config, settings, "stream", "here"))
    return stream.tasks(names or stream.names())


def test_each_fact_is_trained_in_some_wordings_and_asked_in_another():
    first, second = tasks_of(groups=2, people=4, wordings=2)
    assert (len(first.train), len(first.test)) == (4 * 6 * 2, 4 * 6)
    trained = {e.question for e in first.train}
    assert trained.isdisjoint(e.question for e in first.test)
    names = [
        {w.format(name=name) for w in QUESTIONS["town"]}
        for name in {e.question.split(" the birth date of ")[1][:-1] for e in first.test if "birth date" in e.question}
    ]
    assert len(names) == 4
    known = {(e.id.split("/")[2].rsplit(".", 1)[0]): e.target for e in first.train}
    for example in first.test:  # the same fact under another wording
        assert known[example.id.split("/")[2].rsplit(".", 1)[0]] == example.target
    people = [
        {e.question.split("born? ")[0] for e in task.train if "When was" in e.question} for task in (first, second)
    ]
    assert people[0].isdisjoint(people[1])
    assert len(people[0] | people[1]) == 8


def test_it_is_the_same_whichever_groups_are_asked_for_and_another_with_another_seed():
    whole = tasks_of(groups=3, people=3)
    assert task_hash(tasks_of(["people_3"], groups=3, people=3)[0]) == task_hash(whole[2])
    assert len({task_hash(t) for t in (*whole, *tasks_of(groups=3, people=3, seed=1))}) == 6


def test_texts():
    (task,) = tasks_of(groups=1, people=3, wordings=2, gives="documents")
    assert (len(task.train), len(task.test), task.scorer) == (6, 3, "perplexity")
    assert task.train[0].text.startswith(task.test[0].text.split(" came into")[0].rsplit(" ", 2)[-2])
    assert len(task.train[0].text.split(". ")) == 6
    with pytest.raises(UserError, match=r"stream\.wordings: expected at most 2 for documents, got 3"):
        tasks_of(gives="documents", wordings=3)
    with pytest.raises(
        UserError, match=r"objective sft: learns from conversations.*; stream biography gives documents"
    ):
        load_run({"stream": {"name": "biography", "gives": "documents", "wordings": 1}})


def test_more_people_than_there_are_names_are_refused():
    """Their names would be drawn for ever."""
    with pytest.raises(UserError, match="people: expected at most 4994 in each of 10 groups, got 10000"):
        tasks_of(groups=10, people=10_000)
