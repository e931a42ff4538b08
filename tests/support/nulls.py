"""Simulated studies, as records: methods between which there is no difference, or one of a known size."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.findings import findings
from cl_toolkit.report.headline import headline
from cl_toolkit.runs.record import SCHEMA_VERSION
from cl_toolkit.types import SEQUENTIAL

TASKS = ("a", "b", "c")
SPREAD = 0.03
"""Standard deviation of a run's retention over seeds."""
CLAIM = re.compile(r"forgets (less|more) than|is (higher|lower) than|ends best|end best and (cannot|none)")


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is simulated. methods: beside the control. spread: of seeds. interaction: standard deviation of what a method
    does to an order, in spreads. effect: what every method really keeps more than the control, in spreads of a run's BWT.
    examples: per test set. answers: scores are drawn answer by answer instead of rounded to whole answers."""

    methods: int = 1
    orders: int = 1
    seeds: int = 3
    spread: float = SPREAD
    interaction: float = 0.0
    effect: float = 0.0
    examples: int = 1000
    answers: bool = False


def study(design: Design, rng: np.random.Generator) -> list[dict]:
    """The records of one simulated comparison: the control `sequential`, and methods that differ from it by `effect`."""
    return [
        run(design, rng, method, order, seed, shift)
        for method in range(design.methods + 1)
        for order in range(design.orders)
        for shift in [rng.normal(0, design.interaction * design.spread)]
        for seed in range(design.seeds)
    ]


def run(design: Design, rng: np.random.Generator, method: int, order: int, seed: int, shift: float) -> dict:
    """A run: every task is learned to about 0.9, is at about 0.5 once another was trained, and at 0.1 before."""
    kept = 0.5 + rng.normal(0, design.spread) + shift + (method > 0) * design.effect * design.spread
    matrix = [[0.1] * 3] + [[0.9 if i == t else kept if i < t else 0.1 for i in range(3)] for t in range(3)]
    share = np.clip(np.array(matrix), 0.01, 0.99)
    if design.answers:
        scored = rng.binomial(design.examples, share) / design.examples
    else:
        scored = np.round(share * design.examples) / design.examples
    name = f"m{method:02}" if method else "sequential"
    return {
        "schema_version": SCHEMA_VERSION, "status": "finished", "method": name, "order": f"order{order}", "seed": seed,
        "regime": SEQUENTIAL.plain(), "config": {"strategies": {name: {}} if method else {}, "objective": {"name": "sft"}},
        "baseline": True, "tasks": list(TASKS), "chance": [[0.1] * 3] * 4, "scorers": ["exact_match"] * 3,
        "units": ["accuracy"] * 3,
        "examples_scored": [design.examples] * 3, "matrix": scored.tolist(), "cost": {},
    }  # fmt: skip


def claims(records: list[dict]) -> list[str]:
    """The sentences of the report that claim a difference between methods."""
    comparison = Comparison.of(records)
    told = [f.text for f in findings(comparison) if not f.text.startswith("sequential, the control")]
    return [text for text in (headline(comparison), *told) if CLAIM.search(text)]


def share_with_a_claim(design: Design, times: int, seed: int) -> float:
    """Of so many simulated reports, the share that claims any difference."""
    rng = np.random.default_rng(seed)
    return sum(bool(claims(study(design, rng))) for _ in range(times)) / times


def power(design: Design, times: int, seed: int) -> float:
    """Of so many simulated reports, the share that says of m01 that it forgets less than its control."""
    rng = np.random.default_rng(seed)
    found = (claims(study(design, rng)) for _ in range(times))
    return sum(any(text.startswith("m01 forgets less than") for text in told) for told in found) / times
