"""docs/choosing.md and REPRODUCIBILITY.md say what the tags and the measured studies say."""

import importlib.util
import math
from pathlib import Path

import pandas as pd
import pytest
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.report.comparison import BWT, Comparison

DOCS = Path(__file__).resolve().parents[2] / "docs"
spec = importlib.util.spec_from_file_location("choosing", DOCS / "choosing.py")
choosing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(choosing)


@pytest.mark.parametrize("path", choosing.PAGES, ids=lambda path: path.name)
def test_the_pages_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert choosing.page(text) == text, "run: python docs/choosing.py"


def test_every_method_is_on_the_pages():
    costs, methods = (choosing.PAGES[i].read_text(encoding="utf-8") for i in (0, 2))
    for registry in (STRATEGIES, OBJECTIVES):
        for name in choosing.built_in(registry):
            assert f"| `{name}` |" in methods
            assert registry is OBJECTIVES or f"| `{name}` |" in costs


def test_numbers_come_from_the_records(tmp_path):
    methods = {"sequential": {}, "replay": {"strategies": ["replay"]}}
    study = cl.compare(tiny_config(methods=methods, seeds=[0, 1]), out=tmp_path)
    frame = choosing.measure(tmp_path).set_index("method")
    bwt = {(r["method"], r["seed"]): r["metrics"]["bwt"] for r in study.records}
    differences = [bwt["replay", s] - bwt["sequential", s] for s in (0, 1)]
    assert frame.difference["replay"] == pytest.approx(sum(differences) / 2, abs=1e-4)
    assert frame.control["replay"] == "sequential"
    assert pd.isna(frame.difference["sequential"])


def test_a_difference_is_clear_where_the_report_claims_it(tmp_path):
    methods = {"sequential": {}, "replay": {"strategies": ["replay"]}}
    study = cl.compare(tiny_config(methods=methods, seeds=[0, 1, 2]), out=tmp_path)
    frame = choosing.measure(tmp_path).set_index("method")
    claim = Comparison.of(study.records).against_control("replay", BWT)
    assert 0 <= frame.p["replay"] == pytest.approx(claim.corrected, abs=1e-4)
    assert pd.isna(frame.p["sequential"])


@pytest.mark.parametrize(
    ("mean", "p", "words"),
    [
        (0.11, 0.012, "less (+0.11: +0.01 to +0.21, n=3; p 0.012)"),
        (-0.11, 0.05, "more (-0.11: -0.21 to -0.01, n=3; p 0.05)"),
        (0.11, 0.051, "no clear difference (+0.11: +0.01 to +0.21, n=3; p 0.051)"),
        (0.11, math.nan, "no clear difference (+0.11: +0.01 to +0.21, n=3)"),
        (math.nan, math.nan, "–"),
    ],
)
def test_how_a_difference_is_said(mean, p, words):
    row = pd.Series({"difference": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 3, "p": p})
    assert choosing.verdict(row) == words
