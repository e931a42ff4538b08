"""What cannot work is refused here, in one sentence, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, reduce
from itertools import combinations
from operator import getitem
from typing import TYPE_CHECKING, Any

from cl_toolkit.config.able import check_engine, check_generation, check_prefixes
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.parts import tags_of
from cl_toolkit.data.streams import chosen_tasks, task_names
from cl_toolkit.engine import launch
from cl_toolkit.engine.schedules import SCHEDULES, settings
from cl_toolkit.errors import UserError, did_you_mean, listed, quoted
from cl_toolkit.models.kind import built_in
from cl_toolkit.registry import OBJECTIVES, PROBES, SCORERS, STREAMS, made
from cl_toolkit.strategy import LIFE_CYCLES, Tags

if TYPE_CHECKING:
    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.models.sections import AnyAdapter
    from cl_toolkit.objective import Objective


ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")


def check(config: RunConfig, where: str) -> None:
    """Raise UserError for a config that cannot run."""
    check_train(config, where)
    check_objective(config, where)
    check_idle(config, where)
    check_warm_start(config, where)
    check_prompt(config, where)
    check_stream(config, where)
    check_inputs(config, where)
    check_adapter(config, where)
    check_probes(config, where)
    check_strategies(config, where)
    check_prefixes(config, where)
    check_generation(config, check_engine(config, where), where)


def check_prompt(config: RunConfig, where: str) -> None:
    from cl_toolkit.data.rows import Template

    try:
        Template.of(config.prompt.template)
    except ValueError as error:
        raise UserError(f"{where}: prompt.template: {error}") from None


def check_warm_start(config: RunConfig, where: str) -> None:
    """The skills of a warm start must be known."""
    from cl_toolkit.benchmarks.skills import skill_names

    warm_start = config.kind.warm_start
    for name in (warm_start.skills or ()) if warm_start is not None else ():
        if name not in skill_names():
            raise UserError(f"{where}: model.warmup.skills: unknown skill {name!r}{did_you_mean(name, skill_names())}")


def check_train(config: RunConfig, where: str) -> None:
    train = config.train
    if train.lr_scheduler_type not in SCHEDULES:
        near = did_you_mean(train.lr_scheduler_type, SCHEDULES)
        raise UserError(f"{where}: train.lr_scheduler_type: unknown schedule {quoted(train.lr_scheduler_type)}{near}")
    if train.warmup_ratio and train.lr_scheduler_type == "constant":
        raise UserError(
            f"{where}: train.warmup_ratio: {train.warmup_ratio} does nothing: the schedule constant has no warm-up; use "
            "constant_with_warmup"
        )
    own = settings(train)
    if train.lr_scheduler_kwargs and own is None:
        raise UserError(
            f"{where}: train.lr_scheduler_kwargs: the schedule {train.lr_scheduler_type} takes none; use infinite"
        )
    if train.lr_over == "stream" and train.lr_scheduler_type == "constant":
        raise UserError(f"{where}: train.lr_over: stream does nothing: the schedule constant is the same at every step")
    if own is not None and own.anneal_stages and train.lr_over == "stage":
        raise UserError(f"{where}: train.lr_scheduler_kwargs.anneal_stages: true does nothing: train.lr_over is stage")
    if train.lr_per_stage == ():
        raise UserError(f"{where}: train.lr_per_stage: expected a list such as [1.0, 0.5, 0.1], got []")


def check_objective(config: RunConfig, where: str) -> None:
    """It must learn something as it is set."""
    if idle := made(objective_of(config), config.objective.settings, f"{where}: objective").idle:
        raise UserError(f"{where}: objective.{idle}")


def check_idle(config: RunConfig, where: str) -> None:
    """Keys of base.yaml that another key leaves without a meaning must be as they are there."""
    train, curve, prompt = config.train, config.evaluate.forgetting_curve, config.prompt
    linear, off = curve.schedule in ("linear", "off"), prompt.chat_template == "off"
    defaults, unread = base_layer(), config.kind.inputs == ("arrays",)
    idle = [
        ("train", ADAM if train.optim == "sgd" else (), "with train.optim sgd"),
        ("evaluate.forgetting_curve", () if linear else ("every",), f"with schedule {curve.schedule}"),
        ("generation", ("gpu_memory_utilization",) if config.generation.engine == "own" else (), "with engine own"),
        ("prompt", ("chat_template_kwargs", "thoughts") if off else (), "with chat_template off"),
        ("prompt", defaults["prompt"] if unread else (), f"with model {config.model.name}, which reads arrays"),
    ]
    for section, keys, why in idle:
        given, base = (reduce(getitem, section.split("."), plain) for plain in (config.plain, defaults))
        for key in keys:
            if given[key] != base[key]:
                raise UserError(f"{where}: {section}.{key}: {given[key]} does nothing {why}; leave it out")


def check_stream(config: RunConfig, where: str) -> None:
    section = config.stream
    names = task_names(config, where)
    for key, wanted in (("tasks", section.tasks or ()), ("anchors", section.anchors)):
        for name in wanted:
            if name not in names:
                raise UserError(f"{where}: stream.{key}: unknown task {quoted(name)}{did_you_mean(name, names)}")
        if len(set(wanted)) < len(wanted):
            raise UserError(f"{where}: stream.{key}: a task is named twice: {listed(wanted)}")
    if section.tasks is not None and not section.tasks:
        raise UserError(f"{where}: stream.tasks: is empty; expected at least one task")
    if not section.tasks and set(names) <= set(section.anchors):
        raise UserError(f"{where}: stream.anchors: names every task of the stream; none is left to learn")
    if both := set(section.anchors) & set(section.tasks or ()):
        raise UserError(
            f"{where}: stream.anchors: {', '.join(sorted(both))} is also a task; an anchor is never trained"
        )
    if section.scenario == "class" and config.regime.restarts:
        raise UserError(
            f"{where}: stream.scenario: class: a model of view {section.view} knows one task's answers only"
        )
    check_scorers(getattr(config.stream_settings, "scorer", None), names, where)
    if (config.regime.restarts or not config.regime.trained) and config.strategies:
        raise UserError(
            f"{where}: stream.view: {section.view}: takes no strategies, since nothing is kept from task to task; "
            f"got {', '.join(s.name for s in config.strategies)}"
        )


def check_parts(config: RunConfig, where: str) -> None:
    """What the streams of `stream.then` must have in common with the first."""
    order, tasks = config.stream.order, [name for part in (config, *config.then) for name in chosen_tasks(part, where)]
    for name in tasks:
        if tasks.count(name) > 1:
            raise UserError(
                f"{where}: stream.then: two of the streams have a task {quoted(name)}; a task's name is its own"
            )
    for name in order or ():
        if name not in tasks:
            raise UserError(f"{where}: stream.order: unknown task {quoted(name)}{did_you_mean(name, tasks)}")
    if order is not None and sorted(order) != sorted(tasks):
        raise UserError(f"{where}: stream.order: expected each of {listed(tasks)} once, got {listed(order)}")
    for part in config.then:
        if part.objective != config.objective and "classes" in (objective_of(config).gives | objective_of(part).gives):
            raise UserError(
                f"{where}: stream.then: objectives {config.objective.name} and {part.objective.name} cannot follow each other: "
                "one of them gives the model another head"
            )


def objective_of(config: RunConfig) -> type[Objective]:
    """The class of a config's objective."""
    return OBJECTIVES.get(config.objective.name, "objective.name")


