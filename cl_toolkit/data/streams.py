"""From a config to a stream: build, limit, order, view, check."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from cl_toolkit.data import regimes as views
from cl_toolkit.data.facts import SPLITS, facts_of
from cl_toolkit.data.kept import NotPlain, cache_dir, keep, opened
from cl_toolkit.data.splits import Known, ReadWhenAsked
from cl_toolkit.errors import UserError, guest, listed, quoted
from cl_toolkit.registry import OBJECTIVES, STREAMS, made
from cl_toolkit.sources import digest_of, toolkit_source
from cl_toolkit.types import Example, Message, Stream, Task

if TYPE_CHECKING:
    from pathlib import Path

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
    """The names of the tasks of a config's own stream: those that it names, else all that are no anchors."""
    section = config.stream
    return list(section.tasks or (name for name in task_names(config, where) if name not in section.anchors))


def build_stream(config: RunConfig) -> Stream:
    """The stream of a run, checked: every task has training examples and examples to be scored on."""
    section = config.stream
    tasks = [*read_tasks(config, chosen_tasks(config, "the config"))]  # a list of its own: what was read is read once
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
MANY = 10_000
"""Examples from which on what a stream gives is kept on disk: fewer are read in less time than it takes to look for them."""


def read_tasks(config: RunConfig, names: Sequence[str]) -> list[Task]:
    """What the config's stream gives for these names. A stream that has a `version` (beside its settings all that its tasks
    depend on, as text) is read once in a process, and again when that is another one; what is much is read once by all."""
    place = f"stream.name: {config.stream.name}"
    builder = made(STREAMS.get(config.stream.name, "stream.name"), config.stream_settings, "stream.name")
    if not names or not has_version(type(builder)):
        return [in_memory(task) for task in tasks_of(builder, names, config.prompt, place)]
    version = builder.version(names)
    key = type(builder), repr(config.stream_settings), repr(config.prompt), tuple(names), version
    if key in READ:
        return READ[key]
    folder = cache_dir() / "readings" / digest_of([reader_of(config.stream.name).encode(), repr(key[1:]).encode()])
    tasks = opened(folder)
    if tasks is None:
        tasks = read_anew(builder, names, config.prompt, place, folder)
        if builder.version(names) != version:  # it was edited meanwhile
            shutil.rmtree(folder, ignore_errors=True)
            return tasks
    while len(READ) >= KEPT:
        READ.pop(next(iter(READ)))
    READ[key] = tasks
    return tasks


def reader_of(name: str) -> str:
    """A hash over the code that makes examples of files: the toolkit's, and that of a guest's class."""
    source = STREAMS.source(name)
    return f"{toolkit_source()} {source and source.digest}"


def read_anew(builder: Any, names: Sequence[str], prompt: Prompt, place: str, folder: Path) -> list[Task]:
    """Tasks, checked; in memory, or where they are many and nothing but text, on disk."""
    with no_collection():
        tasks = tasks_of(builder, names, prompt, place)
        few = at_most(tasks, MANY)
        if few is None:
            with suppress(NotPlain, OSError):
                return keep(tasks, folder)
        return few or [in_memory(task) for task in tasks]


def at_most(tasks: Sequence[Task], most: int) -> list[Task] | None:
    """The tasks with their examples in memory; None where more than so many would have to be read."""
    found = []
    for task in tasks:
        splits = {split: getattr(task, split) for split in SPLITS}
        for split, examples in splits.items():
            if not isinstance(examples, Known):
                splits[split] = tuple(islice(examples, most + 1))
                most -= len(splits[split])
                if most < 0:
                    return None
        found.append(replace(task, **splits))
    return found


def in_memory(task: Task) -> Task:
    """The task with its examples in memory, or as they can be made at any time."""
    train, valid, test = (s if isinstance(s, Known) else tuple(s) for s in (task.train, task.valid, task.test))
    return replace(task, train=train, valid=valid, test=test)


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
    """What a stream's `tasks` gives for these names: a guest's stream has no other contract. Examples are checked as they are
    gone through."""
    method = f"{type(builder).__name__}.tasks"
    with guest(place, method):
        tasks = builder.tasks(list(names), prompt)
    run = partial(guest, place, method)
    place = f"{place}: {method}"
    if not isinstance(tasks, (list, tuple)) or not all(isinstance(task, Task) for task in tasks):
        raise UserError(f"{place}: expected a list of Task, got {quoted(tasks)}")
    if [task.name for task in tasks] != list(names):
        raise UserError(f"{place}: expected the tasks {listed(names)}, got {listed(str(task.name) for task in tasks)}")
    return [replace(task, **{split: checked(task, split, place, run) for split in SPLITS}) for task in tasks]


def checked(task: Task, split: str, place: str, run: Callable[[], AbstractContextManager]) -> Sequence[Example]:
    """A split of which each example is checked when it is met. run: what the stream's own code runs in."""
    examples, here = getattr(task, split), f"{place}: task {task.name}: {split}"
    if not isinstance(examples, Sequence) or isinstance(examples, str):
        raise UserError(f"{here}: expected a tuple of Example, got {quoted(examples)}")
    if isinstance(examples, Known):
        with run():
            if not len(examples):
                return ()
            check_example(examples[0], here)
        return examples

    def read() -> Iterator[Example]:
        with run():
            for example in examples:
                check_example(example, here)
                yield example

    return ReadWhenAsked(read)


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
        for split in SPLITS:
            here = f"task {task.name}, {split}"
            for id_ in facts_of(task, split).ids:
                if id_ in owner:
                    raise UserError(
                        f"stream.name: {stream.name}: two examples have the id {quoted(id_)} "
                        f"({owner[id_]}; {here}); ids must differ over all tasks and splits"
                    )
                owner[id_] = here
