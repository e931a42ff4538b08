"""`cl-toolkit new KIND NAME`: a file that already keeps the laws of its kind, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from cl_toolkit.errors import UserError, did_you_mean, quoted
from cl_toolkit.registry import OBJECTIVES, PROBES, SCORERS, STRATEGIES, STREAMS, TRACKERS, canonical

KINDS = {registry.kind: registry for registry in (STRATEGIES, OBJECTIVES, STREAMS, SCORERS, PROBES, TRACKERS)}
"""What can be begun -> where its names are known. Each has a template of its name."""
TEMPLATES = Path(__file__).with_name("templates")

TEST = '''"""{thing} keeps the laws of its kind; add its known answers, worked out by hand."""

from pathlib import Path

from cl_toolkit.check import check

FILE = Path(__file__).with_name("{name}.py")


def test_it_keeps_the_laws():
    assert {{r.law.title: r.seen for r in check(f"{{FILE}}:{thing}") if r.passed is False}} == {{}}
'''


def new(kind: str, name: str, folder: Path) -> tuple[str, Path]:
    """Write `<name>.py` and `test_<name>.py`; the reference of what was written, and the test. Raises UserError for a kind that
    is not known, for a name that cannot work, and where there is such a file already."""
    if kind not in KINDS:
        raise UserError(f"new {quoted(kind)}: is no kind of thing that can be begun{did_you_mean(kind, KINDS)}")
    name = canonical(name)
    check_name(kind, name)
    text = (TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")
    cls = "".join(part.capitalize() for part in name.split("_"))
    thing = cls if "class MyIdea" in text else name  # a scorer is a function
    source, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (source, test):
        if path.exists():
            raise UserError(f"{path}: is there already; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text(text.replace("MyIdea", cls).replace("my_idea", name), encoding="utf-8")
    test.write_text(TEST.format(name=name, thing=thing), encoding="utf-8")
    return f"{source}:{thing}", test


def check_name(kind: str, name: str) -> None:
    """Raise UserError for a name that neither a file nor a config can have."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"new {kind} {name}: expected a name of small letters, digits and _")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UserError(f"new {kind} {name}: is a word of Python; choose another name")
    if name in KINDS[kind].names():
        raise UserError(f"new {kind} {name}: is the name of {KINDS[kind].origin(name)}; choose another name")
    if len(name) > 100:
        raise UserError(f"new {kind} {name[:40]}…: expected at most 100 characters")
