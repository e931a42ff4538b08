"""Shared code asks a thing what it can do: it never compares with the name of a kind, nor asks for a kind's class.

Read from the source. A name may be compared where its kind lives: regimes in `data/regimes.py`, engines in `engine/`, kinds of
models in `models/`. A table (`ENGINES[name]`) is no branch.
"""

import ast
import re
from functools import cache
from pathlib import Path

from cl_toolkit.data.regimes import REGIMES
from cl_toolkit.engine.choose import ENGINES
from cl_toolkit.models.kind import HEADS, built_in
from cl_toolkit.registry import OBJECTIVES, PROBES, SCORERS, STRATEGIES, STREAMS, TRACKERS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "cl_toolkit").rglob("*.py"))
NAMES = {
    "data/regimes.py": set(REGIMES),
    "engine/": set(ENGINES),
    "models/": {*built_in(), *(name.replace("-", "_") for name in built_in()), *HEADS},
    "nowhere": {n for r in (STRATEGIES, OBJECTIVES, STREAMS, SCORERS, PROBES, TRACKERS) for n in r if ":" not in n},
}
ORDINARY = {
    "start": "view|regime",
    "none": "head",
    "lm": "head|objective",
    "classes": "head",
    "torch": "engine",
    "choices": "scorer$",
    "merge": "strateg",
    "text": "stream|benchmark",
    "digits": "stream|benchmark",
}
"""Names that are words too: they count beside something that is called one of these."""


@cache
def kinds_classes():
    """Classes that stand for a kind: those in the rooms of kinds that inherit from a contract or from torch."""
    found = set()
    for path in (*(ROOT / "cl_toolkit" / "models").glob("*.py"), *(ROOT / "strategies").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.bases:
                found.add(node.name)
    return found - {"Config", "Codec"}


def constants(node):
    """The texts of a constant, or of a tuple, list or set of constants."""
    if isinstance(node, (ast.Constant, ast.Tuple, ast.List, ast.Set)):
        return {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    return set()


def branches(tree, place):
    """(line, text) of every comparison with a kind's name, `isinstance` of a kind's class, and `hasattr` on a model."""
    classes = kinds_classes()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            others = " ".join(ast.unparse(side) for side in sides if not constants(side))
            for home, names in NAMES.items():
                for name in {n for side in sides for n in constants(side)} & names:
                    if not place.startswith(home) and re.search(ORDINARY.get(name, ""), others):
                        yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and not place.startswith(("models/", "engine/")):
            name, text = ast.unparse(node.func), [ast.unparse(a) for a in node.args]
            if (
                name in ("isinstance", "issubclass")
                and {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)} & classes
            ):
                yield node.lineno, ast.unparse(node)
            if name == "hasattr" and re.search("model|module|codec|objective|strategy", text[0]):
                yield node.lineno, ast.unparse(node)


def test_no_branch_on_a_name_or_a_class_in_shared_code():
    found = []
    for path in FILES:
        place = path.relative_to(ROOT / "cl_toolkit").as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{place}:{line}: {text}" for line, text in branches(tree, place)]
    assert found == []


def test_the_search_finds_what_it_looks_for():
    source = """
if config.stream.view == "joint": pass
if engine_name in ("torch", "deepspeed"): pass
if name == "ewc": pass
if isinstance(model, Encoder): pass
if hasattr(model, "classes"): pass
if moment.kind == "start": pass
if section.head == "none": pass
"""
    assert [line for line, _ in sorted(branches(ast.parse(source), "runs/run.py"))] == [2, 3, 3, 4, 5, 6, 8]
    assert list(branches(ast.parse("x.view == 'joint'"), "data/regimes.py")) == []
