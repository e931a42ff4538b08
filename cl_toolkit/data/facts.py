"""What is asked of all examples of a split before the first step, as columns: no example has to be looked at again for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from cl_toolkit.data.store import example_to_plain
from cl_toolkit.lazy import LazyModule
from cl_toolkit.sources import digest_of
from cl_toolkit.types import Example, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

SPLITS = ("train", "valid", "test")
CONTENT = ("messages", "images", "text", "target", "x")
"""The fields by which two examples are the same one, whatever their ids and choices."""


@dataclass(frozen=True)
class Facts:
    """Of n examples, in their order.

    ids. digests: (n, 2) uint64, a hash over every field. contents: (n,) uint64, a hash over question and answer alone.
    choices: (n,) index into `allowed`, -1: none. forms: (n,) index into `shapes`: the roles of the turns with what else they
    say, whether there are tools, the axes of an array. asked, answered: (n,) characters of the question and of the answer.
    classes: (n,) `Example.y`, -1 where it is no class.
    """

    ids: list[str]
    digests: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    choices: NDArray[np.int64]
    forms: NDArray[np.int64]
    asked: NDArray[np.int64]
    answered: NDArray[np.int64]
    classes: NDArray[np.int64]
    allowed: list[tuple[str, ...]]
    shapes: list[Any]

    @staticmethod
    def of(examples: Iterable[Example]) -> Facts:
        """One look at each."""
        found = Looked()
        for example in examples:
            found.add(example)
        return found.facts()

    def take(self, places: NDArray[np.int64]) -> Facts:
        """Of those examples."""
        columns = {name: getattr(self, name)[places] for name in COLUMNS}
        return Facts(ids=[self.ids[i] for i in places], allowed=self.allowed, shapes=self.shapes, **columns)

    def answers(self) -> tuple[str, ...]:
        """All allowed answers in the order in which they are met, each once."""
        met = self.choices[first_places(self.choices)]
        return tuple(dict.fromkeys(choice for i in met if i >= 0 for choice in self.allowed[i]))

    def hash(self) -> str:
        """A hash over every field of every example."""
        return digest_of([self.digests.tobytes()])


COLUMNS = tuple(field.name for field in fields(Facts) if field.name not in ("ids", "allowed", "shapes"))


def first_places(column: NDArray[np.int64]) -> list[int]:
    """Where each different number of a column is met first, in that order."""
    return np.sort(np.unique(column, return_index=True)[1]).tolist()


class Looked:
    """Facts, gathered example by example."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.allowed: dict[tuple[str, ...] | None, int] = {None: -1}
        self.shapes: dict[Any, int] = {}

    def add(self, example: Example) -> tuple[bytes, bool]:
        """Look at one; gives it as one line of text, and whether all of it can be read back from there."""
        line, whole = line_of(example)
        content = line.split(b"\t", 1)[0]
        form = (tuple((m.role, *m.extra) for m in example.messages), bool(example.tools), _axes(example.x))
        row = {
            "digests": hashed(line),
            "contents": hashlib.blake2b(content, digest_size=8).digest(),
            "choices": self.allowed.setdefault(example.choices, len(self.allowed) - 1),
            "forms": self.shapes.setdefault(form, len(self.shapes)),
            "asked": sum(len(m.content) for m in example.messages),
            "answered": len(example.target),
            "classes": example.y if isinstance(example.y, int) else -1,
        }
        self.ids.append(example.id)
        for name, value in row.items():
            self.columns[name].append(value)
        return line, whole

    def facts(self) -> Facts:
        """All that was seen."""
        hashes: dict[str, Any] = {
            "digests": np.frombuffer(b"".join(self.columns["digests"]), np.uint64).reshape(-1, 2),
            "contents": np.frombuffer(b"".join(self.columns["contents"]), np.uint64),
        }
        counts: dict[str, Any] = {
            name: np.array(self.columns[name], np.int64) for name in COLUMNS if name not in hashes
        }
        allowed = [choices for choices in self.allowed if choices is not None]
        return Facts(ids=self.ids, allowed=allowed, shapes=list(self.shapes), **hashes, **counts)


def _axes(array: Any) -> tuple[int, ...] | None:
    return None if array is None else tuple(getattr(array, "shape", ()))


def hashed(line: bytes) -> bytes:
    """The hash of an example's line, 16 bytes."""
    return hashlib.blake2b(line, digest_size=16).digest()


def line_of(example: Example) -> tuple[bytes, bool]:
    """An example as text without a line break, its content, a tab, and the rest; and whether that is all of it (an array stands
    there as its hash alone)."""
    plain = example_to_plain(example)
    parts = {key: plain.pop(key) for key in CONTENT if key in plain}, plain
    try:
        content, rest = map(json.dumps, parts)
        return f"{content}\t{rest}".encode(), True
    except TypeError:
        content, rest = (json.dumps(part, default=_shown) for part in parts)
        return f"{content}\t{rest}".encode(), False


def _shown(value: Any) -> Any:
    """What stands for a value that is no text: of an array a hash."""
    if not hasattr(value, "numpy"):
        return repr(value)
    data = value.numpy().tobytes()
    return [str(value.dtype), list(value.shape), hashlib.blake2b(data, digest_size=16).hexdigest()]


def facts_of(task: Task, split: str) -> Facts:
    """What is known of a task's split. Who reads it lazily knows it; of examples in memory it is found once and kept in the
    task, which never changes."""
    examples = getattr(task, split)
    kept = vars(task).setdefault("facts", {})
    if split not in kept:
        kept[split] = examples.facts if hasattr(examples, "facts") else Facts.of(examples)
    return kept[split]


def task_hash(task: Task) -> str:
    """A hash over everything of a task that can change a number: every field of every example of each split, and the scorer."""
    return digest_of([task.scorer.encode(), *(facts_of(task, split).hash().encode() for split in SPLITS)])


def overlap(tasks: Sequence[Task], split: str = "test", other: str = "train") -> dict[str, int]:
    """Task -> how many examples of a split also stand in another one, with the same question and the same target; tasks without
    any are left out."""
    shared = {t.name: int(np.isin(facts_of(t, split).contents, facts_of(t, other).contents).sum()) for t in tasks}
    return {name: count for name, count in shared.items() if count}


def overlap_lines(tasks: Sequence[Task], split: str = "test") -> list[str]:
    """What examples the splits of tasks share, in words, a line each: the one that is scored and the training data;
    valid and test, since who chooses on the one has then seen the other."""
    sizes = {task.name: len(getattr(task, split)) for task in tasks}
    lines = [
        f"{name}: {count} of {sizes[name]} {split} examples also stand in the training data"
        for name, count in overlap(tasks, split).items()
    ]
    both = overlap(tasks, "valid", "test")
    return lines + [f"{name}: {count} valid examples also stand in test" for name, count in both.items()]
