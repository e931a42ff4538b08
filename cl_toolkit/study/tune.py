"""The trials of a search: each method's settings on validation data, equally many for all. `choice` picks among them, and the
chosen settings become a config."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cl_toolkit.config.layers import find_config, merge, normalise, shipped_configs
from cl_toolkit.config.plain_yaml import parse_overrides, to_yaml
from cl_toolkit.config.schema import StudyConfig
from cl_toolkit.config.typed import typed
from cl_toolkit.errors import UserError
from cl_toolkit.runs.checkpoint import write_text
from cl_toolkit.study.cells import Layer, find_name, flatten, load_layers, load_study, own_tasks
from cl_toolkit.study.choice import Outcome, remarks
from cl_toolkit.study.orders import orders_of

TRIAL_SETTINGS = ("evaluate.split=valid", "evaluate.tasks=seen", "evaluate.forgetting_curve.schedule=off")
"""Of every trial: validation data alone, and nothing that the choice does not need."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The `search` section of a config. seed: of all trials; one that the comparison does not use. orders: of tasks, written as
    those of the comparison, and none of them one of its; null: the comparison's own. methods: name -> dotted key -> values;
    every combination is a trial. Which is chosen: `cl_toolkit.study.choice`."""

    seed: int
    orders: Any = None  # read by `orders_of`
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

    Raises UserError where a method is unknown, an axis is no list, the seed or an order is one of the comparison's, methods
    would get unequal numbers of trials, or the test split is asked for.
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
    check_orders(plain, layers, search.orders, where)
    check_split(layers, search.methods)
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
    differences = {t.name: t.difference for t in found}
    study = load_study(source, [*overrides, *settings], methods=differences, seeds=[search.seed], orders=search.orders)
    names = {t.name for t in found}
    runs = tuple(run for run in study.runs if run.method in names)
    methods = {t.name: study.plain["methods"][t.name] for t in found}
    plain = {**study.plain, "methods": methods, "name": f"{name}-tune"}
    return replace(study, name=f"{name}-tune", runs=runs, methods=tuple(methods), plain=plain), found


def check_orders(plain: Mapping[str, Any], layers: Sequence[Layer], orders: Any, where: str) -> None:
    """Raises UserError where the search has orders of its own and one of them is the comparison's too."""
    if orders is None:
        return
    own = own_tasks(plain, layers)
    reported = [order or own for order in orders_of(plain["orders"], lambda: own, where)]
    for order in orders_of(orders, lambda: own, f"{where}: search"):
        if (order or own) in reported:
            raise UserError(
                f"{where}: search.orders: {', '.join(order or own)} is one of the comparison's orders; choose another"
            )


def check_split(layers: Sequence[tuple[str, Mapping[str, Any]]], axes: Mapping[str, Any]) -> None:
    """Raises UserError where anything but the defaults asks for the test split: settings that were chosen on it would
    make the comparison's own scores worthless."""
    for where, layer in layers[1:]:
        asked = {"evaluate": layer.get("evaluate")}
        asked |= {f"methods.{m}.evaluate": (d or {}).get("evaluate") for m, d in (layer.get("methods") or {}).items()}
        for key, section in asked.items():
            if isinstance(section, Mapping) and section.get("split", "valid") != "valid":
                raise UserError(
                    f"{where}: {key}.split: {section['split']}: settings are chosen on validation data alone"
                )
    for label, values in axes.items():
        if isinstance(values, Mapping) and "evaluate.split" in values:
            raise UserError(f"search.methods.{label}: evaluate.split: settings are chosen on validation data alone")


def comparison_methods(source: str) -> dict[str, Any]:
    """Methods of the searched config's own comparison."""
    return dict(flatten(load_layers(source)[1])["methods"])


def write_tuned(
    source: str, folder: Path, found: Sequence[Trial], chosen: Mapping[str, Outcome], overrides: Sequence[str] = ()
) -> Path:
    """A config that extends the searched one, with the overrides of the search and the chosen settings in its methods:
    `<folder>/tuned.yaml`."""
    path = find_config(source)
    below = source if source in shipped_configs() else str(path.resolve())
    searched = comparison_methods(source)
    methods = searched | {method: outcome.trial.difference for method, outcome in chosen.items()}
    kept = [o for o in overrides if o.split("=")[0] != "evaluate.split"]  # the search's alone
    given = parse_overrides(kept) if kept else {}
    content = {**given, "extends": below, "name": f"{load_layers(source)[0]}-tuned", "methods": methods}
    lines = [f"# {m}: {o.metrics['acc']:.3f} on validation data with {o.trial.values}" for m, o in chosen.items()]
    lines += [f"# {line}" for line in remarks(found, chosen, list(searched))]
    write_text(folder / "tuned.yaml", "\n".join([*lines, to_yaml(content)]))
    return folder / "tuned.yaml"
