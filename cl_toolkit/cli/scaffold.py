"""`cl-toolkit new strategy NAME`: a file that already passes the contract suite, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from cl_toolkit.errors import UserError
from cl_toolkit.registry import STRATEGIES, canonical

STRATEGY = '''"""One line: what the method does. Paper and equation, or "ours"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cl_toolkit import Strategy, Tags, at_least


class {cls}(Strategy):
    """Pull the weights towards where the last task left them: weight * sum (w - w_old)^2. Replace this rule by yours.

    The other hooks: before_task, batches, loss, before_step. Delete what you do not use; an absent hook costs nothing.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: of the penalty; 0 is sequential training."""

        weight: Annotated[float, at_least(0)] = 1.0

    tags = Tags(paper="ours", off={{"weight": 0.0}})
    kept = ("anchor",)  # survives a stop between tasks

    def __init__(self, config=None):
        super().__init__(config)
        self.anchor = {{}}

    def penalty(self, weights):
        known = [name for name in weights if name in self.anchor]
        if not known or self.config.weight == 0:
            return {{}}  # a term that is off is absent
        distance = sum(((weights[name] - self.anchor[name].to(weights[name])) ** 2).sum() for name in known)
        return {{self.name: self.config.weight * distance}}

    def after_task(self, model, task):
        if self.config.weight > 0:
            self.anchor = {{n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}}
        return model
'''

TEST = '''"""{cls} keeps the laws; add the known answers of its paper."""

from pathlib import Path

import pytest

from cl_toolkit.check import check
from cl_toolkit.check.laws import LAWS

FILE = Path(__file__).with_name("{name}.py")


@pytest.mark.parametrize("number", LAWS)
def test_law(number):
    (result,) = check(f"{{FILE}}:{cls}", [number])
    assert result.passed is not False, result.seen
'''


def new_strategy(name: str, folder: Path) -> list[Path]:
    """Write `<name>.py` and `test_<name>.py`; raises UserError where one is there already."""
    name = canonical(name)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"new strategy {name}: expected a name of small letters, digits and _")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UserError(f"new strategy {name}: is a word of Python; choose another name")
    if name in STRATEGIES.names():
        raise UserError(f"new strategy {name}: is the name of {STRATEGIES.origin(name)}; choose another name")
    if len(name) > 100:
        raise UserError(f"new strategy {name[:40]}…: expected at most 100 characters")
    cls = "".join(part.capitalize() for part in name.split("_"))
    files = {folder / f"{name}.py": STRATEGY, folder / f"test_{name}.py": TEST}
    for path in files:
        if path.exists():
            raise UserError(f"{path}: is there already; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text.format(name=name, cls=cls), encoding="utf-8")
    return list(files)
