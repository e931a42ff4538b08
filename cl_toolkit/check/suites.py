"""Which laws are whose: by a registered name, or by what stands behind `file.py:Name`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_toolkit.check import engines, kinds, laws, methods, probes, scorers, streams, trackers
from cl_toolkit.check.law import Laws, Result, judge
from cl_toolkit.check.runs import Subject
from cl_toolkit.engine.choose import ENGINES
from cl_toolkit.errors import UserError, did_you_mean, listed, quoted
from cl_toolkit.measure.probe import Probe
from cl_toolkit.measure.scorers import Scorer
from cl_toolkit.models.kind import Kind, built_in, kind_class
from cl_toolkit.objective import Objective
from cl_toolkit.registry import (
    OBJECTIVES,
    PROBES,
    SCORERS,
    STRATEGIES,
    STREAMS,
    TRACKERS,
    Registry,
    canonical,
    load_reference,
)
from cl_toolkit.runs.tracker import Tracker
from cl_toolkit.strategy import Strategy


@dataclass(frozen=True)
class Suite:
    """A contract: its laws, its built-in and registered names with what they stand for, whether something found behind a
    reference keeps it, and how that is looked at."""

    kind: str
    laws: Laws
    names: Callable[[], Iterable[str]]
    get: Callable[[str], Any]
    keeps: Callable[[Any], bool]
    subject: type[Subject]


def of_registry(registry: Registry, found: Laws, keeps: Callable[[Any], bool], subject: type[Subject]) -> Suite:
    """The suite of what stands in a registry."""
    return Suite(registry.kind, found, registry.names, lambda name: registry.get(name, "check"), keeps, subject)


def derived(base: type) -> Callable[[Any], bool]:
    """Whether something is a class derived from `base`."""
    return lambda thing: isinstance(thing, type) and issubclass(thing, base) and thing is not base


def is_stream(thing: Any) -> bool:
    return isinstance(thing, type) and all(callable(getattr(thing, name, None)) for name in ("names", "tasks"))


def is_scorer(thing: Any) -> bool:
    """A `Scorer`, or a function of an example and an answer."""
    if isinstance(thing, Scorer):
        return True
    if isinstance(thing, type) or not inspect.isfunction(thing):
        return False
    required = [p for p in inspect.signature(thing).parameters.values() if p.default is p.empty]
    return len(required) == 2


MODEL = Suite(
    "model", kinds.LAWS, built_in, lambda name: kind_class({"name": name}, "check"), derived(Kind), kinds.KindSubject
)
SUITES = (
    of_registry(STRATEGIES, laws.LAWS, derived(Strategy), methods.Method),
    of_registry(OBJECTIVES, laws.LAWS, derived(Objective), methods.Method),
    of_registry(STREAMS, streams.LAWS, is_stream, streams.StreamSubject),
    of_registry(SCORERS, scorers.LAWS, is_scorer, scorers.ScorerSubject),
    of_registry(PROBES, probes.LAWS, derived(Probe), probes.ProbeSubject),
    of_registry(TRACKERS, trackers.LAWS, derived(Tracker), trackers.TrackerSubject),
    MODEL,
    Suite("engine", engines.LAWS, lambda: ENGINES, ENGINES.__getitem__, lambda thing: False, engines.EngineSubject),
)
EXPECTED = (
    "a class derived from Strategy, Objective, Probe, Tracker or Kind, a stream (a class with names() and tasks()), or a "
    "scorer (a Scorer, or a function of example and answer)"
)


def find_suite(reference: str, settings: Mapping[str, Any]) -> tuple[Suite, Any]:
    """Whose laws a reference is held to, and what stands behind it. A folder, or a name with a /, is a model."""
    name = canonical(reference)
    named = [suite for suite in SUITES if name in map(canonical, suite.names())]
    if len(named) > 1:
        both = " and ".join(suite.kind for suite in named)
        raise UserError(f"check: {reference}: is the name of a {both}; name the one that is meant as module:Class")
    if named:
        return named[0], named[0].get(reference)
    if ":" in reference and not Path(reference).exists():
        thing = load_reference(reference, "check")
        fitting = next((suite for suite in SUITES if suite.keeps(thing)), None)
        if fitting is None:
            raise UserError(f"check: {reference}: expected {EXPECTED}; got {quoted(thing)}")
        return fitting, thing
    if "/" in reference or Path(reference).is_dir():
        return MODEL, kind_class({"name": reference, **settings}, "check")
    known = [known for suite in SUITES for known in suite.names()]
    raise UserError(
        f"check: {quoted(reference)}: is the name of nothing that can be checked{did_you_mean(name, known)}"
    )


def find_subject(reference: str, settings: Mapping[str, Any] | None = None) -> tuple[Suite, Subject]:
    """What a reference names, with the laws that it is held to. settings: its own, where they differ from its defaults."""
    suite, thing = find_suite(reference, settings or {})
    name = reference if ":" in reference or suite is MODEL else canonical(reference)
    return suite, suite.subject(name, thing, settings)


def check(
    reference: str, numbers: Sequence[int] | None = None, settings: Mapping[str, Any] | None = None
) -> list[Result]:
    """Check whatever a config can name; the laws of its contract in their order. Raises UserError where there is no such
    thing or law."""
    suite, subject = find_subject(reference, settings)
    try:
        for number in numbers or ():
            if number not in suite.laws:
                raise UserError(f"check: a {suite.kind} has no law {number}; known: {listed(map(str, suite.laws))}")
        return [judge(suite.laws[number], subject) for number in sorted(numbers or suite.laws)]
    finally:
        subject.close()
