"""Sequences of examples that need not all be in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, overload

from cl_toolkit.types import Example, Task


class Lazy(Sequence[Example]):
    """A sequence that gives one example by its place, and some of them as a sequence."""

    def at(self, place: int) -> Example:
        """The example at a place from 0 on."""
        raise NotImplementedError

    def take(self, places: Sequence[int]) -> Sequence[Example]:
        """Those at some places."""
        return tuple(self.at(place) for place in places)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        places = range(len(self))[place]
        return self.at(places) if isinstance(places, int) else self.take(places)

    def __iter__(self) -> Iterator[Example]:
        return map(self.at, range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} examples)"


class ReadWhenAsked(Lazy):
    """Examples of a file, which is read when they are gone through: a stream of large files gives this for a split.

    read: gives them all, each time anew.
    """

    def __init__(self, read: Callable[[], Iterable[Example]]):
        self.read = read

    def __iter__(self) -> Iterator[Example]:
        return iter(self.read())

    @cached_property
    def _all(self) -> tuple[Example, ...]:
        return tuple(self.read())

    def __len__(self) -> int:
        return len(self._all)

    def at(self, place: int) -> Example:
        return self._all[place]


class Joined(Lazy):
    """Several sequences, one after the other."""

    def __init__(self, parts: Iterable[Sequence[Example]]):
        self.parts = list(parts)
        self.ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def at(self, place: int) -> Example:
        part = bisect_right(self.ends, place)
        return self.parts[part][place - self.ends[part] + len(self.parts[part])]


def taken(examples: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
    """Those at some places; of a sequence that reads lazily they stay unread."""
    return examples.take(places) if isinstance(examples, Lazy) else tuple(examples[place] for place in places)


class ById(Mapping[str, Example]):
    """The training examples of some tasks by their ids, and which task each is of. None is read before it is asked for."""

    def __init__(self, tasks: Iterable[Task], ids: Callable[[Task], Sequence[str]]):
        self.tasks = list(tasks)
        self._ids = [ids(task) for task in self.tasks]
        self._train = Joined(task.train for task in self.tasks)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id_: place for place, id_ in enumerate(chain.from_iterable(self._ids))}

    def __getitem__(self, id_: str) -> Example:
        return self._train[self._places[id_]]

    def task(self, id_: str) -> Task:
        """The task that an example is of."""
        return self.tasks[bisect_right(self._train.ends, self._places[id_])]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._ids)

    def __len__(self) -> int:
        return len(self._train)
