"""Choose each method's settings on validation data, with the same number of trials for every method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cl_toolkit.config import StudyConfig, find_config, merge, normalise, shipped_configs
from cl_toolkit.errors import UserError
from cl_toolkit.plain_yaml import parse_overrides, to_yaml
from cl_toolkit.study_config import find_name, flatten, load_layers, load_study
from cl_toolkit.typed import typed

TRIAL_SETTINGS = ("evaluate.split=valid", "evaluate.tasks=seen", "evaluate.forgetting_curve.schedule=off")
"""Of every trial: validation data alone, and nothing that the choice does not need."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The `search` section of a config. seed: of all trials; one that the comparison does not use. methods: name -> dotted
    key -> values; every combination is a trial. Chosen is the highest mean accuracy over all tasks at the end."""

    seed: int
    methods: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination: `name` is the method and a number, `values` what it tries, `difference` the method with them."""

    name: str
    method: str
    values: dict[str, Any]
    difference: dict[str, Any]


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


def trials(source: str, overrides: Sequence[str] = ()) -> tuple[StudyConfig, list[Trial]]:
    """The comparison of all trials of a config's `search`, and what each stands for.

    Raises UserError where a method is unknown, an axis is no list, the seed is one of the comparison's, or methods would get
    unequal numbers of trials.
    """
    name, layers = load_layers(source, overrides)
    plain, where = flatten(layers), layers[-2][0]
    if plain["search"] is None:
        raise UserError(f"{where}: search: is empty; it says which settings are tried, see configs/strategies.yaml")
    if layers[-1][1].get("strategies"):
        raise UserError("command line: strategies: belong into the config or its search when settings are searched")
    search = typed(Search, plain["search"], "search", where)
    if not search.methods:
        raise UserError(f"{where}: search.methods: is empty; expected name: {{key: [values]}}")
    if search.seed in plain["seeds"]:
        raise UserError(f"{where}: search.seed: {search.seed} is one of the comparison's seeds; choose another")
    found = []
    for label, axes in search.methods.items():
        method = find_name(label, plain["methods"])
        if not isinstance(axes, Mapping) or not all(isinstance(v, list) and v for v in axes.values()):
            raise UserError(f"{where}: search.methods.{label}: expected key: [values], got {axes!r}")
        base = normalise(plain["methods"][method] or {}, where)
        for number, values in enumerate(combinations(axes), 1):
            difference = merge(base, nested(values))
            found.append(Trial(name=f"{method}.{number}", method=method, values=values, difference=difference))
    sizes = {m: sum(t.method == m for t in found) for m in dict.fromkeys(t.method for t in found)}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{m} {n}" for m, n in sizes.items())
        raise UserError(f"{where}: search.methods: every method gets the same number of trials; here: {shown}")
    settings = [item for item in TRIAL_SETTINGS if not any(o.split("=")[0] == item.split("=")[0] for o in overrides)]
    study = load_study(
        source, [*overrides, *settings], methods={t.name: t.difference for t in found}, seeds=[search.seed]
    )
    names = {t.name for t in found}
    runs = tuple(run for run in study.runs if run.method in names)
    methods = {t.name: study.plain["methods"][t.name] for t in found}
    plain = {**study.plain, "methods": methods, "name": f"{name}-tune"}
    return replace(study, name=f"{name}-tune", runs=runs, methods=tuple(methods), plain=plain), found


def by_trial(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Trial -> its finished runs, one per task order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["status"] == "finished":
            groups.setdefault(record["method"], []).append(record)
    return groups


def mean_metric(runs: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Mean over runs; None where it is undefined."""
    values = [run["metrics"][metric] for run in runs]
    return None if None in values else fmean(values)


def best(found: Sequence[Trial], records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Trial, float]]:
    """Method -> (its best trial, mean final accuracy on validation data over its task orders). Of equals the first."""
    scores = {name: mean_metric(runs, "acc") for name, runs in by_trial(records).items()}
    chosen: dict[str, tuple[Trial, float]] = {}
    for trial in found:
        score = scores.get(trial.name)
        if score is not None and (trial.method not in chosen or score > chosen[trial.method][1]):
            chosen[trial.method] = trial, score
    return chosen


def table(found: Sequence[Trial], records: Sequence[Mapping[str, Any]]):
    """A pandas row per trial: method, values, acc, bwt, learning_accuracy, and whether it was chosen."""
    import pandas as pd

    chosen = {trial.name for trial, _ in best(found, records).values()}
    runs = by_trial(records)
    rows = [
        {
            "trial": t.name,
            "method": t.method,
            **{
                k: mean_metric(runs[t.name], k) if t.name in runs else None for k in ("acc", "bwt", "learning_accuracy")
            },
            "chosen": t.name in chosen,
            **t.values,
        }
        for t in found
    ]
    return pd.DataFrame(rows)


def write_tuned(
    source: str, folder: Path, chosen: Mapping[str, tuple[Trial, float]], overrides: Sequence[str] = ()
) -> Path:
    """A config that extends the searched one, with the overrides of the search and the chosen settings in its methods:
    `<folder>/tuned.yaml`."""
    path = find_config(source)
    below = source if source in shipped_configs() else str(path.resolve())
    name, layers = load_layers(source)
    methods = dict(flatten(layers)["methods"])
    methods |= {method: trial.difference for method, (trial, _) in chosen.items()}
    given = parse_overrides(list(overrides)) if overrides else {}
    content = {**given, "extends": below, "name": f"{name}-tuned", "methods": methods}
    lines = [f"# {m}: {acc:.3f} on validation data with {t.values}" for m, (t, acc) in chosen.items()]
    tuned = folder / "tuned.yaml"
    tuned.write_text("\n".join([*lines, to_yaml(content)]), encoding="utf-8")
    return tuned
