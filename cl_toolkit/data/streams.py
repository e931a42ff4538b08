"""From a config to a stream: build, limit, order, view, check."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cl_toolkit.data import regimes as views
from cl_toolkit.errors import UserError, guest, listed, quoted
from cl_toolkit.registry import OBJECTIVES, STREAMS, made
from cl_toolkit.sources import digest_of
from cl_toolkit.types import Example, Message, Stream, Task

if TYPE_CHECKING:
    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.models.sections import Prompt


MAX_TASKS = 1000
"""Tasks of a stream: every row scores every task, so the work grows with the square of their number."""


def task_names(config: RunConfig, where: str) -> list[str]:
    """The names of all tasks that a config's stream has, as the stream says."""
    place = f"{where}: stream.name"
    names = names_of(made(STREAMS.get(config.stream.name, place), config.stream_settings, place), place)
    for key, many in (("name", names), ("tasks", config.stream.tasks or ())):
        if len(many) > MAX_TASKS:
            raise UserError(f"{where}: stream.{key}: {len(many)} tasks; expected at most {MAX_TASKS}")
    return names


def names_of(builder: Any, place: str) -> list[str]:
    """What a stream's `names` gives, checked."""
    method = f"{type(builder).__name__}.names"
    with guest(place, method):
        names = builder.names()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place}: {method}: expected a list of texts, got {quoted(names)}")
    if not names:
        raise UserError(f"{place}: {method}: gives no task")
    return list(names)


def chosen_tasks(config: RunConfig, where: str) -> list[str]:
    """The names of the tasks of a config's own stream."""
    return list(config.stream.tasks or task_names(config, where))


def build_stream(config: RunConfig) -> Stream:
    """The stream of a run, checked: every task has training examples and examples to be scored on."""
    section = config.stream
    tasks = read_tasks(config, chosen_tasks(config, "the config"))
    for part in config.then:
        more = read_tasks(part, chosen_tasks(part, "the config"))
        tasks += [replace(task, objective=part.objective) for task in more]
    anchors = read_tasks(config, section.anchors)
    stream = Stream.of(section.name, tasks, anchors, section.scenario == "class")
    check_ids(stream)
    stream = views.limit(stream, section.limit.train, section.limit.valid, section.limit.test)
    if section.order:
        stream = views.order(stream, section.order)
    split = config.evaluate.split
    path = getattr(config.stream_settings, "path", None)
    place = f"stream.name: {section.name}" if path is None else f"stream.path: {path}"
    for task in stream.all_tasks:
        if not task.train and task in stream.tasks:
            raise UserError(f"{place}: task {task.name}: has no training examples")
        scored = getattr(task, split)
        if not scored:
            raise UserError(
                f"{place}: task {task.name}: has no {split} examples to be scored on (evaluate.split: {split})"
            )
    config.kind.check_stream(stream, "classes" in OBJECTIVES.get(config.objective.name, "objective.name").gives)
    return views.VIEWS[section.view](stream) if section.view else stream


READ: dict[tuple, list[Task]] = {}
"""Tasks that this process has read, by all that they depend on; the newest `KEPT` readings."""
KEPT = 4


def read_tasks(config: RunConfig, names: Sequence[str]) -> list[Task]:
    """What the config's stream gives for these names. A stream that has a `version` (beside its settings all that its tasks
    depend on, as text) is read once in a process, and again when that is another one."""
    place = f"stream.name: {config.stream.name}"
    builder = made(STREAMS.get(config.stream.name, "stream.name"), config.stream_settings, "stream.name")
    if not names or not has_version(type(builder)):
        return tasks_of(builder, names, config.prompt, place)
    version = builder.version(names)
    key = type(builder), repr(config.stream_settings), repr(config.prompt), tuple(names), version
    if key in READ:
        return READ[key]
    with no_collection():
        tasks = tasks_of(builder, names, config.prompt, place)
    if builder.version(names) == version:  # else it was edited meanwhile
        while len(READ) >= KEPT:
            READ.pop(next(iter(READ)))
        READ[key] = tasks
    return tasks


def has_version(stream: type) -> bool:
    """Whether a stream's `version` is of its `tasks`: a guest's class that brings other tasks must bring it too."""
    named = (vars(owner).keys() & {"tasks", "version"} for owner in stream.__mro__)
    return "version" in next((found for found in named if found), ())


