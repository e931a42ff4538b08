"""What the README shows works."""

import re
from pathlib import Path

import yaml
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit.study.cells import load_study

ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_strategy_of_the_readme_trains_and_pulls(tmp_path):
    path = tmp_path / "my_first.py"
    path.write_text(next(b for b in blocks("python") if "class MyFirst" in b), encoding="utf-8")
    methods = {"sequential": {}, "mine": {"strategies": {f"{path}:MyFirst": {"weight": 0.5}}}}
    study = cl.compare(tiny_config(methods=methods), out=tmp_path / "out")
    by_method = {r["method"]: r for r in study.records}
    terms = [row["terms"] for row in by_method["mine"]["losses"]]
    assert "my_first" not in terms[0]  # no past task yet
    assert terms[4]["my_first"] == 0.0  # right at the boundary
    assert terms[-1]["my_first"] > 0.0
    assert by_method["mine"]["matrix"][1] == by_method["sequential"]["matrix"][1]


def test_the_configs_of_the_readme_resolve():
    for block in blocks("yaml"):
        config = yaml.safe_load(block)
        if config["stream"]["name"] == "skills":
            assert len(load_study(config).runs) == 5 * 4 * 3  # methods, orders, seeds


def test_the_tree_is_the_tree():
    """Each line of the README's tree begins with what it is of, and the lines below `cl_toolkit/` name every room and file."""
    tree = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("## The tree")[1]
        .split("```")[1]
        .strip("\n")
        .splitlines()
    )
    words = [re.match(r"\s*((?:[\w/.]+(?: {1,2}|$))+)", line) for line in tree]
    inner, outer = set(), set()
    for line, found in zip(tree, words, strict=True):
        names = [w for w in (found[1] if found else "").split() if w.endswith((".py", "/"))]
        names += re.findall(r";  (\w+\.py)", line)
        (inner if line.startswith("  ") else outer).update(name.rstrip("/") for name in names)
    own = {p.name for p in (ROOT / "cl_toolkit").iterdir() if p.is_dir() or p.suffix == ".py"}
    assert inner == own - {"__init__.py", "__pycache__"}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    assert outer <= folders
    assert {"strategies", "benchmarks", "configs", "docs", "examples", "tests", "cl_toolkit"} <= outer
    listed = next(line for line in tree if line.startswith("tests/")).split()[1:]
    assert {name.rstrip("/") for name in listed} == {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} - {
        "__pycache__"
    }
