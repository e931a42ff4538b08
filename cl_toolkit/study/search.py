"""The `search` section of a config: which settings are tried for each method, and what makes one of them the choice."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from cl_toolkit.config.layers import merge
from cl_toolkit.config.typed import typed
from cl_toolkit.errors import UserError, quoted, refuse_doubles
from cl_toolkit.ranges import SEED, at_least, refuse_idle

DIGITS = 6
"""Significant digits of a value that a search makes up."""
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
class Span:
    """A range that a sampler draws a setting from; log: evenly over its ratios. Whole numbers where both ends are."""

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low: expected less than high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: expected a number above 0 where log is true, got {self.low:g}")

    @property
    def whole(self) -> bool:
        """Whether whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> float:
        """How many values it has."""
        return self.high - self.low + 1 if self.whole else math.inf


Axes = Mapping[str, Span | Sequence[Any]]
"""Dotted key -> the values that are tried, or the range that they are drawn from."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The `search` section of a config.

    seed: of all trials; one that the comparison does not use. orders: of tasks, written as those of the comparison, and none of
    them one of its; null: the comparison's own. methods: name -> dotted key -> values.

    sampler: `grid`, where every combination is a trial, or `tpe` (Optuna, the extra `tune`), which draws as many `trials` for
    each method out of lists of values and ranges such as {low: 1.0e-5, high: 1.0e-2, log: true}, the later ones where the
    earlier ones were good.

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
    sampler: Literal["grid", "tpe"] = "grid"
    trials: Annotated[int, at_least(1)] | None = None
    methods: dict[str, Any]

    def __post_init__(self) -> None:
        if self.sampler == "tpe" and self.trials is None:
            raise ValueError("trials: missing; expected how many each method gets where sampler is tpe")
        if self.sampler == "grid" and self.trials is not None:
            raise ValueError("trials: is for sampler: tpe; a grid has a trial for every combination")
        grows, spared = self.sampler == "tpe" and self.widen > 0, self.criterion == "learning" and self.margin > 0
        refuse_idle(self, grows, "with sampler tpe: no grid grows", "widen")  # 0 says so itself
        refuse_idle(self, spared, "with criterion learning: the best learner is chosen", "margin")

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


def combinations(axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values of several keys, a list for each; the last key moves fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def rounded(value: float) -> float:
    """A value with as few digits as a reader needs."""
    return float(f"{value:.{DIGITS}g}")


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
    return search


def read_axes(search: Search, label: str, where: str) -> Axes:
    """What is tried for a method. Raises UserError for what is neither a list of values nor, where a sampler draws, a range."""
    given, place = search.methods[label], f"search.methods.{label}"
    wanted = "key: [values]" if search.sampler == "grid" else "key: [values] or key: {low, high, log}"
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{where}: {place}: expected {wanted}, got {quoted(given)}")
    axes: dict[str, Span | Sequence[Any]] = {}
    for key, axis in given.items():
        if isinstance(axis, Mapping) and search.sampler == "tpe":
            axes[key] = typed(Span, axis, f"{place}.{key}", where)
        elif isinstance(axis, Mapping):
            raise UserError(f"{where}: {place}.{key}: a range is for search.sampler: tpe; a grid has {wanted}")
        elif isinstance(axis, list) and axis:
            refuse_doubles([str(axis[axis.index(v)]) for v in axis], f"{where}: {place}.{key}")
            axes[key] = axis
        else:
            raise UserError(f"{where}: {place}: expected {wanted}, got {quoted(given)}")
    return axes


def size(axes: Axes) -> float:
    """How many combinations there are."""
    return math.prod(len(axis) if not isinstance(axis, Span) else axis.size for axis in axes.values())
