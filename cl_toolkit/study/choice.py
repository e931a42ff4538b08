"""Which trial of a search is chosen, and what has to be said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cl_toolkit.measure.metrics import HEADLINE
from cl_toolkit.report.costs import SECONDS, compute_unit
from cl_toolkit.report.reading import lower_is_better
from cl_toolkit.study.search import METRIC, WORDS, Criterion, Search, Trial

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (*HEADLINE, METRIC["average"])
"""Metrics of a trial that its table has."""
SAME = 12
"""Significant digits of a score that are more than rounding: (0.2 + 0.4) / 2 and (0.3 + 0.3) / 2 are equally good."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to. metrics: means over its task orders, None where one is undefined; empty where a run failed or is
    missing. lower: of its scores less is better. seconds: of computing, in `unit`."""

    trial: Trial
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    lower: bool = False
    seconds: float = 0.0
    unit: str = SECONDS

    @property
    def learned(self) -> float | None:
        """How well it learned."""
        return self.metrics.get(METRIC["learning"])

    @property
    def failed(self) -> bool:
        """Whether it has not finished in every order."""
        return not self.metrics

    def value(self, criterion: Criterion) -> float | None:
        """What the criterion looks at; None where it is undefined, as an average over time is of joint training."""
        return self.metrics.get(METRIC[criterion])

    def score(self, criterion: Criterion) -> float:
        """The same, turned so that more is better; where it is undefined the final score."""
        found = self.value(criterion)
        found = self.metrics["acc"] if found is None else found
        assert found is not None  # of a trial that finished
        return float(f"{-found if self.lower else found:.{SAME}g}")


def outcomes(found: Sequence[Trial], records: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Every trial's outcome. A trial has a run per task order; the orders are those of all records."""
    orders = {str(r.get("order")) for r in records}
    lower = lower_is_better(records)
    made = []
    for trial in found:
        runs = [r for r in records if r["method"] == trial.name and r["status"] == "finished"]
        metrics = {key: mean_metric(runs, key) for key in SHOWN}
        if metrics["acc"] is None or not orders <= {str(r.get("order")) for r in runs}:
            metrics = {}
        seconds = sum(sum(r.get("cost", {}).get("compute_seconds", {}).values()) for r in runs)
        made.append(Outcome(trial, metrics, lower, seconds, compute_unit(runs)))
    return made


def mean_metric(runs: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Mean over runs; None where it is undefined, or without runs."""
    values = [run["metrics"].get(metric) for run in runs]
    return None if None in values or not values else fmean(values)


def best(made: Sequence[Outcome], search: Search, criterion: Criterion | None = None) -> dict[str, Outcome]:
    """Method -> the trial that the search chooses, or would by another criterion; of equals the first. A method whose trials
    all failed is absent."""
    by = criterion or search.criterion
    chosen = {}
    for method in dict.fromkeys(o.trial.method for o in made):
        own = eligible([o for o in made if o.trial.method == method and not o.failed], search.margin)
        if own:
            chosen[method] = max(own, key=lambda o: o.score(by))
    return chosen


def ties(made: Sequence[Outcome], chosen: Mapping[str, Outcome], search: Search) -> list[str]:
    """The methods of which other trials are as good as the chosen one, in sentences: these values were not told apart."""
    found = []
    for method, outcome in chosen.items():
        own = eligible([o for o in made if o.trial.method == method and not o.failed], search.margin)
        alike = [o for o in own if o.score(search.criterion) == outcome.score(search.criterion)]
        if len(alike) > 1:
            found.append(f"{method}: {len(alike)} of {len(own)} trials are equally good; the first of them was taken")
    return found


def eligible(own: Sequence[Outcome], margin: float) -> list[Outcome]:
    """Of a method's trials those that learn within the margin of the best learner; all where learning is undefined."""
    learned = [o.learned for o in own if o.learned is not None]
    if not learned:
        return list(own)
    if own[0].lower:
        return [o for o in own if o.learned is not None and o.learned <= min(learned) * (1 + margin) + 1e-9]
    return [o for o in own if o.learned is not None and o.learned >= max(learned) - margin - 1e-9]


def merits(own: Sequence[Outcome], search: Search) -> list[float | None]:
    """How good each of a method's trials is, for a sampler: the criterion's score, and below all of these for a trial that
    learns too little, the less the lower. None for one that failed."""
    done = [o for o in own if not o.failed]
    good = done if search.criterion == "learning" else eligible(done, search.margin)
    least = min((o.score(search.criterion) for o in good), default=0.0)
    shortfall = max((o.score("learning") for o in good), default=0.0)
    return [
        None if o.failed else o.score(search.criterion) if o in good else least - (shortfall - o.score("learning"))
        for o in own
    ]


def table(made: Sequence[Outcome], chosen: Mapping[str, Outcome]) -> pd.DataFrame:
    """A row per trial: method, status (`finished` or `failed`), the metrics that a trial has, whether it was chosen, values."""
    import pandas as pd

    known = [key for key in SHOWN if any(o.metrics.get(key) is not None for o in made)]
    names = {outcome.trial.name for outcome in chosen.values()}
    rows = [
        {
            "trial": o.trial.name,
            "method": o.trial.method,
            "status": "failed" if o.failed else "finished",
            **{key: o.metrics.get(key) for key in known},
            "chosen": o.trial.name in names,
            **o.trial.values,
        }
        for o in made
    ]
    return pd.DataFrame(rows)


def ranked(made: Sequence[Outcome], search: Search, criterion: Criterion) -> list[tuple[str, Outcome]]:
    """Methods with the trials that a criterion chooses, the best first; without those where it is undefined."""
    chosen = [(m, o) for m, o in best(made, search, criterion).items() if o.value(criterion) is not None]
    return sorted(chosen, key=lambda pair: -pair[1].score(criterion))


def rankings(made: Sequence[Outcome], search: Search) -> pd.DataFrame:
    """A row per method: the value of the criterion and of the second one, each of the trial that it chooses, and the places
    that these have; equals share one."""
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for criterion in (search.criterion, search.second):
        order = ranked(made, search, criterion)
        for method, outcome in order:
            place = 1 + sum(other.score(criterion) > outcome.score(criterion) for _, other in order)
            row = rows.setdefault(method, {"method": method})
            row |= {WORDS[criterion]: outcome.value(criterion), f"place by {criterion}": place}
            row[f"trial by {criterion}"] = outcome.trial.name
    frame = pd.DataFrame(list(rows.values()))
    places = [column for column in frame.columns if column.startswith("place")]
    return frame.astype(dict.fromkeys(places, "Int64"))


def flips(made: Sequence[Outcome], search: Search) -> str:
    """Whether the second criterion would choose or rank otherwise, in a sentence; "" where nothing can be ranked by both."""
    first, second = (dict(ranked(made, search, criterion)) for criterion in (search.criterion, search.second))
    by_second = [m for m in second if m in first]
    if not by_second:
        return ""
    others = [m for m in first if m in second and first[m].trial.name != second[m].trial.name]
    # methods that one of them finds equal are in the other's order
    both = sorted(by_second, key=lambda m: -first[m].score(search.criterion))
    order = sorted(both, key=lambda m: -second[m].score(search.second))
    told = []
    if others:
        told.append(f"another trial would be chosen for {', '.join(others)}")
    if order != both:
        told.append(f"the order of methods would be {', '.join(order)}, and not {', '.join(both)}")
    by = f"By {WORDS[search.second]}"
    return (
        f"{by} {', and '.join(told)}."
        if told
        else f"{by} the same trials would be chosen, in the same order of methods."
    )
