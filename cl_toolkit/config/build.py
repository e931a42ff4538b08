"""A resolved plain config -> `RunConfig`: every section and every component typed, and what cannot work refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cl_toolkit.config import refusals
from cl_toolkit.config.layers import base_layer, split_section
from cl_toolkit.config.plain_yaml import as_plain, unfilled
from cl_toolkit.config.schema import COMPARISON_KEYS, Checkpoint, Component, RunConfig, Seeds
from cl_toolkit.config.typed import check_instance, typed
from cl_toolkit.data.sections import StreamSection
from cl_toolkit.engine.sections import EngineSection, Train
from cl_toolkit.errors import UserError, did_you_mean, quoted, short
from cl_toolkit.measure.sections import Evaluate
from cl_toolkit.models import peft_types
from cl_toolkit.models.kind import Kind, built_in, kind_class
from cl_toolkit.models.sections import Adapter, AnyAdapter, Generation, ModelSection, Prompt
from cl_toolkit.models.targets import by_weights
from cl_toolkit.registry import OBJECTIVES, PROBES, STRATEGIES, STREAMS, TRACKERS, Registry
from cl_toolkit.strategy import Strategy


def kind_of(section: Mapping[str, Any], where: str) -> Kind:
    """The kind of model that the section `model` asks for, with its settings."""
    cls = kind_class(section, where)
    settings = split_section(ModelSection, section)[1]
    known = {f.name for f in dataclasses.fields(cls)}
    for key in settings:
        owners = [name for name, other in built_in().items() if key in {f.name for f in dataclasses.fields(other)}]
        if key not in known and owners and cls not in built_in().values():  # the name is to blame
            raise UserError(
                f"{where}: model.name: {quoted(section['name'])} is a Hugging Face id or a folder, which has no setting {key} "
                f"({' and '.join(owners)} have it){did_you_mean(section['name'], built_in()).split('; known')[0]}"
            )
    return typed(cls, {**settings, "name": section["name"]}, "model", where, ModelSection)


def adapter_of(section: Any, where: str) -> Any:
    """The settings of the adapter that `model.adapter` asks for, task by task where it has `per_task`; what is no mapping is
    left to the type check."""
    if not isinstance(section, Mapping) or "per_task" not in section:
        return one_adapter(section, where)
    key, given = "model.adapter.per_task", section["per_task"]
    common = {name: value for name, value in section.items() if name != "per_task"}
    if (
        not isinstance(given, Mapping)
        or not all(isinstance(v, list | tuple) and v for v in given.values())
        or not given
    ):
        raise UserError(f"{where}: {key}: expected settings with a list for each, {{r: [16, 8]}}, got {quoted(given)}")
    if common.get("between_tasks", "continue") == "continue" or set(given) & {"type", "between_tasks"}:
        raise UserError(
            f"{where}: {key}: is for adapters of one type that begin anew with each task; set between_tasks: merge or stack "
            "beside it"
        )
    if common["between_tasks"] == "stack" and any(map(by_weights, given.get("target_modules", ()))):
        raise UserError(
            f"{where}: {key}.target_modules: kappa looks at the weights of the model without adapters; name the layers, set it "
            "once for all tasks, or use between_tasks: merge"
        )
    tasks = range(max(map(len, given.values())))
    settings = [{name: values[min(i, len(values) - 1)] for name, values in given.items()} for i in tasks]
    return AnyAdapter.by_task([one_adapter({**common, **its}, where) for its in settings])


def one_adapter(section: Any, where: str) -> Any:
    """An adapter's settings."""
    if not isinstance(section, Mapping):
        return section
    if peft_types.is_plain(section):
        return typed(Adapter, section, "model.adapter", where)
    cls = peft_types.settings_class(section.get("type", "lora"), where)
    return peft_types.adapter_of(section, typed(cls, section, "model.adapter", where))


def config_of(cls: Any, where: str) -> type:
    """The settings class of a stream, an objective or a strategy; a guest's must have one."""
    found = getattr(cls, "Config", None)
    if not isinstance(cls, type) or not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise UserError(f"{where}: {quoted(cls)}: expected a class with a dataclass Config in it")
    return found


def component(registry: Registry, name: Any, settings: Any, section: str, where: str, key: str = "") -> Component:
    """What the registry knows by that name, with its settings. key: where the name stands, if not in the section's own."""
    if not isinstance(settings, dict | None):
        raise UserError(f"{where}: {section}: expected settings, got {quoted(settings)}")
    place = f"{where}: {key or section}"
    config = config_of(registry.get(name, place), place)
    return Component(name=name, settings=typed(config, settings or {}, section, where))


def components(registry: Registry, named: Any, section: str, where: str) -> tuple[Component, ...]:
    """What a section names, `name: settings`; a list of names is accepted as shorthand."""
    if isinstance(named, (list, tuple)):
        named = dict.fromkeys(named)
    if not isinstance(named, dict):
        raise UserError(f"{where}: {section}: expected name: settings, got {quoted(named)}")
    return tuple(component(registry, name, s, f"{section}.{name}", where) for name, s in named.items())