def check_scorers(scorer: Any, names: list[str], where: str) -> None:
    """Scorers must be known, and the tasks that they are for."""
    for task in scorer if isinstance(scorer, dict) else ():
        if task not in names:
            raise UserError(f"{where}: stream.scorer: no task {quoted(task)}{did_you_mean(str(task), names)}")
    for name in scorer.values() if isinstance(scorer, dict) else [scorer] if scorer else []:
        SCORERS.get(name, f"{where}: stream.scorer")


def check_inputs(config: RunConfig, where: str) -> None:
    """Stream, model, objective and strategies must be made for the same kind of examples."""
    place, model = f"{where}: stream.name", config.kind
    stream = made(STREAMS.get(config.stream.name, place), config.stream_settings, place)
    kind = getattr(stream, "inputs", "conversations")
    if kind not in model.inputs:
        fitting = [name for name, other in built_in().items() if kind in other.inputs]
        raise UserError(
            f"{where}: stream.name: {config.stream.name} gives {kind}, model {model.name} takes "
            f"{' and '.join(model.inputs)}; use {', or '.join(filter(None, [' or '.join(fitting), 'another stream']))}"
        )
    if not model.adaptable and config.model.adapter is not None:
        raise UserError(f"{where}: model.adapter: is for language models and text encoders; {model.name} has none")
    objective = OBJECTIVES.get(config.objective.name, f"{where}: objective.name")
    users = [(f"objective {config.objective.name}", objective.inputs)]
    users += [(f"strategies.{c.name}", tags_of(c).inputs) for c in config.strategies]
    for name, inputs in users:
        if inputs is not None and kind not in inputs:
            raise UserError(
                f"{where}: {name}: learns from {' and '.join(inputs)}; stream {config.stream.name} gives {kind}"
            )
    for lacking in sorted(objective.needs - model.gives):
        givers = objectives_that(lambda other: other.needs <= model.gives)
        raise UserError(
            f"{where}: objective.name: {config.objective.name} needs a model that gives {lacking}, model {model.name} gives "
            f"{' and '.join(sorted(model.gives))}; with it use objective {' or '.join(givers)}"
        )
    for component in config.strategies:
        for lacking in sorted(tags_of(component).of_model - model.gives):
            raise UserError(
                f"{where}: strategies.{component.name}: needs a model that gives {lacking}, as it is set; model {model.name} "
                f"gives {' and '.join(sorted(model.gives))}"
            )
    if not objective.divisible and config.train.per_device_train_batch_size is not None:
        raise UserError(
            f"{where}: train.per_device_train_batch_size: objective {config.objective.name} looks at a whole step at once "
            "and cannot be cut; set it to null"
        )
    if config.train.packing is not None and (not objective.divisible or "logits" not in model.gives):
        raise UserError(
            f"{where}: train.packing: {config.train.packing}: packs several examples into a row, for objectives that "
            f"learn from each token; objective {config.objective.name} with model {model.name} does not; set it to null"
        )
    if config.train.packing is not None and not model.packable:
        raise UserError(
            f"{where}: train.packing: {config.train.packing}: packs several examples into a row, and {model.name} reads each "
            "question in a row of its own; set it to null"
        )
    train = config.train
    blocks = {"compile": train.compile != "none", "gradient_checkpointing": train.gradient_checkpointing}
    for key, wanted in blocks.items():
        if wanted and "arrays" in model.inputs:
            raise UserError(f"{where}: train.{key}: is for models made of blocks; {model.name} has none; leave it out")
    if not objective.divisible and launch.world() > 1:
        raise UserError(
            f"{where}: objective.name: {config.objective.name} looks at a whole step at once and cannot be cut; use one process"
        )


