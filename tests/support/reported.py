"""Records of studies with known numbers, and the report's sentences about them."""

import copy

from cl_toolkit.data.regimes import REGIMES
from cl_toolkit.measure.metrics import NOT_EVALUATED, explain
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.findings import findings
from cl_toolkit.runs.checkpoint import write_checked
from cl_toolkit.runs.record import SCHEMA_VERSION, run_folder

TASKS = ("sort", "max", "shift")


def record(method="sequential", seed=0, kept=0.2, learned=0.9, tasks=TASKS, **changes):
    """A finished run: each task is learned to `learned` and is at `kept` once another was trained."""
    size = len(tasks)
    matrix = [[0.1] * size]
    matrix += [[learned if i == t else kept if i < t else 0.1 for i in range(size)] for t in range(size)]
    curves = [
        {"step": 10 * i + lag, "trained": tasks[k], "scored": name, "lag": lag, "examples_seen": lag, "n": 50,
         "value": learned - (learned - kept) * lag / 20}
        for i, name in enumerate(tasks)
        for k in range(i, size)
        for lag in ([0] if k == i else [10 * (k - i) - 9, 10 * (k - i)])
    ]  # fmt: skip
    config = {"strategies": {}, "objective": {"name": "sft"}, "train": {"learning_rate": 3e-4},
              "model": {"name": "tiny-lm", "adapter": None}, "seed": seed}  # fmt: skip
    whole = {
        "schema_version": SCHEMA_VERSION, "status": "finished", "error": None, "name": "study", "method": method,
        "order": "given", "seed": seed, "regime": regime("sequential"), "config": config, "baseline": True,
        "tasks": list(tasks),
        "chance": [[0.1] * size] * (size + 1),
        "provenance": {"commit": "abc", "versions": {"torch": "2"}, "hardware": {"cores": 2}, "data_hash": "d"},
        "scorers": ["exact_match"] * size, "units": ["accuracy"] * size, "higher_is_better": [True] * size,
        "examples_scored": [200] * size, "probes": {"curves": curves}, "losses": [],
        "matrix": matrix, "cost": cost(10.0, 100),
    }  # fmt: skip
    whole = copy.deepcopy(whole | changes)
    whole["metrics"], whole["undefined"] = explain(whole["matrix"], whole.get("higher_is_better", ()))
    return whole


def regime(name):
    """A regime as a record holds it."""
    return REGIMES[name].plain()


def cost(seconds, forwards):
    clock = {"train": seconds, "evaluate": 1.0, "curves": 0.0}
    return {"compute_seconds": clock, "compute_unit": "CPU s", "wall_seconds": clock, "steps": 30, "examples": 960,
            "tokens": 5000, "forwards": forwards, "stored_examples": 0}  # fmt: skip


def replay(seed=0, kept=0.6, learned=0.9, **changes):
    made = record("replay", seed, kept, learned, **changes)
    made["config"]["strategies"] = {"replay": {"replay_fraction": 0.5}}
    made["cost"] = cost(18.0, 200) | {"stored_examples": 512}
    return made


def joint(seed=0):
    empty = [NOT_EVALUATED] * 3
    return record("joint", seed, regime=regime("joint"), matrix=[[0.1] * 3, empty, empty, [0.8] * 3], curves=[])


def rft(seed=0, **changes):
    made = record("rft", seed, **changes)
    made["config"]["objective"] = {"name": "rft"}
    made["baseline"] = False
    return made


def failed(method="ewc", error="RuntimeError: out of memory"):
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "failed",
        "error": error,
        "method": method,
        "order": "given",
        "seed": 0,
    }


def sentence(records, method):
    return next(f for f in findings(Comparison.of(records)) if f.method == method)


def study():
    """Three seeds whose differences are not all the same: BWT differs by 0.4, 0.45 and 0.35."""
    return [
        run
        for seed, kept in enumerate((0.6, 0.65, 0.55))
        for run in (record(seed=seed), replay(seed, kept), rft(seed, kept=0.5, learned=0.6), joint(seed))
    ]


def write_study(folder, records):
    """The records as a comparison's folder holds them."""
    for made in records:
        place = folder / "runs" / made["method"] / run_folder(made)
        place.mkdir(parents=True, exist_ok=True)
        write_checked(place / "record.json", made)
