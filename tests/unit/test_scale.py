"""docs/scale.md says what the arithmetic says."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
spec = importlib.util.spec_from_file_location("scale", DOCS / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)


def test_the_page_is_up_to_date():
    text = scale.PAGE.read_text(encoding="utf-8")
    assert scale.page(text) == text, "run: python docs/scale.py"
    assert text.count("<!-- end -->") == len(scale.TABLES)


def test_the_shapes_are_those_of_llama_2():
    assert scale.shape("7 B", False).total == 6_738_415_616  # as its card says
    assert scale.shape("70 B", True).total - scale.shape("70 B", True).trained == 68_976_648_192
    assert scale.shape("7 B", True).trained == 4 * 32 * 2 * 16 * 4096


def test_by_hand():
    found = scale.cases()["7 B full, one GPU"].device
    assert found["weights"] == found["gradients"] == 4 * 6_738_415_616
    assert found["optimizer"] == 8 * 6_738_415_616
    lora = scale.cases()["7 B LoRA, one GPU"].device
    frozen = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # linear layers in bf16
    assert lora["weights"] == pytest.approx(frozen + 4 * 2 * 32_000 * 4096, rel=0.01)
