"""The scripts for a GPU, with a tiny model on whatever is here: they run to their end and measure what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launched import environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PLACES = ":".join(str(ROOT / "tests" / place) for place in ("support", "speed"))
SAID = {
    "steps": "SFT, eager",
    "text": "text of mixed lengths, packed",
    "rollouts": "rft, 16 prompts x 2 x 4",
    "answers": "8 answers of 4",
    "choices": "8 x 4 choices",
    "strategies": "step with replay",
    "zero": "ZeRO-3",
    "little": "small model, SFT",
}


def ended(script, *arguments):
    env = environment(PYTHONPATH=PLACES, PYTHONWARNINGS="ignore")
    done = subprocess.run([sys.executable, HERE / script, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("part", SAID)
def test_each_part_of_the_bench(part, tmp_path):
    ended("bench.py", "--small", "--only", part, "--out", str(tmp_path / "found.json"))
    figures = json.loads((tmp_path / "found.json").read_text())["figures"]
    assert any(figure["what"].startswith(SAID[part]) and figure["value"] > 0 for figure in figures)


@pytest.mark.long
@pytest.mark.processes
def test_the_whole_way_of_a_model(tmp_path):
    ended("whole.py", "--small", "--only", "LoRA, replay", "--out", str(tmp_path / "found.json"))
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["train"] > 0
    assert found["export"] > 0
