"""From a config to a stream: build, limit, order, view, check."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cl_toolkit.benchmarks import views
from cl_toolkit.errors import UserError
from cl_toolkit.models import MLP, NetSettings, SmallCNN
from cl_toolkit.registry import OBJECTIVES, SCORERS, STREAMS
from cl_toolkit.types import Stream

if TYPE_CHECKING:
    from cl_toolkit.config import RunConfig


def build_stream(config: RunConfig) -> Stream:
    """The stream of a run, checked: every task has training examples and examples to be scored on."""
    section = config.stream
    builder = STREAMS.get(section.name, "stream.name")(config.stream_settings)
    names = section.tasks or builder.names()
    tasks = builder.tasks(list(names), config.prompt)
    anchors = builder.tasks(list(section.anchors), config.prompt)
    stream = Stream.of(section.name, tasks, anchors)
    stream = views.limit(stream, section.limit.train, section.limit.valid, section.limit.test)
    if section.order:
        stream = views.order(stream, section.order)
    split = config.evaluate.split
    for task in (*stream.scored, *stream.anchors):
        if not task.train and task in stream.scored:
            raise UserError(f"task {task.name}: has no training examples")
        scored = getattr(task, split)
        if not scored:
            raise UserError(f"task {task.name}: has no {split} examples to be scored on (evaluate.split: {split})")
        mode = getattr(SCORERS.get(task.scorer, f"task {task.name}: scorer"), "mode", "generate")
        closed = all(e.choices is not None for e in (*task.train, *scored))
        if mode == "choices" and not closed:
            raise UserError(f"task {task.name}: the scorer {task.scorer} needs choices, and an example has none")
        if section.scenario == "class" and (mode != "choices" or not closed):
            raise UserError(
                f"task {task.name}: stream.scenario: class: needs choices in every example and a scorer that chooses "
                f"(choices or class_accuracy), got {task.scorer}"
            )
    if isinstance(config.model_settings, NetSettings):
        check_arrays(stream, config.model_settings, OBJECTIVES.get(config.objective.name, "objective.name").brings_head)
    return views.VIEWS[section.view](stream) if section.view else stream


def check_arrays(stream: Stream, settings: NetSettings, brings_head: bool) -> None:
    """The arrays and classes must fit the net."""
    for task in (*stream.scored, *stream.anchors):
        for example in task.train:
            shape = tuple(example.x.shape)
            if isinstance(settings, MLP) and example.x.numel() != settings.input_size:
                raise UserError(
                    f"model.input_size: expected {example.x.numel()}, as task {task.name} has arrays of shape {shape}, "
                    f"got {settings.input_size}"
                )
            if isinstance(settings, SmallCNN) and (len(shape) != 3 or shape[0] != settings.channels):
                raise UserError(
                    f"model.channels: {settings.channels}: expected images of shape ({settings.channels}, H, W), task "
                    f"{task.name} has {shape}"
                )
            if not brings_head and example.y >= settings.num_classes:
                raise UserError(
                    f"model.num_classes: expected more than {example.y}, the index of a class of task {task.name}, "
                    f"got {settings.num_classes}"
                )


def data_hash(stream: Stream) -> str:
    """The first 16 hex digits of a SHA-256 over all examples of all splits."""
    digest = hashlib.sha256()
    for task in (*stream.scored, *stream.anchors):
        for split in (task.train, task.valid, task.test):
            for e in split:
                digest.update(repr((task.name, e.id, [(m.role, m.content) for m in e.messages], e.target)).encode())
                if e.x is not None:
                    digest.update(e.x.numpy().tobytes())
    return digest.hexdigest()[:16]