def check_adapter(config: RunConfig, where: str) -> None:
    """The adapter's life cycle, and what strategies want of an adapter."""
    adapter = config.model.adapter
    for one in () if adapter is None else adapter.tasks or (adapter,):
        check_one_adapter(one, config, where)


def check_one_adapter(adapter: AnyAdapter, config: RunConfig, where: str) -> None:
    """An adapter as a task begins it."""
    if (able := adapter.known) is None:
        from cl_toolkit.models.trials import abilities

        with told_where(where):
            able = abilities(adapter)
    if why := able.cannot.get(adapter.between_tasks):
        can = [life for life in LIFE_CYCLES if life is not None and life not in able.cannot]
        raise UserError(
            f"{where}: model.adapter.between_tasks: {adapter.between_tasks}: an adapter of type {adapter.type} cannot: {why}; "
            f"use {' or '.join(can)}"
        )
    if able.alone and launch.world() > 1:
        raise UserError(
            f"{where}: model.adapter.type: {adapter.type} edits gradients in hooks of its own, which see one process and not "
            "the whole job; use one process"
        )
    for component in config.strategies:
        if lacking := tags_of(component).of_adapter - able.gives:
            raise UserError(
                f"{where}: strategies.{component.name}: needs {' and '.join(sorted(lacking))} of the adapter, which type "
                f"{adapter.type} does not give as it is set; use plain lora"
            )


