"""Whoever writes a strategy, an objective or a stream reads the types of what they get and give off the built-in ones."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = [
    *sorted((ROOT / "strategies").rglob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *(ROOT / "cl_toolkit" / f"{name}.py" for name in ("strategy", "objective", "task_view", "types", "learn")),
]


def bare(path):
    """Functions of a file that leave a type out; what a constructor returns is known."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if untyped or (node.returns is None and node.name != "__init__"):
                yield node.name


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_function_is_annotated(path):
    assert list(bare(path)) == []
