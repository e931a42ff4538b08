"""The parts of a run, made from its config: strategies as one, objectives, probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cl_toolkit.config.schema import Component, RunConfig
from cl_toolkit.data.store import ExampleStore
from cl_toolkit.measure.probe import Probe
from cl_toolkit.measure.probes.curves import ForgettingCurves
from cl_toolkit.objective import Objective
from cl_toolkit.registry import OBJECTIVES, PROBES, STRATEGIES, TRACKERS, made
from cl_toolkit.runs.guests import OBJECTIVE, STRATEGY, watched
from cl_toolkit.runs.tracker import Tracker
from cl_toolkit.strategy import Composed, Strategy, compose

CURVES = "curves"


def build_strategy(config: RunConfig) -> Strategy:
    """The run's strategies as one."""
    parts = []
    for component in config.strategies:
        if isinstance(component.settings, Strategy):
            part = type(component.settings)(component.settings.config)
        else:
            part = made(
                STRATEGIES.get(component.name, "strategies"), component.settings, f"strategies.{component.name}"
            )
        # of `file.py:Class` the class: no draw depends on where a file lies
        part.name = component.name.rpartition(":")[2]
        if isinstance(component.settings, Strategy) or STRATEGIES.source(component.name) is not None:
            watched(part, STRATEGY, f"strategies.{component.name}")
        parts.append(part)
    # who owns the weights between tasks takes its turn when all others have looked at them, whatever the config's order
    return compose(*sorted(parts, key=lambda part: "weights" in part.tags.owns))


def build_objective(component: Component) -> Objective:
    """The objective behind a component."""
    objective = made(OBJECTIVES.get(component.name, "objective.name"), component.settings, "objective.name")
    objective.name = component.name
    if OBJECTIVES.source(component.name) is not None:
        watched(objective, OBJECTIVE, "objective.name")
    return objective


def build_probes(config: RunConfig) -> dict[str, Probe]:
    """What is measured beside the matrix, by name."""
    probes: dict[str, Probe] = {CURVES: ForgettingCurves(config.evaluate.forgetting_curve)}
    for component in config.probes:
        place = f"evaluate.probes.{component.name}"
        probes[component.name] = made(PROBES.get(component.name, place), component.settings, place)
    return probes


def build_trackers(config: RunConfig) -> list[Tracker]:
    """Those who hand the run's numbers on."""
    return [made(TRACKERS.get(c.name, f"trackers.{c.name}"), c.settings, f"trackers.{c.name}") for c in config.trackers]


def parts_of(strategy: Strategy) -> Sequence[Strategy]:
    """The strategies that stand behind one."""
    return strategy.parts if isinstance(strategy, Composed) else (strategy,)


def told(strategy: Strategy) -> dict[str, Any]:
    """What strategies have noted about the task that was just learned, by their names."""
    return {part.name: noted for part in parts_of(strategy) if (noted := part.told())}


def find_stores(strategy: Strategy) -> Iterator[ExampleStore]:
    """The example stores that strategies hold: what they keep is measured, not declared."""
    for part in parts_of(strategy):
        yield from (value for value in vars(part).values() if isinstance(value, ExampleStore))
