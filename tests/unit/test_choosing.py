"""docs/choosing.md and REPRODUCIBILITY.md say what the tags and the measured studies say."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit.registry import OBJECTIVES, STRATEGIES

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


@pytest.mark.parametrize(
    ("low", "high", "n", "word"),
    [
        (0.1, 0.12, 3, "less (+0.11: +0.10 to +0.12, n=3; p"),
        (-0.12, -0.1, 3, "more"),
        (-0.1, 0.5, 3, "no clear difference"),
        (0.01, 0.5, 3, "no clear difference"),  # alone it would be clear, of two it is not
        (0.1, 0.12, 2, "no clear difference (+0.11: +0.10 to +0.12, n=2)"),
    ],
)
def test_a_difference_is_clear_when_it_survives_the_correction_for_its_table(low, high, n, word):
    other = {"difference": 0.0, "low": -0.1, "high": 0.1, "n": 3}
    frame = pd.DataFrame([{"difference": (low + high) / 2, "low": low, "high": high, "n": n}, other])
    p = choosing.corrected(frame)
    assert choosing.verdict(frame.iloc[0], p.get(0, float("nan"))).startswith(word)


def test_a_p_comes_back_from_its_interval():
    values = [0.3, 0.4, 0.45]
    expected = stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval(0.95)
    frame = pd.DataFrame([{"difference": sum(values) / 3, "low": low, "high": high, "n": 3}])
    assert choosing.corrected(frame)[0] == pytest.approx(expected.pvalue)
