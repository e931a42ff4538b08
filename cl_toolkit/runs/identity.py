"""What a result is known by (law 11): config, the code of guests, data, start model, toolkit. What changes one of them makes
another result. Where a run ran (device, threads, batch of evaluation) stands in the record and is no part of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.data.facts import task_hash
from cl_toolkit.engine.choose import pick_device
from cl_toolkit.engine.session import in_bf16
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.registry import OBJECTIVES, PROBES, SCORERS, STRATEGIES, STREAMS
from cl_toolkit.runs.parts import build_objective
from cl_toolkit.runs.record import PLACE
from cl_toolkit.runs.warmup import start_model
from cl_toolkit.sources import Source, file_source, object_source, toolkit_source
from cl_toolkit.strategy import Strategy

if TYPE_CHECKING:
    from cl_toolkit.config.schema import Component, RunConfig
    from cl_toolkit.models.kind import Kind
    from cl_toolkit.types import Stream


def identity(config: RunConfig, stream: Stream, shared: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parts beside the config, as plain data: `code` (component -> where it comes from and its hash), `data` (task ->
    hash), `model`, `toolkit`, `precision`. Loads no weights but a built-in model's. shared: what `shared_parts` gave for
    another run on the same stream and start model."""
    code = {name: source.plain() for name, source in sorted(components(config, stream).items())}
    precision = "bfloat16" if in_bf16(config.train, pick_device(config.engine.device)) else "float32"
    parts = {"code": code, **(shared or shared_parts(config, stream)), "toolkit": toolkit(), "precision": precision}
    return {**parts, "model": {**parts["model"], **models_beside(config)}}


def without_strategies(parts: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what strategies bring: their code, and models that they read."""
    own = {
        part: {k: v for k, v in parts[part].items() if not k.startswith("strategies.")} for part in ("code", "model")
    }
    return {**parts, **own}


def models_beside(config: RunConfig) -> dict[str, str]:
    """What strategies read beside the start model, such as a second one, as their settings' `identity` says it."""
    found: dict[str, str] = {}
    for component in config.strategies:
        settings = component.settings.config if isinstance(component.settings, Strategy) else component.settings
        told: Mapping[str, str] = getattr(settings, "identity", dict)()
        found |= {f"strategies.{component.name}: {key}": value for key, value in told.items()}
    return found


def shared_parts(config: RunConfig, stream: Stream) -> dict[str, Any]:
    """`data` and `model`: the parts that take reading, and are the same for all runs on one stream and start model."""
    return {
        "data": {task.name: task_hash(task) for task in stream.all_tasks},
        "model": model_identity(config.kind),
    }


def model_identity(kind: Kind) -> dict[str, str]:
    """What a start model is known by beside its settings; of a warm start the weights. Loads no others."""
    return kind.identity() if kind.warm_start is None else {"weights": fingerprint(start_model(kind, 0))}


def components(config: RunConfig, stream: Stream) -> dict[str, Source]:
    """Everything in a run that is not built in, by its key in the config."""
    found: dict[str, Source | None] = {
        "stream": STREAMS.source(config.stream.name),
        "objective": OBJECTIVES.source(config.objective.name),
    }
    found |= beside("objective", config.objective)
    for i, part in enumerate(config.then):
        found[f"stream.then[{i}]"] = STREAMS.source(part.stream.name)
        found[f"stream.then[{i}].objective"] = OBJECTIVES.source(part.objective.name)
        found |= beside(f"stream.then[{i}].objective", part.objective)
    for component in config.probes:
        found[f"evaluate.probes.{component.name}"] = PROBES.source(component.name)
    for component in config.strategies:
        own = isinstance(component.settings, Strategy)
        source = object_source(type(component.settings)) if own else STRATEGIES.source(component.name)
        found[f"strategies.{component.name}"] = source
    for task in stream.all_tasks:
        found[f"scorer of {task.name}"] = SCORERS.source(task.scorer)
    if isinstance(config.engine.deepspeed, str):
        found["engine.deepspeed"] = file_source(Path(config.engine.deepspeed))
    return {name: source for name, source in found.items() if source is not None}


def beside(key: str, objective: Component) -> dict[str, Source]:
    """What decides an objective beside its settings and its code."""
    sources = build_objective(objective).sources()
    return {f"{key}.{name}": source for name, source in sources.items()}


@cache
def toolkit() -> dict[str, str]:
    """Version and source of the toolkit."""
    return {"version": version("cl-toolkit"), "source": toolkit_source()}


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config without the settings of place, as JSON data."""
    kept = copy.deepcopy(json.loads(json.dumps(config, default=str)))
    for path in PLACE:
        *sections, key = path.split(".")
        inner = kept
        for section in sections:
            inner = inner.get(section) or {}
        if isinstance(inner, dict):
            inner.pop(key, None)
    return kept


def differs(old: Any, new: Any, path: str = "") -> str | None:
    """The first difference between two plain values, in words; None if they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if found := differs(old.get(key), new.get(key), f"{path}.{key}".strip(".")):
                return found
        return None
    return None if old == new else f"{path}: {_short(old)} there, {_short(new)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def changed(record: Mapping[str, Any], config: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """In which part a stored record is another result than the run of `config` with the identity `new`; None if none."""
    if found := differs(settled(record["config"]), settled(config)):
        return f"another config: {found}"
    return changed_parts(record.get("identity"), new)


def changed_parts(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> str | None:
    """In which of code, data, model and toolkit two identities differ; None if they agree."""
    if not old:
        return "a record of an older toolkit, which does not say what made it"
    for name in sorted({*old["code"], *new["code"]}):
        before, now = old["code"].get(name), new["code"].get(name)
        if before != now:
            return f"other code: {(now or before)['from']} ({name}) has changed"
    for name in sorted({*old["data"], *new["data"]}):
        if old["data"].get(name) != new["data"].get(name):
            return f"other data: task {name} has changed"
    if found := differs(old.get("precision"), new["precision"], "precision"):
        return f"another precision (train.bf16): {found}"
    if old["model"] != new["model"]:
        return f"another model: {differs(old['model'], new['model'], 'model')}"
    if old["toolkit"] != new["toolkit"]:
        versions = [part["version"] for part in (old["toolkit"], new["toolkit"])]
        told = "its source has changed" if versions[0] == versions[1] else f"{versions[0]} there, {versions[1]} here"
        return f"another version of the toolkit: {told}"
    return None
