"""The contract suite catches those who cheat, by the law that they break, and lets the honest pass."""

from pathlib import Path

import pytest
from cheats import CAUGHT_BY

from cl_toolkit.check import check
from cl_toolkit.check.laws import LAWS
from cl_toolkit.errors import UserError

CHEATS = Path(__file__).resolve().parents[1] / "support" / "cheats.py"


@pytest.mark.parametrize(("name", "number"), CAUGHT_BY.items())
def test_a_cheat_is_caught_by_the_law_that_it_breaks(name, number):
    (result,) = check(f"{CHEATS}:{name}", [number])
    assert result.passed is False, result.seen
    assert not result.seen.startswith(("AttributeError", "TypeError", "KeyError", "UserError")), result.seen


def test_every_law_has_somebody_to_catch():
    assert set(CAUGHT_BY.values()) >= set(LAWS) - {5, 8}


def test_the_honest_strategy_of_the_readme_passes(tmp_path):
    readme = (CHEATS.parents[2] / "README.md").read_text(encoding="utf-8")
    block = next(b.split("```")[0] for b in readme.split("```python\n")[1:] if "class MyFirst" in b)
    path = tmp_path / "my_first.py"
    path.write_text(block, encoding="utf-8")
    results = check(f"{path}:MyFirst")
    assert [r.seen for r in results if r.passed is False] == []
    assert sum(r.passed is True for r in results) >= 10


def test_what_is_not_a_strategy_is_refused():
    with pytest.raises(
        UserError, match="check: json:JSONDecoder: expected a class derived from Strategy, Objective, Probe"
    ):
        check("json:JSONDecoder")
    with pytest.raises(UserError, match="a strategy has no law 99; known: 1, 2"):
        check("replay", [99])
