"""Things to read on a terminal: lists, plans, examples, answers."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from cl_toolkit.config.layers import shipped_configs
from cl_toolkit.engine.choose import ENGINES
from cl_toolkit.errors import UserError, did_you_mean, guest
from cl_toolkit.models.kind import Kind, built_in
from cl_toolkit.registry import OBJECTIVES, PROBES, SCORERS, STRATEGIES, STREAMS, TRACKERS, Registry, canonical


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Everything that can be named in a config: name, one line, paper, needs, settings with defaults."""
    found = {
        plural: [entry(registry, name) for name in registry]
        + [{"name": name, "summary": f"cannot be used: {why}"} for name, why in registry.broken.items()]
        for plural, registry in (
            ("strategies", STRATEGIES),
            ("objectives", OBJECTIVES),
            ("streams", STREAMS),
            ("scorers", SCORERS),
            ("probes", PROBES),
            ("trackers", TRACKERS),
        )
    }
    found["models"] = [model_entry(name, kind) for name, kind in built_in().items()]
    found["engines"] = [{"name": name, "summary": first_line(engine.open)} for name, engine in ENGINES.items()]
    found["configs"] = [
        {"name": name, "summary": path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")}
        for name, path in shipped_configs().items()
    ]
    return found


def model_entry(name: str, kind: type[Kind]) -> dict[str, Any]:
    """A built-in model: what it takes and gives, and its settings with defaults."""
    return {
        "name": name,
        "summary": first_line(kind),
        "inputs": kind.inputs,
        "gives": sorted(kind.gives),
        "settings": {key: value for key, value in settings_of(kind).items() if key != "name"},
        "from": f"{kind.__module__}:{kind.__qualname__}",
    }


def settings_of(config: type) -> dict[str, Any]:
    """The fields of a settings dataclass with their defaults; None for one that must be given."""
    missing = dataclasses.MISSING
    return {
        f.name: (None if f.default_factory is missing else f.default_factory()) if f.default is missing else f.default
        for f in dataclasses.fields(config)
    }


def entry(registry: Registry, name: str) -> dict[str, Any]:
    """One entry of the catalogue; a guest's that cannot be used says why, and costs no more than its own line."""
    try:
        with guest(registry.origin(name), name):
            return describe(registry, name)
    except UserError as error:
        return {"name": name, "summary": f"cannot be used: {error}", "from": registry.origin(name)}


def describe(registry: Registry, name: str) -> dict[str, Any]:
    """One entry of the catalogue."""
    thing = registry.get(name, registry.kind)
    row: dict[str, Any] = {"name": name, "summary": first_line(thing)}
    tags = getattr(thing, "tags", None)
    if tags is not None:
        row |= {"paper": tags.paper, "needs_examples": tags.needs_examples, "zero_stages": list(tags.zero_stages)}
        row |= {"cost": dataclasses.asdict(tags.cost), "costs": str(tags.cost), "extra_memory": tags.extra_memory}
        row |= {"life_cycles": tags.life_cycles, "inputs": tags.inputs}
        row |= {"needs": sorted(tags.needs), "owns": sorted(tags.owns)}
    elif getattr(thing, "paper", None):
        row["paper"] = thing.paper
    if stages := getattr(thing, "zero_stages", None):
        row["zero_stages"] = list(stages)
    if hasattr(thing, "Config"):
        row["settings"] = settings_of(thing.Config)
    row["from"] = registry.origin(name)
    return row


def first_line(thing: Any) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.split(r"(?<!\bal)\. ", text)[0].rstrip(".")  # `et al.` ends none


def answer_rows(folder: Path, task: str | None, method: str | None, n: int) -> list[dict[str, str]]:
    """What the model said to the first n questions of a task: before training, after learning it, and at the end."""
    from cl_toolkit.api import load
    from cl_toolkit.runs.record import read_answers

    rows = []
    found = load(folder)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for record, place in zip(found.records, found.places, strict=True):
        if record["status"] != "finished" or (method is not None and canonical(record["method"]) != canonical(method)):
            continue
        names = record["tasks"]
        if task is not None and task not in names:
            raise UserError(f"{folder}: no task {task!r}{did_you_mean(task, names)}")
        for name in [task] if task else names:
            moments = {"before": 0, "learned": names.index(name) + 1, "end": len(names)}
            said = {
                moment: [one for one in read_answers(place, row, record["answers"]) if one["task"] == name]
                for moment, row in moments.items()
            }
            for i, last in enumerate(said["end"][:n] or said["learned"][:n]):
                row = {"method": record["method"], "seed": str(record["seed"]), "task": name}
                row |= {"question": last["question"], "target": last["target"]}
                row |= {moment: answers[i]["answer"] if i < len(answers) else "–" for moment, answers in said.items()}
                rows.append(row)
    if not rows:
        raise UserError(f"{folder}: no answers of {method or 'any method'} here")
    return rows
