"""What the code gave before it was redrawn, as numbers: one small run for each family of methods.

No formula stands behind them, only that a change of the code which is not meant to change results must leave them. They are
losses in fp32, the last of each task, since an accuracy may change by an example from one processor to the next; and costs,
which are counted. `python tests/oracle/test_pinned.py > tests/oracle/pinned.json` takes today's numbers in their place;
`tests/pin.py` compares bit for bit, on one machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from pin_cases import all_cases

from cl_toolkit import run

PINNED = json.loads(Path(__file__).with_name("pinned.json").read_text(encoding="utf-8"))
COUNTED = ("steps", "examples", "tokens", "forwards", "backwards", "rollouts", "stored_examples", "extra_parameters")
TEXT, ARRAYS = {"learning_rate": 0.02}, {"optim": "sgd", "learning_rate": 0.03}
"""Rates at which losses move. SGD where a loss may be contrastive: Adam makes a step of a gradient that is 0 up to rounding."""
TOLERANCE = 1e-3
"""Of a loss. Between processors with and without vector instructions they differ by up to 1e-4."""


def pinned(name: str, folder: Path) -> dict[str, Any]:
    """The last losses of each task, and the costs, of one case; from random weights or nearly so, since a long warm-up makes
    more of the last bits."""
    config = all_cases()[name]
    text = config["model"]["name"] == "tiny-lm"
    config["train"] = {**config["train"], **(TEXT if text else ARRAYS)}
    if text:
        short = {**config["model"]["warmup"], "steps": 20}
        is_rft = config.get("objective", {}).get("name") == "rft"  # whose answers must earn something
        config["model"] = {**config["model"], "warmup": short if is_rft else None}
    record = run(config, out=folder)
    last = {row["task"]: {key: float(f"{x:.7g}") for key, x in row["terms"].items()} for row in record["losses"]}
    return {"losses": list(last.values()), "cost": {key: record["cost"][key] for key in COUNTED}}


@pytest.mark.parametrize("name", PINNED)
def test_it_gives_what_it_gave(name, tmp_path):
    found = pinned(name, tmp_path)
    assert found["cost"] == PINNED[name]["cost"]
    for terms, wanted in zip(found["losses"], PINNED[name]["losses"], strict=True):
        assert terms == pytest.approx(wanted, rel=TOLERANCE, abs=2e-6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        lines = [f"{json.dumps(case)}: {json.dumps(pinned(case, Path(place, case)))}" for case in PINNED]
    print("{\n" + ",\n".join(lines) + "\n}")
