"""Which trial of a search is chosen, and what has to be said about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cl_toolkit.measure.metrics import HEADLINE
from cl_toolkit.report.reading import lower_is_better

if TYPE_CHECKING:
    import pandas as pd

    from cl_toolkit.study.tune import Trial

LEARNING_MARGIN = 0.05
"""Learning accuracy by which a trial may fall short of its method's best one and still be chosen (ours); of a perplexity
the share by which it may lie above. A rate at which nothing is learned forgets nothing either, so final accuracy alone
would prefer it."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to, means over its task orders; -inf (score) where a run failed or is missing, None where a metric
    is undefined. score: the final score, turned so that more is better. metrics: the headline ones."""

    trial: Trial
    score: float
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def learned(self) -> float | None:
        """How well it learned."""
        return self.metrics.get("learning_accuracy")

    @property
    def failed(self) -> bool:
        """Whether it has not finished in every order."""
        return self.score == -math.inf


def outcomes(found: Sequence[Trial], records: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Every trial's outcome. A trial has a run per task order; the orders are those of all records."""
    orders = {str(r.get("order")) for r in records}
    sign = -1 if lower_is_better(records) else 1
    made = []
    for trial in found:
        runs = [r for r in records if r["method"] == trial.name and r["status"] == "finished"]
        acc = mean_metric(runs, "acc")
        if acc is None or not orders <= {str(r.get("order")) for r in runs}:
            made.append(Outcome(trial, -math.inf))
        else:
            made.append(Outcome(trial, sign * acc, {key: mean_metric(runs, key) for key in HEADLINE}))
    return made


def mean_metric(runs: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Mean over runs; None where it is undefined, or without runs."""
    values = [run["metrics"].get(metric) for run in runs]
    return None if None in values or not values else fmean(values)


def best(found: Sequence[Trial], records: Sequence[Mapping[str, Any]]) -> dict[str, Outcome]:
    """Method -> the trial with the best final score among those that learn within LEARNING_MARGIN of its best learner; of
    equals the first. A method whose trials all failed is absent."""
    lower, made = lower_is_better(records), outcomes(found, records)
    chosen = {}
    for method in dict.fromkeys(t.method for t in found):
        own = [o for o in made if o.trial.method == method and not o.failed]
        learned = [o.learned for o in own if o.learned is not None]
        if learned and lower:
            own = [o for o in own if (o.learned or math.inf) <= min(learned) * (1 + LEARNING_MARGIN)]
        elif learned:
            own = [o for o in own if (o.learned or 0.0) >= max(learned) - LEARNING_MARGIN - 1e-9]
        if own:
            chosen[method] = max(own, key=lambda o: o.score)
    return chosen


def table(found: Sequence[Trial], records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per trial: method, status (`finished` or `failed`), the headline metrics that a trial has, whether it was chosen,
    values."""
    import pandas as pd

    made = outcomes(found, records)
    known = [key for key in HEADLINE if any(o.metrics.get(key) is not None for o in made)]
    chosen = {outcome.trial.name for outcome in best(found, records).values()}
    rows = [
        {
            "trial": o.trial.name,
            "method": o.trial.method,
            "status": "failed" if o.failed else "finished",
            **{key: o.metrics.get(key) for key in known},
            "chosen": o.trial.name in chosen,
            **o.trial.values,
        }
        for o in made
    ]
    return pd.DataFrame(rows)


def remarks(found: Sequence[Trial], chosen: Mapping[str, Outcome], methods: Sequence[str]) -> list[str]:
    """What must be known of a choice: the rule, values at the edge of what was tried, methods without a search or without
    a trial that finished. methods: of the whole comparison."""
    lines = [
        f"chosen on validation data: the best final score among the trials whose learning accuracy is within "
        f"{LEARNING_MARGIN} of the method's best; a trial that failed in any order is never chosen"
    ]
    for method, outcome in chosen.items():
        for key, value in outcome.trial.values.items():
            tried = sorted({t.values[key] for t in found if t.method == method and number(t.values.get(key))})
            if number(value) and len(tried) > 1 and value in (tried[0], tried[-1]):
                side = "smallest" if value == tried[0] else "largest"
                lines.append(f"{method}: {key}={value} is the {side} value tried; a better one may lie beyond")
    searched = dict.fromkeys(t.method for t in found)
    if failed := [m for m in searched if m not in chosen]:
        lines.append(f"every trial failed, settings as in the config: {', '.join(failed)}")
    if unsearched := [m for m in methods if m not in searched]:
        lines.append(f"not searched, settings as in the config: {', '.join(unsearched)}")
    return lines


def number(value: Any) -> bool:
    """Whether a setting has neighbours."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
