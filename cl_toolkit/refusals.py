"""What cannot work is refused here, in one sentence, before a model is loaded."""

from __future__ import annotations

import os
from itertools import combinations
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.deepspeed_config import final_config, zero_stage
from cl_toolkit.errors import UserError, did_you_mean, guest, listed, quoted
from cl_toolkit.registry import OBJECTIVES, SCORERS, STRATEGIES, STREAMS, canonical, made
from cl_toolkit.strategy import refuse_pair

if TYPE_CHECKING:
    from cl_toolkit.config import RunConfig

MAX_TASKS = 1000
"""Tasks of a stream: every row scores every task, so the work grows with the square of their number."""
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)


def check(config: RunConfig, where: str) -> None:
    """Raise UserError for a config that cannot run."""
    check_train(config, where)
    check_prompt(config, where)
    check_stream(config, where)
    check_inputs(config, where)
    check_strategies(config, where)
    check_engine(config, where)


def check_prompt(config: RunConfig, where: str) -> None:
    from cl_toolkit.benchmarks.rows import Template

    try:
        Template.of(config.prompt.template)
    except ValueError as error:
        raise UserError(f"{where}: prompt.template: {error}") from None


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


def check_stream(config: RunConfig, where: str) -> None:
    section = config.stream
    names = task_names(config, where)
    for key, wanted in (("tasks", section.tasks or ()), ("anchors", section.anchors)):
        for name in wanted:
            if name not in names:
                raise UserError(f"{where}: stream.{key}: unknown task {quoted(name)}{did_you_mean(name, names)}")
        if len(set(wanted)) < len(wanted):
            raise UserError(f"{where}: stream.{key}: a task is named twice: {listed(wanted)}")
    tasks = section.tasks or tuple(names)
    for name in section.order or ():
        if name not in tasks:
            raise UserError(f"{where}: stream.order: unknown task {quoted(name)}{did_you_mean(name, tasks)}")
    if section.order is not None and sorted(section.order) != sorted(tasks):
        raise UserError(f"{where}: stream.order: expected each of {listed(tasks)} once, got {listed(section.order)}")
    if section.tasks is not None and not section.tasks:
        raise UserError(f"{where}: stream.tasks: is empty; expected at least one task")
    if both := set(section.anchors) & set(section.tasks or names):
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


def task_names(config: RunConfig, where: str) -> list[str]:
    """The names of all tasks that a config's stream has, as the stream says."""
    cls = STREAMS.get(config.stream.name, f"{where}: stream.name")
    stream = made(cls, config.stream_settings, f"{where}: stream.name")
    with guest(f"{where}: stream.name", f"{cls.__name__}.names"):
        names = stream.names()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: stream.name: {cls.__name__}.names: expected a list of texts, got {quoted(names)}")
    if not names:
        raise UserError(f"{where}: stream.name: {cls.__name__}.names: gives no task")
    for key, many in (("name", names), ("tasks", config.stream.tasks or ())):
        if len(many) > MAX_TASKS:
            raise UserError(f"{where}: stream.{key}: {len(many)} tasks; expected at most {MAX_TASKS}")
    return list(names)


def check_scorers(scorer: Any, names: list[str], where: str) -> None:
    """Scorers must be known, and the tasks that they are for."""
    for task in scorer if isinstance(scorer, dict) else ():
        if task not in names:
            raise UserError(f"{where}: stream.scorer: no task {quoted(task)}{did_you_mean(str(task), names)}")
    for name in scorer.values() if isinstance(scorer, dict) else [scorer] if scorer else []:
        SCORERS.get(name, f"{where}: stream.scorer")


