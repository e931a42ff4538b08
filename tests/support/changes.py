"""Small faults for `tests/mutants.py`: one place of a module changed, as a syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass
class Change:
    """One possible fault: its line, the first line of its function (0: none), what it says, and how it is made.

    idle: nothing is done wrong by it: the default of a setting (a choice, which a test could only repeat), an argument of
    `dataclass`, `strict` of a `zip` of equal lengths.
    """

    line: int
    function: int
    node: ast.AST
    make: Callable[[], object]
    idle: bool = False


def changes(tree: ast.AST, function: int = 0, idle: bool = False, within: str = "") -> Iterator[Change]:
    """Every place of a module that can be changed. Messages, annotations and what only a type checker reads are left out."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns") or (name == "names" and isinstance(tree, (ast.Import, ast.ImportFrom))):
            continue
        for place, node in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr):
                continue
            here = function
            default = within == "Config" and isinstance(tree, ast.AnnAssign)
            vain = idle or default or (isinstance(tree, ast.ClassDef) and name == "decorator_list")
            vain = vain or (isinstance(node, ast.keyword) and node.arg == "strict")
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                here = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            for make in makers(tree, name, place, node):
                yield Change(node.lineno, here, node, make, vain)
            if not isinstance(node, ast.Raise):
                yield from changes(node, here, vain, node.name if isinstance(node, ast.ClassDef) else within)


def makers(parent: ast.AST, name: str, place: int | None, node: ast.AST) -> Iterator[Callable[[], object]]:
    """The ways in which one node can be changed."""

    def put(new: ast.AST) -> Callable[[], object]:
        new = ast.copy_location(new, node)
        return lambda: (
            getattr(parent, name).__setitem__(place, new) if place is not None else setattr(parent, name, new)
        )

    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield lambda: node.ops.__setitem__(0, SWAPS[type(node.ops[0])]())
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        yield lambda: setattr(node, "op", SWAPS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield put(node.operand)
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
        yield lambda: setattr(node, "test", ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test))
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        old = node.value
        new = not old if isinstance(old, bool) else old + 1 if isinstance(old, int) or not old else 2 * old
        yield put(ast.Constant(new))
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield lambda: setattr(node, "value", None)
    elif isinstance(node, ast.AugAssign):
        yield put(ast.Assign([node.target], node.value))
    removable = isinstance(node, (ast.Raise, ast.Delete, ast.Continue, ast.Break)) or (
        isinstance(node, ast.Expr)
        and isinstance(node.value, (ast.Call, ast.Yield))
        and name in ("body", "orelse", "finalbody")
    )
    if removable or (isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name)):
        yield put(ast.Pass())


def changed(source: str, index: int) -> tuple[ast.Module, int, int, str]:
    """(the module with its index-th change, line, first line of the function, what was changed)."""
    tree = ast.parse(source)
    change = list(changes(tree))[index]
    before = ast.unparse(tree).splitlines()
    change.make()
    after = ast.unparse(ast.fix_missing_locations(tree)).splitlines()
    first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    return tree, change.line, change.function, told(before[first].strip(), after[first].strip())


def told(before: str, after: str) -> str:
    """What differs between two lines, with what stands around it."""
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    start = max(0, at - 30)
    return f"{before[start : at + 30]} -> {after[start : at + 30]}"
