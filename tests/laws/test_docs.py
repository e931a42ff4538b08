"""The examples of docs/strategy.md and docs/extending.md are short, work, and keep the laws."""

import re
from pathlib import Path

import pytest
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit.check import check
from cl_toolkit.check.suites import SUITES, find_suite
from cl_toolkit.models.kind import KINDS
from cl_toolkit.registry import load_reference

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXPECTED_TO_BREAK = {"NearTheStart": {3}}  # the page says so


def examples(page):
    """The blocks of a page by the name of what they make."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return {re.findall(r"^(?:class|def) (\w+)", block, re.MULTILINE)[-1]: block for block in blocks}


STRATEGIES, EXTENDING = examples("strategy.md"), examples("extending.md")
BLOCKS = STRATEGIES | EXTENDING


def write(name, folder):
    """An example in a file of its own."""
    path = folder / "my_idea.py"
    path.write_text(BLOCKS[name], encoding="utf-8")
    return f"{path}:{name}"


def test_they_are_of_at_most_thirty_lines():
    assert len(STRATEGIES) == 3
    assert all(len(block.splitlines()) <= 30 for block in BLOCKS.values())


def test_there_is_one_of_each_kind(tmp_path):
    kinds = [find_suite(write(name, tmp_path), {})[0].kind for name in EXTENDING]
    assert sorted([*kinds, "engine"]) == sorted(suite.kind for suite in SUITES)  # an engine is told in a sentence


@pytest.mark.parametrize("name", BLOCKS)
def test_an_example_keeps_the_laws(name, tmp_path):
    broken = {r.law.number: r.seen for r in check(write(name, tmp_path)) if r.passed is False}
    assert set(broken) == EXPECTED_TO_BREAK.get(name, set()), broken


def test_they_work_together_in_one_run_where_the_page_says(tmp_path):
    here = {name: write(name, tmp_path / name) for name in EXTENDING if (tmp_path / name).mkdir() is None}
    config = tiny_config(
        objective={"name": here["Margin"]},
        strategies={here["Last"]: {}},
        evaluate={"probes": {here["Refusals"]: {"examples": 2}}},
        trackers={here["Csv"]: {}},
    )
    config["stream"] = {"name": here["Clock"], "days": 2}
    record = cl.run(config, out=tmp_path / "run")
    assert record["tasks"] == ["plus_1", "plus_5", "plus_7"]
    assert [row["n"] for row in record["probes"][here["Refusals"]]] == [6, 6, 6]
    assert "loss/" in (tmp_path / "run" / "numbers.csv").read_text()


def test_one_line_makes_the_kind_of_model_a_name(tmp_path, monkeypatch):
    kind = load_reference(write("Linear", tmp_path), "here")
    monkeypatch.setitem(KINDS, "linear", f"{kind.__module__}:Linear")
    config = {
        "stream": {"name": "digits", "tasks": ["digits_0_1"]},
        "model": {"name": "linear"},
        "train": {"max_steps": 60, "learning_rate": 1e-2},
    }
    assert cl.run(config, out=tmp_path / "run")["metrics"]["acc"] > 0.9


def test_a_scorer_is_named_in_the_data(tmp_path):
    scorer = load_reference(write("edits", tmp_path), "here")
    asked = cl.Scorer(scorer.function)
    example = type("Example", (), {"target": "kitten"})
    assert (asked(example, "sitting"), asked(example, "kitten"), asked(example, "")) == (3, 0, 6)
