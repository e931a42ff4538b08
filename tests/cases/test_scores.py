"""Scores that were wrong without a word, and scorers that give no score."""

import pytest
import torch
from files import call, write_case
from pieces import ask

from cl_toolkit.data.store import ExampleStore
from cl_toolkit.measure import scorers


@pytest.mark.parametrize(
    ("name", "target", "answer", "right"),
    [
        ("normalized_exact", "A", "", 0),
        ("normalized_exact", "A", "the", 0),
        ("normalized_exact", "A", "A", 1),
        ("normalized_exact", "+", "-", 0),
        ("token_f1", "A", "", 0),
        ("numeric", "5", ".5", 0),
        ("numeric", "0.5", ".5", 1),
        ("numeric", "5", "1e5", 0),
        ("numeric", "100000", "1e5", 1),
        ("numeric", "5", "\u22125", 0),
        ("numeric", "1000000", "1000001", 0),
    ],
)
def test_answers_that_were_scored_wrongly(name, target, answer, right):
    assert getattr(scorers, name)(ask("q", target), answer) == right


@pytest.mark.parametrize(
    ("value", "shown"), [("float('nan')", "nan"), ("None", "None"), ("1 / 0", "ZeroDivisionError")]
)
def test_a_scorer_that_gives_no_number_is_told_before_training(tmp_path, monkeypatch, capsys, value, shown):
    scorer = tmp_path / "my.py"
    scorer.write_text(f"def f(example, answer):\n    return {value} if example.id.endswith('/3') else 1.0\n")
    config = write_case(tmp_path, stream={"scorer": f"{scorer}:f"})
    code, _, said = call(monkeypatch, capsys, "run", config, "--out", tmp_path / "out")
    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: task t: scorer {scorer}:f: example t/test/3: ")
    assert shown in said
    assert '"event": "step"' not in (tmp_path / "out" / "events.jsonl").read_text()


def test_quota_leaves_no_room_unused():
    store, draws = ExampleStore(10, "quota"), torch.Generator().manual_seed(0)
    found = []
    for task, size in enumerate((3, 50, 1, 40)):
        store.add(task, [ask(f"{task}/{i}") for i in range(size)], draws)
        found.append({t: len(group) for t, group in store.by_task().items()})
    assert found == [{0: 3}, {0: 3, 1: 7}, {0: 3, 1: 6, 2: 1}, {0: 3, 1: 3, 2: 1, 3: 3}]
