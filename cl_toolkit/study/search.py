"""The `search` section of a config: which settings are tried for each method, and what makes one of them the choice."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from cl_toolkit.config.layers import merge
from cl_toolkit.config.typed import typed
from cl_toolkit.errors import UserError, quoted
from cl_toolkit.ranges import SEED, at_least

Criterion = Literal["final", "average", "learning"]
METRIC: dict[Criterion, str] = {
    "final": "acc",
    "average": "average_incremental_accuracy",
    "learning": "learning_accuracy",
}
"""What each criterion looks at: `cl_toolkit.measure.metrics`."""
WORDS: dict[Criterion, str] = {
    "final": "final score",
    "average": "score averaged over time",
    "learning": "learning accuracy",
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """The `search` section of a config.

    seed: of all trials; one that the comparison does not use. orders: of tasks, written as those of the comparison, and none of
    them one of its; null: the comparison's own. methods: name -> dotted key -> values; every combination is a trial.

    criterion: what a trial is chosen by, among those that learn within `margin` of the method's best learner: `final` score,
    the `average` over time (average incremental accuracy), or the best `learning` accuracy alone. margin: learning accuracy by
    which a trial may fall short and still be chosen (ours); of a perplexity the share by which it may lie above. A rate at
    which nothing is learned forgets nothing either, so a final score alone would prefer it.

    widen: how often a grid may grow whose best value lies at its edge (`cl_toolkit.study.widen`), for all methods by equally
    many trials. 1, since at an edge the best value may not have been tried yet, and a step beyond mostly tells.
    """

    seed: Annotated[int, SEED]
    orders: Any = None  # read by `orders_of`
    criterion: Criterion = "final"
    margin: Annotated[float, at_least(0)] = 0.05
    widen: Annotated[int, at_least(0)] = 1
    methods: dict[str, Any]

    @property
    def second(self) -> Criterion:
        """The criterion that is looked at beside the one that chooses."""
        return "average" if self.criterion == "final" else "final"

    @property
    def rule(self) -> str:
        """How a trial is chosen, in words."""
        best = f"the best {WORDS[self.criterion]}"
        if self.criterion == "learning":
            return best
        return f"{best} among the trials whose learning accuracy is within {self.margin:g} of the method's best"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination: `values` is what it tries, `difference` the method with them. Its name is made of the values, so that a
    finished trial is known again whatever else is tried."""

    method: str
    values: dict[str, Any]
    difference: dict[str, Any]

    @property
    def name(self) -> str:
        """The method and 8 hex digits."""
        text = json.dumps(self.values, sort_keys=True, default=str)
        return f"{self.method}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def but(self, key: str, value: Any) -> Trial:
        """The same trial with another value."""
        return replace(
            self, values={**self.values, key: value}, difference=merge(self.difference, nested({key: value}))
        )


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        for key in reversed(path.split(".")):
            value = {key: value}
        found = merge(found, value)
    return found


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of several keys; the last key moves fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def number(value: Any) -> bool:
    """Whether a setting has neighbours."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_search(section: Any, where: str) -> Search:
    """The section, checked but for names of methods. Raises UserError."""
    if section is None:
        raise UserError(f"{where}: search: is empty; it says which settings are tried, see configs/strategies.yaml")
    search = typed(Search, section, "search", where)
    if not search.methods:
        raise UserError(f"{where}: search.methods: is empty; expected name: {{key: [values]}}")
    for label, axes in search.methods.items():
        if not isinstance(axes, Mapping) or not all(isinstance(v, list) and v for v in axes.values()):
            raise UserError(f"{where}: search.methods.{label}: expected key: [values], got {quoted(axes)}")
    return search