@contextmanager
def told_where(where: str) -> Iterator[None]:
    """A refusal with the place in the config before it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_probes(config: RunConfig, where: str) -> None:
    """The model must give what they ask for. Under an objective that brings classes of its own it says those alone, and what it
    makes of them is no distribution (SupCon's prototypes)."""
    model, with_classes = config.kind, "classes" in objective_of(config).gives
    gives = model.gives & {"hidden", "classes"} if with_classes else model.gives
    said = f"{model.name} under objective {config.objective.name}" if with_classes else model.name
    keys = {f"evaluate.probes.{c.name}": c.name for c in config.probes}
    needs = {key: PROBES.get(name, f"{where}: {key}").needs for key, name in keys.items()}
    if config.evaluate.forgetting_curve.loss:
        needs["evaluate.forgetting_curve.loss"] = frozenset({"outputs"})
    for key, its in needs.items():
        for lacking in sorted(its - gives):
            raise UserError(
                f"{where}: {key}: needs a model that gives {lacking}, model {said} gives {' and '.join(sorted(gives))}; "
                "leave it out"
            )


def check_strategies(config: RunConfig, where: str) -> None:
    """Each must work with the adapter and the objective, and any two of them together."""
    tags = {c.name: tags_of(c) for c in config.strategies}
    for (a, its), (b, others) in combinations(tags.items(), 2):
        if why := conflict(its, others):
            raise UserError(f"{where}: strategies: {a} and {b} cannot be used together: {why}")
    adapter = config.model.adapter
    life_cycle = adapter.between_tasks if adapter is not None else None
    for name, its in tags.items():
        if life_cycle not in its.life_cycles:
            got = life_cycle or "no adapter"
            raise UserError(f"{where}: strategies.{name}: needs {adapters_said(its.life_cycles)}; got {got}")
        if its.needs_trained and adapter is not None and config.stream.anchors:
            raise UserError(
                f"{where}: stream.anchors: strategies.{name} looks at trained weights, and an anchor comes before the "
                "adapter is there; leave out the anchors or the adapter"
            )
    check_needs({name: its.needs for name, its in tags.items()}, config.objective.name, where)


def check_anchors(config: RunConfig, where: str) -> None:
    """Who does nothing without anchors must have some. They stand beside the first stream, for those of `stream.then` too."""
    for component in () if config.stream.anchors else config.strategies:
        its = tags_of(component)
        if its.anchored or its.validates:
            uses = "checks them" if its.validates else "does nothing without them, as it is set"
            raise UserError(
                f"{where}: stream.anchors: strategies.{component.name} {uses}; expected one at least, got none"
            )


def conflict(one: Tags, other: Tags) -> str:
    """Why two strategies cannot work in one run; "" where they can."""
    if both := one.owns & other.owns:
        return f"only one of them can own {' and '.join(sorted(both))}"
    if not set(one.life_cycles) & set(other.life_cycles):
        return f"one needs {adapters_said(one.life_cycles)}, the other {adapters_said(other.life_cycles)}"
    return ""


def adapters_said(life_cycles: Sequence[str | None]) -> str:
    """`model.adapter.between_tasks: continue, or no adapter`."""
    named = " or ".join(name for name in LIFE_CYCLES if name in life_cycles and name is not None)
    without = ", or no adapter" if named else "no adapter"
    return f"model.adapter.between_tasks: {named}" + (without if None in life_cycles else "")


def objectives_that(fit: Callable[[type[Objective]], bool]) -> list[str]:
    """The names of those objectives; a plug-in that cannot be loaded is none of them."""
    found = []
    for name in OBJECTIVES:
        with suppress(UserError):
            if fit(OBJECTIVES.get(name, "objective.name")):
                found.append(name)
    return found


def _gives(everything: frozenset[str], objective: type[Objective]) -> bool:
    return everything <= objective.gives


def check_needs(needs: Mapping[str, frozenset[str]], objective: str, where: str) -> None:
    """The objective must give what the strategies need. needs: of each, by its name."""
    given = OBJECTIVES.get(objective, f"{where}: objective.name").gives
    for name, its in needs.items():
        if its <= given:
            continue
        everything = frozenset().union(*needs.values())
        givers = objectives_that(partial(_gives, everything))
        needy = f"{' and '.join(needs)} need{'s' if len(needs) == 1 else ''}"
        hint = f"use {' or '.join(givers)}" if givers else f"no objective gives all that {needy}"
        raise UserError(
            f"{where}: strategies.{name}: needs {' and '.join(sorted(its - given))}, which objective {objective} does not "
            f"give; {hint}"
        )