def strategies_of(named: Mapping[str, Any], instances: Mapping[str, Strategy], where: str) -> tuple[Component, ...]:
    """The strategies of a run, each with its settings; of an object the object itself."""
    strategies = []
    for name, settings in named.items():
        if name in instances:
            own = as_plain(dataclasses.asdict(instances[name].config), where)
            check_instance(instances[name].config, f"strategies.{name}", where)
            if {k: v for k, v in settings.items() if k != "class"} != own:
                raise UserError(
                    f"{where}: strategies.{name}: is an object, which brings its settings itself: {quoted(own)}"
                )
            strategies.append(Component(name=name, settings=instances[name]))
            continue
        cls = STRATEGIES.get(name, f"{where}: strategies")
        if not (isinstance(cls, type) and issubclass(cls, Strategy)):
            raise UserError(f"{where}: strategies: {name} is not a strategy (a class that inherits from Strategy)")
        if not isinstance(settings, dict):
            raise UserError(f"{where}: strategies.{name}: expected settings, got {quoted(settings)}")
        config = config_of(cls, f"{where}: strategies.{name}")
        strategies.append(Component(name=name, settings=typed(config, settings, f"strategies.{name}", where)))
    return tuple(strategies)


def build_run(
    plain: dict[str, Any], where: str, *, method: str = "run", order: str = "given", instances=None
) -> RunConfig:
    """A resolved plain config -> RunConfig; refuses what cannot work, before any model is loaded."""
    run = read_run(plain, where, method=method, order=order, instances=instances)
    refusals.check(run, where)
    refusals.check_anchors(run, where)
    for i, part in enumerate(run.then):
        refusals.check(part, f"{where}: stream.then[{i}]")
    refusals.check_parts(run, where)
    return run


def read_run(
    plain: dict[str, Any], where: str, *, method: str = "run", order: str = "given", instances=None
) -> RunConfig:
    """The same without a look at whether its parts work together."""
    known = base_layer()
    for key in plain:
        if key not in known:
            raise UserError(f"{where}: {short(key)}: unknown key{did_you_mean(key, known)}")
    for key in ("stream", "prompt", "model", "objective", "train", "engine", "generation", "evaluate", "checkpoint"):
        if not isinstance(plain[key], dict):
            raise UserError(f"{where}: {key}: expected a mapping, got {quoted(plain[key])}")

    for path in unfilled(plain):
        raise UserError(f"{where}: {path}: must be given; add {path}=... to the command or write it into a config")

    common, settings = split_section(StreamSection, plain["stream"])
    stream = typed(StreamSection, common, "stream", where)
    stream_cls = STREAMS.get(stream.name, f"{where}: stream.name")
    stream_settings = typed(config_of(stream_cls, f"{where}: stream.name"), settings, "stream", where, StreamSection)

    common = split_section(ModelSection, plain["model"])[0]
    model = typed(ModelSection, {**common, "adapter": adapter_of(common.get("adapter"), where)}, "model", where)
    kind = kind_of(plain["model"], where)

    evaluate = typed(Evaluate, plain["evaluate"], "evaluate", where)
    settings = {k: v for k, v in plain["objective"].items() if k != "name"}
    objective = component(OBJECTIVES, plain["objective"].get("name"), settings, "objective", where, "objective.name")

    seed = plain["seed"]
    seed = dict.fromkeys(("data", "init", "memory", "rollout"), seed) if not isinstance(seed, dict) else seed
    run = RunConfig(
        name=str(plain["name"]),
        method=method,
        order=order,
        stream=stream,
        stream_settings=stream_settings,
        prompt=typed(Prompt, plain["prompt"], "prompt", where),
        model=model,
        kind=kind,
        objective=objective,
        strategies=strategies_of(plain["strategies"], instances or {}, where),
        train=typed(Train, plain["train"], "train", where),
        engine=typed(EngineSection, plain["engine"], "engine", where),
        generation=typed(Generation, plain["generation"], "generation", where),
        evaluate=evaluate,
        probes=components(PROBES, evaluate.probes, "evaluate.probes", where),
        trackers=components(TRACKERS, plain["trackers"], "trackers", where),
        checkpoint=typed(Checkpoint, plain["checkpoint"], "checkpoint", where),
        seed=typed(Seeds, seed, "seed", where),
        plain={k: v for k, v in plain.items() if k not in COMPARISON_KEYS},
    )
    return replace(run, then=tuple(part_of(run, p, f"stream.then[{i}]", where) for i, p in enumerate(stream.then)))


def part_of(run: RunConfig, given: Mapping[str, Any], section: str, where: str) -> RunConfig:
    """The run with a stream of `stream.then`, and its objective, in place of its own."""
    rest = {k: v for k, v in given.items() if k not in ("name", "tasks", "objective")}
    stream = component(STREAMS, given.get("name"), rest, section, where)
    objective, tasks = run.objective, given.get("tasks")
    if "objective" in given:
        asked = given["objective"] if isinstance(given["objective"], Mapping) else {"name": given["objective"]}
        settings = {k: v for k, v in asked.items() if k != "name"}
        objective = component(OBJECTIVES, asked.get("name"), settings, f"{section}.objective", where)
    own: dict[str, Any] = {"name": stream.name, "tasks": tasks, "order": None, "anchors": [], "then": []}
    section_ = typed(StreamSection, {**split_section(StreamSection, run.plain["stream"])[0], **own}, section, where)
    return replace(run, stream=section_, stream_settings=stream.settings, objective=objective)
