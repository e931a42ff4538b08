"""The worked examples of docs/strategy.md are short, train, and keep the laws."""

import re
from pathlib import Path

import pytest

from cl_toolkit.check import check

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "strategy.md").read_text(encoding="utf-8")
BLOCKS = {re.search(r"class (\w+)", b).group(1): b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)}
EXPECTED_TO_BREAK = {"NearTheStart": {3}}  # the page says so


def test_there_are_three_of_at_most_thirty_lines():
    assert len(BLOCKS) == 3
    assert all(len(block.splitlines()) <= 30 for block in BLOCKS.values())


@pytest.mark.parametrize("name", BLOCKS)
def test_a_worked_example_keeps_the_laws(name, tmp_path):
    path = tmp_path / "example.py"
    path.write_text(BLOCKS[name], encoding="utf-8")
    broken = {r.law.number: r.seen for r in check(f"{path}:{name}") if r.passed is False}
    assert set(broken) == EXPECTED_TO_BREAK.get(name, set()), broken
