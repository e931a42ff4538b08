"""A search: each method's settings on validation data, equally many trials for all. `choice` picks among them, and the chosen
settings become a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cl_toolkit.config.layers import find_config, merge, normalise
from cl_toolkit.config.schema import StudyConfig
from cl_toolkit.data.facts import task_hash
from cl_toolkit.data.sections import Limit
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError, listed, refuse_doubles
from cl_toolkit.study.cells import (
    Layer,
    checked,
    find_name,
    flatten,
    load_layers,
    load_study,
    method_config,
    on_stream,
    own_tasks,
)
from cl_toolkit.study.choice import Outcome, best, flips, merits, ties
from cl_toolkit.study.orders import orders_of
from cl_toolkit.study.sampler import AT_RANDOM, drawn
from cl_toolkit.study.search import Axes, Search, Span, Trial, combinations, nested, read_axes, read_search, size
from cl_toolkit.study.widen import edges, widened

TRIAL_SETTINGS = ("evaluate.split=valid", "evaluate.tasks=seen", "evaluate.forgetting_curve.schedule=off")
"""Of every trial: validation data alone, and nothing that the choice does not need."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A config's search. on: the config on whose stream it goes on; None: on the comparison's own. name: of the comparison.
    methods: of the comparison, with what differs. searched: those with a search -> key -> values."""

    source: str
    overrides: tuple[str, ...]
    on: str | None
    name: str
    layers: Sequence[Layer]
    search: Search
    methods: Mapping[str, dict[str, Any]]
    searched: Mapping[str, Axes]

    @staticmethod
    def of(source: str, overrides: Sequence[str] = (), on: str | None = None) -> Tuning:
        """Raises UserError where a method is unknown, an axis is no list, the seed or an order is one of the comparison's,
        methods would get unequal numbers of trials, the test split is asked for, or the other stream has a task of the
        comparison's."""
        name, layers = load_layers(source, overrides)
        plain, where = flatten(layers), layers[-2][0]
        search = read_search(plain["search"], where)
        if layers[-1][1].get("strategies"):
            raise UserError("command line: strategies: belong into the config or its search when settings are searched")
        if search.seed in plain["seeds"]:
            raise UserError(f"{where}: search.seed: {search.seed} is one of the comparison's seeds; choose another")
        check_split(layers, search.methods)
        refuse_doubles([find_name(label, plain["methods"]) for label in search.methods], f"{where}: search.methods")
        if on is None:
            check_orders(plain, layers, search.orders, where)
        else:
            own, layers = layers, on_stream(layers, on)
            check_sister(own, layers, on)
        tuning = Tuning(
            source=source,
            overrides=tuple(overrides),
            on=on,
            name=name,
            layers=layers,
            search=search,
            methods={m: normalise(d or {}, where) for m, d in plain["methods"].items()},
            searched={find_name(label, plain["methods"]): read_axes(search, label, where) for label in search.methods},
        )
        check_sizes(tuning, where)
        tuning.study(tuning.further(0, []))  # what is wrong with any trial is said before the first
        return tuning

    @property
    def title(self) -> str:
        """What the comparison of the trials is called."""
        return f"{self.name}-tune" + ("" if self.on is None else f"-on-{find_config(self.on).stem}")

    @property
    def rule(self) -> str:
        """How and on what a trial is chosen."""
        of = "" if self.on is None else f" of the stream of {self.on}"
        return f"chosen on validation data{of}: {self.search.rule}; a trial that failed in any order is never chosen"

    def trial(self, method: str, values: dict[str, Any]) -> Trial:
        """A method with these values."""
        return Trial(method=method, values=values, difference=merge(self.methods[method], nested(values)))

    def further(self, number: int, made: Sequence[Outcome]) -> list[Trial]:
        """The trials of a round, counted from 0, after those of all rounds before it; [] where the search is at its end. The
        same outcomes give the same trials."""
        if self.search.sampler == "tpe":
            return [trial for method in self.searched for trial in self.drawn(method, made)]
        if number == 0:
            return [self.trial(m, values) for m, axes in self.searched.items() for values in combinations(axes)]
        if number > self.search.widen:
            return []
        return widened(made, best(made, self.search), self.allows)

    def drawn(self, method: str, made: Sequence[Outcome]) -> list[Trial]:
        """A method's next trials where a sampler draws them: several at random, then one at a time."""
        own = [o for o in made if o.trial.method == method]
        left = (self.search.trials or 0) - len(own)
        if not left:
            return []
        known = [(o.trial.values, merit) for o, merit in zip(own, merits(own, self.search), strict=True)]
        found = drawn(self.searched[method], known, 1 if own else min(AT_RANDOM, left), self.search.seed)
        return [self.trial(method, values) for values in found]

    def check(self, trial: Trial) -> None:
        """Raises UserError where its settings are none that a run can have: each key has its own range."""
        config = method_config(flatten(self.layers), trial.difference, self.layers, None, self.search.seed)
        checked(config, self.layers, trial.method, "given", {})

    def allows(self, trial: Trial) -> bool:
        """Whether its settings are ones that a run can have."""
        try:
            self.check(trial)
        except UserError:
            return False
        return True

    def study(self, trials: Sequence[Trial]) -> StudyConfig:
        """The comparison of these trials."""
        given = {item.split("=")[0] for item in self.overrides}
        settings = [item for item in TRIAL_SETTINGS if item.split("=")[0] not in given]
        study = load_study(
            self.source,
            [*self.overrides, *settings],
            methods={t.name: t.difference for t in trials},
            seeds=[self.search.seed],
            orders=self.search.orders,
            on=self.on,
        )
        methods = {t.name: study.plain["methods"][t.name] for t in trials}
        runs = tuple(run for run in study.runs if run.method in methods)
        plain = {**study.plain, "methods": methods, "name": self.title, "chosen": None}
        return replace(study, name=self.title, runs=runs, methods=tuple(methods), plain=plain)

    def remarks(self, made: Sequence[Outcome], chosen: Mapping[str, Outcome]) -> list[str]:
        """What must be known of a choice: what a second criterion says, trials that are as good, values at the edge of what was
        tried, methods without a search or without a trial that finished."""
        lines = [*filter(None, [flips(made, self.search)]), *ties(made, chosen, self.search)]
        for method, outcome in chosen.items() if self.search.sampler == "grid" else ():
            for step in edges(outcome, made, self.allows):
                key = next(k for k, v in outcome.trial.values.items() if step.values[k] != v)
                side = "smallest" if step.values[key] < outcome.trial.values[key] else "largest"
                lines.append(
                    f"{method}: {key}={outcome.trial.values[key]} is the {side} value tried; a better one may lie beyond"
                )
        if failed := [m for m in self.searched if m not in chosen]:
            lines.append(f"every trial failed, settings as in the config: {', '.join(failed)}")
        if unsearched := [m for m in self.methods if m not in self.searched]:
            lines.append(f"not searched, settings as in the config: {', '.join(unsearched)}")
        return lines


