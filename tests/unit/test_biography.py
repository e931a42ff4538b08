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


def part(example, *which):
    """Of an id `task/split/person.attribute.wording`."""
    parts = example.id.split("/")[2].split(".")
    return tuple(parts[i] for i in which)


def test_each_fact_is_trained_in_some_wordings_and_asked_in_others():
    first, second = tasks_of(groups=2, people=4, wordings=2)
    assert [len(s) for s in (first.train, first.valid, first.test)] == [4 * 6 * 2, 4 * 6, 4 * 6]
    questions = [{e.question for e in split} for split in (first.train, first.valid, first.test)]
    assert len(set.union(*questions)) == sum(map(len, questions)) == 4 * 6 * 4
    known = {part(e, 0, 1): e.target for e in first.train}
    for split in (first.valid, first.test):  # the same facts under another wording
        assert {part(e, 0, 1): e.target for e in split} == known
    people = [
        {e.question.split("born? ")[0] for e in task.train if "When was" in e.question} for task in (first, second)
    ]
    assert people[0].isdisjoint(people[1])


def test_the_wording_held_out_goes_round_so_that_each_is_known_from_other_people():
    """A wording that nobody was ever asked in would test the wording, not the fact."""
    (task,) = tasks_of(groups=1, people=8, wordings=2)
    every = {(key, str(k)) for key in QUESTIONS for k in range(4)}
    for split in (task.train, task.valid, task.test):
        assert {part(e, 1, 2) for e in split} == every
    assert {part(e, 0, 2) for e in task.test} == {(str(i), str(i % 4)) for i in range(8)}
    assert {part(e, 0, 2) for e in task.valid} == {(str(i), str((i + 1) % 4)) for i in range(8)}


def test_it_is_the_same_whichever_groups_are_asked_for_and_another_with_another_seed():
    whole = tasks_of(groups=3, people=3)
    assert task_hash(tasks_of(["people_3"], groups=3, people=3)[0]) == task_hash(whole[2])
    assert len({task_hash(t) for t in (*whole, *tasks_of(groups=3, people=3, seed=1))}) == 6


def test_texts():
    (task,) = tasks_of(groups=1, people=3, wordings=1, gives="documents")
    assert ([len(s) for s in (task.train, task.valid, task.test)], task.scorer) == ([3, 3, 3], "perplexity")
    assert "The birthday of" in task.valid[0].text  # of the first person: told in words 2, asked in 0 and 1
    assert "was born on" in task.test[0].text
    assert "came into the world" in task.train[0].text
    assert len({e.text for split in (task.train, task.valid, task.test) for e in split}) == 9
    assert all(len(e.text.split(". ")) == 6 for e in task.train)
    with pytest.raises(
        UserError, match=r"objective sft: learns from conversations.*; stream biography gives documents"
    ):
        load_run({"stream": {"name": "biography", "gives": "documents", "wordings": 1}})


def test_more_people_than_there_are_names_are_refused():
    """Their names would be drawn for ever."""
    with pytest.raises(UserError, match="people: expected at most 4994 in each of 10 groups, got 10000"):
        tasks_of(groups=10, people=10_000)
