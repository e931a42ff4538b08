"""What the README shows works."""

import re
from pathlib import Path

import pytest
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
            assert len(load_study(config).runs) == 5 * 3


@pytest.mark.parametrize("name", ["learn.py", "strategy.py", "runs/run.py"])
def test_the_files_of_the_tree_exist(name):
    assert (ROOT / "cl_toolkit" / name).is_file()


def test_every_registered_method_is_in_the_table():
    from cl_toolkit.registry import OBJECTIVES, STRATEGIES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in (*STRATEGIES, *OBJECTIVES):
        assert f"| `{name}` |" in text
