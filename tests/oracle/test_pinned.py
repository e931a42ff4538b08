"""What the code gave before it was redrawn, as numbers: one small run for each family of methods.

No formula stands behind them, only that a change of the code which is not meant to change results must leave them. They are
losses in fp32, the last of each task, since an accuracy may change by an example from one processor to the next; and costs,
which are counted. Text learns at a rate of 0.02 from random weights, or nearly so, since a long warm-up makes more of the last
bits; arrays by SGD, since Adam makes a step of a gradient that is 0 up to rounding.
`python tests/oracle/test_pinned.py > tests/oracle/pinned.json` takes today's numbers in their place.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cl_toolkit import run

PINNED = json.loads(Path(__file__).with_name("pinned.json").read_text(encoding="utf-8"))
COUNTED = ("steps", "examples", "tokens", "forwards", "backwards", "rollouts", "stored_examples", "extra_parameters")
TOLERANCE = 1e-3
"""Of a loss. Between processors with and without vector instructions they differ by up to 1e-4."""


def pinned(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The last losses of each task, and the costs, of one case."""
    record = run(config, out=folder)
    last = {row["task"]: {key: float(f"{x:.7g}") for key, x in row["terms"].items()} for row in record["losses"]}
    return {"losses": list(last.values()), "cost": {key: record["cost"][key] for key in COUNTED}}


@pytest.mark.parametrize("name", PINNED)
def test_it_gives_what_it_gave(name, tmp_path):
    wanted = PINNED[name]
    found = pinned(wanted["config"], tmp_path)
    assert found["cost"] == wanted["cost"]
    for terms, losses in zip(found["losses"], wanted["losses"], strict=True):
        assert terms == pytest.approx(losses, rel=TOLERANCE, abs=2e-6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = {
            name: {"config": case["config"], **pinned(case["config"], Path(place, name))}
            for name, case in PINNED.items()
        }
    print("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in found.items()) + "\n}")
