"""docs/choosing.md and REPRODUCIBILITY.md say what the tags and the measured studies say."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit.registry import STRATEGIES

DOCS = Path(__file__).resolve().parents[2] / "docs"
spec = importlib.util.spec_from_file_location("choosing", DOCS / "choosing.py")
choosing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(choosing)


@pytest.mark.parametrize("path", choosing.PAGES, ids=lambda path: path.name)
def test_the_pages_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert choosing.page(text) == text, "run: python docs/choosing.py"


def test_every_strategy_is_on_the_page_and_was_measured():
    text = choosing.PAGES[0].read_text(encoding="utf-8")
    measured = {
        name for path in choosing.MEASURED.glob("*.csv") for name in pd.read_csv(path).strategies.dropna().unique()
    }
    for name in STRATEGIES:
        assert f"| `{name}` |" in text
        assert name in measured


def test_numbers_come_from_the_records(tmp_path):
    methods = {"sequential": {}, "replay": {"strategies": ["replay"]}}
    study = cl.compare(tiny_config(methods=methods, seeds=[0, 1]), out=tmp_path)
    frame = choosing.measure(tmp_path).set_index("method")
    bwt = {(r["method"], r["seed"]): r["metrics"]["bwt"] for r in study.records}
    differences = [bwt["replay", s] - bwt["sequential", s] for s in (0, 1)]
    assert frame.difference["replay"] == pytest.approx(sum(differences) / 2, abs=1e-4)
    assert frame.control["replay"] == "sequential"
    assert pd.isna(frame.difference["sequential"])


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 0.3, "less"), (-0.3, -0.1, "more"), (-0.1, 0.5, "no clear difference")]
)
def test_a_difference_is_clear_when_its_interval_leaves_out_0(low, high, word):
    row = pd.Series({"difference": (low + high) / 2, "low": low, "high": high, "n": 3})
    assert choosing.verdict(row).startswith(word)
