"""The notebooks run from top to bottom, offline, and are kept without output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from longer import long_but

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LEFT_BEHIND = {"first_curve": "first-curve", "own_strategy": "own-strategy", "reading_results": "reading-results"}
"""Notebook -> the study that it makes."""


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_each_notebook_has_its_study():
    assert [path.stem for path in NOTEBOOKS] == sorted(LEFT_BEHIND)


@pytest.mark.parametrize("name", long_but({"reading_results"}, LEFT_BEHIND))
def test_a_notebook_runs(name, tmp_path):
    """Its code cells one after the other as a program, in which `__main__` is what it is in a kernel."""
    script, cells = tmp_path / "cells.py", code_cells(ROOT / "examples" / f"{name}.ipynb")
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
    env = os.environ | {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / LEFT_BEHIND[name] / "report.html").stat().st_size > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_output(path):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(path))
