"""Sequences of examples that need not all be in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakValueDictionary

from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import Example, Task

if TYPE_CHECKING:
    import numpy as np

    from cl_toolkit.data.facts import Facts
else:
    np = LazyModule("numpy")


class Lazy(Sequence[Example]):
    """A sequence whose examples are made when they are asked for."""

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


class Known(Lazy):
    """A sequence that knows the `Facts` of its examples without making them, and gives one that somebody still has again."""

    facts: Facts

    def make(self, place: int) -> Example:
        """The example at a place, anew."""
        raise NotImplementedError

    @cached_property
    def _given(self) -> WeakValueDictionary[int, Example]:
        return WeakValueDictionary()

    def __len__(self) -> int:
        return len(self.facts.ids)

    def at(self, place: int) -> Example:
        example = self._given.get(place)
        if example is None:
            example = self._given[place] = self.make(place)
        return example

    def take(self, places: Sequence[int]) -> Part:
        return Part(self, places)

    def answers(self) -> tuple[str, ...]:
        """All allowed answers, each once, in the order in which they are met."""
        return self.facts.answers()


class Part(Known):
    """Some examples of such a sequence."""

    def __init__(self, whole: Known, places: Sequence[int]):
        self.whole, self.places = whole, np.asarray(places, np.int64)

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]  # found when it is asked for
        return self.whole.facts.take(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Example:
        return self.whole.at(int(self.places[place]))

    def take(self, places: Sequence[int]) -> Part:
        return Part(self.whole, self.places[np.asarray(places, np.int64)].tolist())


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