@contextmanager
def no_collection() -> Iterator[None]:
    """While very many objects are made that all stay, looking for garbage among them takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tasks_of(builder: Any, names: Sequence[str], prompt: Prompt, place: str) -> list[Task]:
    """What a stream's `tasks` gives for these names, checked: a guest's stream has no other contract."""
    with guest(place, f"{type(builder).__name__}.tasks"):
        tasks = builder.tasks(list(names), prompt)
    place = f"{place}: {type(builder).__name__}.tasks"
    if not isinstance(tasks, (list, tuple)) or not all(isinstance(task, Task) for task in tasks):
        raise UserError(f"{place}: expected a list of Task, got {quoted(tasks)}")
    if [task.name for task in tasks] != list(names):
        raise UserError(f"{place}: expected the tasks {listed(names)}, got {listed(str(task.name) for task in tasks)}")
    for task in tasks:
        for split in ("train", "valid", "test"):
            examples = getattr(task, split)
            if not isinstance(examples, (list, tuple)):
                raise UserError(
                    f"{place}: task {task.name}: {split}: expected a tuple of Example, got {quoted(examples)}"
                )
            for example in examples:
                check_example(example, f"{place}: task {task.name}: {split}")
    return [replace(t, train=tuple(t.train), valid=tuple(t.valid), test=tuple(t.test)) for t in tasks]


def check_example(example: Any, place: str) -> None:
    """The types that everything after relies on."""
    if not isinstance(example, Example):
        raise UserError(f"{place}: expected examples, got {quoted(example)}")
    if not isinstance(example.id, str):
        raise UserError(f"{place}: id: expected text, got {quoted(example.id)}")
    if not isinstance(example.target, str):
        raise UserError(f"{place}: example {example.id}: target: expected text, got {quoted(example.target)}")
    if not isinstance(example.messages, tuple) or not all(isinstance(m, Message) for m in example.messages):
        raise UserError(f"{place}: example {example.id}: messages: expected a tuple of Message")


def check_ids(stream: Stream) -> None:
    """An example is found by its id, over all tasks and splits: its scorer, its tokens, its answers."""
    owner: dict[str, str] = {}
    for task in stream.all_tasks:
        for split in ("train", "valid", "test"):
            here = f"task {task.name}, {split}"
            for example in getattr(task, split):
                if example.id in owner:
                    raise UserError(
                        f"stream.name: {stream.name}: two examples have the id {quoted(example.id)} "
                        f"({owner[example.id]}; {here}); ids must differ over all tasks and splits"
                    )
                owner[example.id] = here


def overlap(stream: Stream, split: str = "test") -> dict[str, int]:
    """Task -> how many examples of its scored split also stand in its training data, with the same question and the same
    target; tasks without any are left out."""
    found = {}
    for task in stream.all_tasks:
        trained = set(map(_content, task.train))
        count = sum(_content(example) in trained for example in getattr(task, split))
        if count:
            found[task.name] = count
    return found


def overlap_lines(stream: Stream, split: str = "test") -> list[str]:
    """What `overlap` found, in words, a line per task."""
    sizes = {task.name: len(getattr(task, split)) for task in stream.all_tasks}
    return [
        f"{name}: {count} of {sizes[name]} {split} examples also stand in the training data"
        for name, count in overlap(stream, split).items()
    ]


def _content(example: Example) -> tuple:
    turns = tuple((m.role, m.content, repr(m.extra) if m.extra else "") for m in example.messages)
    return turns, example.text, example.target, None if example.x is None else example.x.numpy().tobytes()


def task_hash(task: Task) -> str:
    """A hash over everything of a task that can change a number: every field of every example of each split, and the scorer.
    Kept in the task, which never changes."""
    kept = vars(task)
    if "hash" not in kept:
        kept["hash"] = digest_of(_parts(task))
    return kept["hash"]


def _parts(task: Task) -> Iterator[bytes]:
    yield task.scorer.encode()
    for split in ("train", "valid", "test"):
        yield split.encode()
        for e in getattr(task, split):
            turns = [(m.role, m.content, plain_text(m.extra)) for m in e.messages]
            yield repr((e.id, turns, e.target, e.choices, plain_text(e.tools), e.text, e.y)).encode("utf-8", "replace")
            for value in (e.x, *e.images, *(e.extra[key] for key in sorted(e.extra))):
                if value is not None:
                    yield value.numpy().tobytes() if hasattr(value, "numpy") else plain_text(value).encode()


def plain_text(value: Any) -> str:
    """A plain value as one text, whatever order its keys came in."""
    if not value and isinstance(value, (dict, tuple, list)):
        return "{}" if isinstance(value, dict) else "[]"  # most are empty, and encoding takes its time
    return json.dumps(value, sort_keys=True, default=repr)
