"""The laws of streams: what is read is always the same, plain, and fair to be scored on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from cl_toolkit.check.law import Broken, Laws
from cl_toolkit.check.runs import Subject, global_states, moved, stirred
from cl_toolkit.config.build import config_of
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data.facts import SPLITS, overlap_lines, task_hash
from cl_toolkit.data.store import example_from_plain, example_to_plain
from cl_toolkit.data.streams import check_ids, in_memory, names_of, tasks_of
from cl_toolkit.errors import UserError, listed
from cl_toolkit.measure.scorers import as_scorer
from cl_toolkit.models.kind import HEADS, built_in, kind_class
from cl_toolkit.models.sections import Prompt
from cl_toolkit.registry import SCORERS, made
from cl_toolkit.runs.checkpoint import from_plain, to_plain
from cl_toolkit.types import Example, Stream, Task

LAWS = Laws()
law = LAWS.law


class StreamSubject(Subject):
    """A stream, read again and again."""

    def __init__(self, reference: str, thing: type, settings: Mapping[str, Any] | None = None):
        super().__init__(reference, thing, settings)
        self.own = typed(config_of(thing, "check"), self.settings, "stream", "check")
        self.prompt = typed(Prompt, base_layer()["prompt"], "prompt", "check")
        self._names: list[str] | None = None
        self._tasks: list[Task] | None = None

    @property
    def inputs(self) -> str:
        """What its examples are."""
        return getattr(made(self.thing, self.own, "check"), "inputs", "conversations")

    @property
    def names(self) -> list[str]:
        """Its tasks, as it says itself."""
        if self._names is None:
            self._names = self.say()
        return self._names

    @property
    def tasks(self) -> list[Task]:
        """All of them, read once."""
        if self._tasks is None:
            self._tasks = self.read(self.names)
        return self._tasks

    def say(self) -> list[str]:
        """The names, asked anew."""
        return names_of(made(self.thing, self.own, "check"), self.reference)

    def read(self, names: Sequence[str]) -> list[Task]:
        """These tasks, read anew."""
        return [in_memory(t) for t in tasks_of(made(self.thing, self.own, "check"), names, self.prompt, self.reference)]

    def examples(self) -> Iterator[tuple[Task, Example]]:
        """Every example of every split, with its task."""
        return ((task, example) for task in self.tasks for split in SPLITS for example in getattr(task, split))


@law(1, "the names are the tasks", "a config and a report know a task by its name alone")
def names(subject: StreamSubject) -> str:
    doubled = {name for name in subject.names if subject.names.count(name) > 1}
    if doubled:
        raise Broken(f"names: {listed(sorted(doubled))} is there twice")
    if any(not name.strip() for name in subject.names):
        raise Broken("names: one is empty")
    if subject.say() != subject.names:
        raise Broken("names: asked twice, it gives two lists")
    try:
        found = [task.name for task in subject.tasks]
    except UserError as error:
        raise Broken(str(error)) from error
    return f"{len(found)} tasks: {listed(found)}"


@law(2, "reading twice gives the same", "two runs on different data cannot be compared")
def twice(subject: StreamSubject) -> str:
    first = [task_hash(task) for task in subject.tasks]
    for seed in (1, 2):
        with stirred(seed):
            again = subject.read(subject.names)
        for name, mine, task in zip(subject.names, first, again, strict=True):
            if task_hash(task) != mine:
                raise Broken(f"task {name} is another one when it is read again")
    return f"three readings with one hash over {sum(1 for _ in subject.examples())} examples"


@law(3, "a task does not depend on its neighbours", "orders and choices of tasks are compared as if only they differed")
def alone(subject: StreamSubject) -> str:
    whole = {task.name: task_hash(task) for task in subject.tasks}
    asked = [list(reversed(subject.names)), subject.names[-1:], subject.names[::2]]
    for chosen in asked:
        for task in subject.read(chosen):
            if task_hash(task) != whole[task.name]:
                raise Broken(f"task {task.name} is another one when {listed(chosen)} are asked for")
    return f"the same backwards, alone, and with every second left out ({len(whole)} tasks)"


@law(4, "an example has an id of its own", "scores, answers and rehearsal find an example by its id")
def ids(subject: StreamSubject) -> str:
    try:
        check_ids(Stream.of(subject.reference, subject.tasks))
    except UserError as error:
        raise Broken(str(error)) from error
    return f"{sum(1 for _ in subject.examples())} ids over all tasks and splits"


@law(5, "what is scored was not trained", "who learned the test by heart has forgotten nothing")
def apart(subject: StreamSubject) -> str:
    if both := [*overlap_lines(subject.tasks, "test"), *overlap_lines(subject.tasks, "valid")]:
        raise Broken("; ".join(both))
    return "no example of test or valid also stands in its task's train"


@law(6, "every task can be learned and scored", "a run ends where a split is empty")
def splits(subject: StreamSubject) -> str:
    for task in subject.tasks:
        if lacking := [split for split in ("train", "test") if not getattr(task, split)]:
            raise Broken(f"task {task.name} has no {lacking[0]} examples")
    without = [task.name for task in subject.tasks if not task.valid]
    return f"train and test in all; {f'no valid in {listed(without)}: tune cannot use it' if without else 'valid too'}"


FORMS = {
    "conversations": lambda e: bool(e.messages) and e.text is None and e.x is None,
    "documents": lambda e: bool(e.text) and not e.messages and e.x is None,
    "arrays": lambda e: isinstance(e.x, torch.Tensor) and isinstance(e.y, int) and not e.messages and e.text is None,
}
"""What its examples may be -> whether one is of that form."""


@law(7, "its examples are what it says", "a model that takes such examples is chosen by that word")
def inputs(subject: StreamSubject) -> str:
    kinds = [*built_in().values(), *(kind_class({"name": "", "head": head}, "check") for head in HEADS)]
    taken = sorted({word for kind in kinds for word in kind.inputs})
    if subject.inputs not in taken:
        raise Broken(f"inputs: expected a word that a model takes, {' | '.join(taken)}, got {subject.inputs!r}")
    fits = FORMS.get(subject.inputs, lambda example: True)
    for task, example in subject.examples():
        if not fits(example):
            raise Broken(f"task {task.name}: {example.id} is none of the {subject.inputs} that it promises")
    return f"all are {subject.inputs}"


@law(8, "the target can be said", "an answer that is not allowed, or a scorer that cannot read it, scores 0 for ever")
def targets(subject: StreamSubject) -> str:
    classes: dict[int, str] = {}
    for task, example in subject.examples():
        place = f"task {task.name}: {example.id}"
        if example.choices is not None and example.target not in example.choices:
            raise Broken(f"{place}: its target {example.target!r} is none of its choices")
        if example.choices is not None and len(set(example.choices)) < len(example.choices):
            raise Broken(f"{place}: a choice stands there twice")
        if subject.inputs == "arrays" and classes.setdefault(example.y, example.target) != example.target:
            raise Broken(f"{place}: class {example.y} is {classes[example.y]!r} elsewhere and {example.target!r} here")
    for task in subject.tasks:
        scorer = as_scorer(SCORERS.get(task.scorer, f"task {task.name}: scorer"))
        open_ = [e.id for e in (*task.train, *task.test) if e.choices is None]
        if scorer.reads == "choices" and open_:
            raise Broken(f"task {task.name}: the scorer {task.scorer} chooses, and {open_[0]} has no choices")
    return f"scored by {listed(sorted({task.scorer for task in subject.tasks}))}"


@law(9, "reading draws nothing from the others", "a generator that everybody shares makes parts depend on each other")
def generators(subject: StreamSubject) -> str:
    before = global_states()
    subject.read(subject.names)
    if drawn := moved(before):
        raise Broken(f"it draws from the global generator of {drawn[0]}; use random.Random(seed) or torch.Generator()")
    return "no global generator has moved"


@law(10, "an example survives a checkpoint", "a strategy that rehearses stores it as plain data")
def plain(subject: StreamSubject) -> str:
    for task in subject.tasks:
        kept = {}
        for split in SPLITS:
            tensors: dict[str, torch.Tensor] = {}
            try:
                stored = to_plain([example_to_plain(e) for e in getattr(task, split)], tensors)
            except (TypeError, RuntimeError, ValueError) as error:
                raise Broken(f"task {task.name}: {error}") from error
            kept[split] = tuple(example_from_plain(e) for e in from_plain(stored, tensors))
        made = {split: tuple(getattr(task, split)) for split in SPLITS}
        if len({task_hash(Task(name=task.name, scorer=task.scorer, **splits)) for splits in (kept, made)}) > 1:
            raise Broken(f"task {task.name}: stored and read back, an example is another one")
    return "every example is the same after a round trip"