def check_inputs(config: RunConfig, where: str) -> None:
    """Stream, model, objective and strategies must be made for the same kind of examples."""
    from cl_toolkit.models import HubModel, NetSettings

    stream = STREAMS.get(config.stream.name, f"{where}: stream.name")
    kind = getattr(stream, "inputs", "text")
    net = isinstance(config.model_settings, NetSettings)
    if net != (kind == "arrays"):
        use = "a language model" if net else "model mlp or small-cnn"
        raise UserError(f"{where}: stream.name: {config.stream.name} gives {kind}; use {use}, or another stream")
    if net and config.model.adapter is not None:
        raise UserError(
            f"{where}: model.adapter: is for language models and text encoders; {config.model.name} has none"
        )
    objective = OBJECTIVES.get(config.objective.name, f"{where}: objective.name")
    users = [(f"objective {config.objective.name}", objective.inputs)]
    users += [(f"strategies.{c.name}", strategy_class(c).tags.inputs) for c in config.strategies]
    for name, inputs in users:
        if kind not in inputs:
            raise UserError(
                f"{where}: {name}: learns from {' and '.join(inputs)}; stream {config.stream.name} gives {kind}"
            )
    if (
        isinstance(config.model_settings, HubModel)
        and config.model_settings.head == "none"
        and not objective.brings_head
    ):
        raise UserError(
            f"{where}: model.head: none: objective {config.objective.name} needs a head; use objective supcon"
        )
    if not objective.divisible and config.train.per_device_train_batch_size is not None:
        raise UserError(
            f"{where}: train.per_device_train_batch_size: objective {config.objective.name} looks at a whole step at once "
            "and cannot be cut; set it to null"
        )
    if not objective.divisible and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{where}: objective.name: {config.objective.name} looks at a whole step at once and cannot be cut; use one process"
        )


def check_strategies(config: RunConfig, where: str) -> None:
    classes = [(strategy_class(c), c.name) for c in config.strategies]
    for (a, a_name), (b, b_name) in combinations(classes, 2):
        try:
            refuse_pair(a, a_name, b, b_name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    adapter = config.model.adapter
    for cls, name in classes:
        needed = cls.tags.between_tasks
        if needed and (adapter is None or adapter.between_tasks != needed):
            raise UserError(f"{where}: strategies.{name}: needs model.adapter.between_tasks: {needed}")
        if cls.tags.needs_trained and adapter is not None and config.stream.anchors:
            raise UserError(
                f"{where}: stream.anchors: strategies.{name} looks at trained weights, and an anchor comes before the "
                "adapter is there; leave out the anchors or the adapter"
            )
        allowed = cls.tags.life_cycles
        if allowed is not None and adapter is not None and adapter.between_tasks not in allowed:
            raise UserError(
                f"{where}: strategies.{name}: does not work with model.adapter.between_tasks: {adapter.between_tasks}; "
                f"use {' or '.join(allowed)}, or train all weights"
            )
        objectives = cls.tags.objectives
        if objectives is not None and canonical(config.objective.name) not in objectives:
            raise UserError(
                f"{where}: strategies.{name}: does not work with objective {config.objective.name}; "
                f"use {' or '.join(objectives)}"
            )


def strategy_class(component) -> type:
    """The class behind a strategy component; its settings may be a ready instance (notebooks)."""
    from cl_toolkit.strategy import Strategy

    if isinstance(component.settings, Strategy):
        return type(component.settings)
    return STRATEGIES.get(component.name, "strategies")


def engine_name(config: RunConfig) -> str:
    """`torch` for one process; `deepspeed` for several, or when its config is given."""
    if config.engine.name != "auto":
        return config.engine.name
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return "deepspeed" if several or config.engine.deepspeed is not None else "torch"


def check_engine(config: RunConfig, where: str) -> None:
    device = config.engine.device
    if device.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"{where}: engine.device: expected auto | cpu | cuda | mps, got {quoted(device)}")
    if engine_name(config) == "torch":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"{where}: engine.name: torch is for one process; use deepspeed for several")
        if config.engine.deepspeed is not None:
            raise UserError(f"{where}: engine.deepspeed: is given but engine.name is torch; leave one of them out")
        return
    from importlib.util import find_spec

    if find_spec("deepspeed") is None:
        raise UserError(f"{where}: engine.name: deepspeed is not installed here (it is for Linux); use torch")
    try:
        stage = zero_stage(final_config(config.engine.deepspeed, config.train))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    objective = OBJECTIVES.get(config.objective.name, f"{where}: objective.name")
    parts = [(f"objective {config.objective.name}", objective.zero_stages)]
    parts += [(f"strategy {c.name}", strategy_class(c).tags.zero_stages) for c in config.strategies]
    for name, stages in parts:
        if stage not in stages:
            raise UserError(
                f"{where}: engine.deepspeed: {name} does not work at ZeRO-{stage}; use stage {max(stages)} instead"
            )
