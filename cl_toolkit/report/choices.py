"""How the settings of a comparison were chosen: what a search tried, by which rule it chose, what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cl_toolkit.measure.metrics import METRICS
from cl_toolkit.report.columns import amount
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.estimate import decimals
from cl_toolkit.report.latex import Say
from cl_toolkit.report.reading import lookup


@dataclass(frozen=True)
class Choice:
    """A search, with the methods of a comparison whose settings it chose. common: what holds for all of them (`chosen` of their
    records). own: method -> its part, `values` and `trials`."""

    common: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]

    @property
    def trials(self) -> list[int]:
        """How many each method had, without doubles, the fewest first."""
        return sorted({len(part["trials"]) for part in self.own.values()})

    @property
    def cost(self) -> str:
        """What all of them cost."""
        return f"{amount(sum(spent(part) for part in self.own.values()))} {self.common['unit']}"


def spent(part: Mapping[str, Any]) -> float:
    """Seconds that a method's trials took."""
    return float(sum(trial["seconds"] for trial in part["trials"]))


def choices(comparison: Comparison) -> list[Choice]:
    """The searches by which the methods of a comparison got their settings: one, or several where studies were joined."""
    found: dict[str, tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]] = {}
    for method, runs in comparison.methods.items():
        chosen = runs[0].get("chosen") or {}
        if chosen.get("own"):
            common = {key: value for key, value in chosen.items() if key != "own"}
            found.setdefault(json.dumps(common), (common, {}))[1][method] = chosen["own"]
    return [Choice(common, own) for common, own in found.values()]


def unsearched(comparison: Comparison) -> list[str]:
    """The methods that train without a search of their settings, where others have had one."""
    searched = {method for choice in choices(comparison) for method in choice.own}
    others = [m for m, runs in comparison.methods.items() if m not in searched and runs[0]["regime"]["trained"]]
    return others if searched else []


def departures(comparison: Comparison) -> Iterator[str]:
    """Methods that ran with other settings than those that were chosen for them, in sentences."""
    for choice in choices(comparison):
        for method, part in choice.own.items():
            for key, value in (part["values"] or {}).items():
                ran = lookup(comparison.methods[method][0], f"config.{key}")
                if not agrees(ran, value):
                    yield f"{method} ran with {key} {ran}; the search chose {value}."


def agrees(ran: Any, chosen: Any) -> bool:
    """Whether a run has what was chosen: of a section all that the choice says, whatever else stands there."""
    if isinstance(ran, Mapping) and isinstance(chosen, Mapping):
        return all(agrees(ran.get(key), value) for key, value in chosen.items())
    return bool(ran == chosen)


def sentences(choice: Choice, say: Say = str) -> Iterator[str]:
    """Rule, data, seed, orders, number of trials and cost, for a page or a paper."""
    common = choice.common
    where = "the same stream" if common["stream_of"] is None else f"another stream, that of {say(common['stream_of'])}"
    tasks, orders = ([say(name) for name in common[key]] for key in ("tasks", "orders"))
    split = {"valid": "validation"}.get(common["split"], say(common["split"]))
    many = " to ".join(str(n) for n in dict.fromkeys((choice.trials[0], choice.trials[-1])))
    yield f"Settings were chosen on {split} data of {where} ({say(common['stream'])}: {', '.join(tasks)})."
    named = f"task order{'s' * (len(orders) > 1)} {', '.join(orders)}"
    yield f"Every method had {many} trials, with seed {common['seed']}, {named}."
    yield f"Of a method's trials the one was chosen that has {say(common['rule'])}; one that failed is never chosen."
    yield f"The search took {choice.cost}."


def grid(part: Mapping[str, Any]) -> dict[str, Any]:
    """A method's trials as a table: `columns` and `rows` of text, and which row is the chosen one (-1: none)."""
    keys = list(dict.fromkeys(key for trial in part["trials"] for key in trial["values"]))
    metrics = [key for key in METRICS if any(key in trial["metrics"] for trial in part["trials"])]
    rows = [
        [
            *(shown(trial["values"].get(key)) for key in keys),
            *(decimals(trial["metrics"][key]) if key in trial["metrics"] else "-" for key in metrics),
            amount(trial["seconds"]) if trial["metrics"] else "failed",
        ]
        for trial in part["trials"]
    ]
    values = [trial["values"] for trial in part["trials"]]
    return {
        "columns": [*keys, *(METRICS[key].label for key in metrics), "seconds"],
        "rows": rows,
        "chosen": values.index(part["values"]) if part["values"] in values else -1,
    }


def shown(value: Any) -> str:
    """A setting's value."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)


def section(comparison: Comparison) -> list[dict[str, Any]]:
    """What the page says: of each search `told` in sentences, `remarks`, and of each method `values`, `spent`, `grid`."""
    return [
        {
            "told": " ".join(sentences(choice)),
            "remarks": list(choice.common["remarks"]),
            "unit": choice.common["unit"],
            "methods": [
                {
                    "name": method,
                    "values": [(key, shown(value)) for key, value in (part["values"] or {}).items()],
                    "trials": len(part["trials"]),
                    "spent": amount(spent(part)),
                    "grid": grid(part),
                }
                for method, part in choice.own.items()
            ],
        }
        for choice in choices(comparison)
    ]


def uneven(comparison: Comparison) -> list[str]:
    """Where methods were not treated alike: no search beside those that had one, other settings than the chosen ones."""
    left = unsearched(comparison)
    said = [f"Settings were searched for the other methods, and not for {', '.join(left)}."] if left else []
    return [*said, *departures(comparison)]