def check_sizes(tuning: Tuning, where: str) -> None:
    """Raises UserError where methods would get unequal numbers of trials, or an end of a range, or a value of a list, is none
    that its key takes."""
    sizes = {m: size(axes) for m, axes in tuning.searched.items()}
    wanted = tuning.search.trials
    if wanted is None and len(set(sizes.values())) > 1:
        shown = ", ".join(f"{m} {n}" for m, n in sizes.items())
        raise UserError(f"{where}: search.methods: every method gets the same number of trials; here: {shown}")
    for method, axes in tuning.searched.items():
        if wanted is not None and sizes[method] < wanted:
            raise UserError(
                f"{where}: search.methods.{method}: has {sizes[method]} combinations; every method gets {wanted} trials"
            )
        ends = {key: [axis.low, axis.high] if isinstance(axis, Span) else list(axis) for key, axis in axes.items()}
        first = tuning.trial(method, {key: values[0] for key, values in ends.items()})
        for key, values in ends.items():
            for value in values:
                tuning.check(first.but(key, value))


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


def check_sister(own: Sequence[Layer], sister: Sequence[Layer], on: str) -> None:
    """Raises UserError where the stream that settings are chosen on has a task of the comparison's, whatever its name and
    however many of its examples are used."""

    def known(layers: Sequence[Layer]) -> dict[str, str]:
        config = checked(method_config(flatten(layers), {}, layers, None, 0), layers, "run", "given", {})
        whole = replace(config.stream, limit=Limit(train=None, valid=None, test=None))
        stream = build_stream(replace(config, stream=whole))
        return {task_hash(task): task.name for task in stream.all_tasks}

    mine, theirs = known(own), known(sister)
    if shared := [theirs[key] for key in theirs if key in mine]:
        raise UserError(
            f"--on {on}: the comparison has the same data, as {listed(shared)} there; settings are to be chosen on other data"
        )


def check_split(layers: Sequence[Layer], axes: Mapping[str, Any]) -> None:
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
        for key in values if isinstance(values, Mapping) else ():
            if str(key).split(".")[0] in ("evaluate", "name"):  # what all trials have in common
                why = (
                    "settings are chosen on validation data alone"
                    if key == "evaluate.split"
                    else "all trials have the same"
                )
                raise UserError(f"search.methods.{label}: {key}: {why}")
