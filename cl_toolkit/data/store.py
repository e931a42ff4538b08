"""The store of examples that rehearsal draws from: a budget, a rule for what stays, and plain data as its state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from cl_toolkit.data.splits import Joined, taken
from cl_toolkit.types import Example, Message

if TYPE_CHECKING:
    import torch


class ExampleStore:
    """Examples of past tasks, at most `size` in all (None: all are kept).

    policy: `reservoir` (each example seen so far is kept with equal chance, Vitter 1985), `ring` (the newest ones), or
    `quota` (each past task has an equal share, drawn at random; what a small task does not need goes to the others), or
    `worth` (the same, but of each task the examples stay that are worth most). Random numbers come from the generator that is
    passed in; none are drawn while everything fits.
    """

    def __init__(self, size: int | None, policy: str):
        self.size, self.policy = size, policy
        self.items: list[tuple[int, Example]] = []
        self.worth: list[float] = []  # of each item, where it decides who stays
        self.seen = 0

    def __len__(self) -> int:
        return len(self.items)

    def by_task(self) -> dict[int, list[Example]]:
        """Stored examples by the index of their task, oldest task first."""
        groups: dict[int, list[Example]] = {}
        for task, example in self.items:
            groups.setdefault(task, []).append(example)
        return dict(sorted(groups.items()))

    def add(
        self, task: int, examples: Sequence[Example], generator: torch.Generator, worth: Sequence[float] = ()
    ) -> None:
        """Offer a task's examples. worth: of each, for the policy of that name."""
        self.worth += worth
        if self.size is None:
            self.items.extend((task, example) for example in examples)
            self.seen += len(examples)
        elif self.policy in ("quota", "worth"):
            self._add_quota(task, examples, generator)
        elif self.policy == "ring":
            newest = examples[-self.size :] if self.size else ()
            self.items = [*self.items, *((task, e) for e in newest)][-self.size :] if self.size else []
            self.seen += len(examples)
        else:
            self._add_reservoir(task, examples, generator)

    def _add_reservoir(self, task: int, examples: Sequence[Example], generator: torch.Generator) -> None:
        import torch

        assert self.size is not None  # the caller's branch
        stays: dict[int, int] = {}  # slot -> which new example is in it at last: only these are read
        free = range(len(self.items), self.size)
        for place in range(len(examples)):
            self.seen += 1
            if place < len(free):
                stays[free[place]] = place
            elif self.size:
                slot = int(torch.randint(self.seen, (1,), generator=generator))
                if slot < self.size:
                    stays[slot] = place
        for slot in sorted(stays):
            self.items[slot : slot + 1] = [(task, examples[stays[slot]])]

    def _add_quota(self, task: int, examples: Sequence[Example], generator: torch.Generator) -> None:
        import torch

        assert self.size is not None  # the caller's branch
        self.seen += len(examples)
        groups: dict[int, Sequence[Example]] = dict(self.by_task())
        groups[task] = Joined([groups.get(task, ()), examples])
        sizes = [len(group) for group in groups.values()]
        quotas = allocate(self.size, [1.0] * len(sizes), sizes) if sum(sizes) > self.size else sizes
        worth, self.items, self.worth, start = self.worth, [], [], 0
        for quota, (index, group) in zip(quotas, groups.items(), strict=True):
            stay = list(range(len(group)))
            mine, start = worth[start : start + len(group)], start + len(group)  # tasks come one after the other
            if len(group) > quota and mine:
                stay = sorted(sorted(stay, key=lambda i: -mine[i])[:quota])
            elif len(group) > quota:
                stay = sorted(torch.randperm(len(group), generator=generator)[:quota].tolist())
            self.items.extend((index, example) for example in (taken(group, stay) if len(stay) < len(group) else group))
            self.worth += [mine[i] for i in stay] if mine else []

    def nbytes(self) -> int:
        """Bytes of stored text, UTF-8, and of stored tensors, without overhead."""
        texts = sum(
            len(text.encode())
            for _, e in self.items
            for text in (*(m.content for m in e.messages), e.target, e.text or "")
        )
        return texts + sum(getattr(value, "nbytes", 0) for _, e in self.items for value in (e.x, *e.extra.values()))

    def state(self) -> dict[str, Any]:
        """All that is needed to go on. A checkpoint has an example of the run's stream by its id, any other whole."""
        return {"seen": self.seen, "items": [[task, example] for task, example in self.items], "worth": self.worth}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen, self.worth = state["seen"], list(state["worth"])
        self.items = [(task, example) for task, example in state["items"]]


def allocate(budget: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to `weights` that sum to `budget`, by largest remainder.

    No number exceeds its task's size while all together hold enough; what is cut off goes to the others by weight. A
    store smaller than the budget is cycled instead: the shares stay, and examples come more than once.
    """
    counts, open_, left = [0] * len(sizes), list(range(len(sizes))), budget
    full = list(open_) if sum(sizes) >= budget else []
    while full:
        exact = _shares(left, weights, open_)
        full = [i for i in open_ if exact[i] >= sizes[i]]
        for i in full:
            counts[i] = sizes[i]
        open_ = [i for i in open_ if i not in full]
        left = budget - sum(counts)
    exact = _shares(left, weights, open_)
    for i in open_:
        counts[i] = math.floor(exact[i])
    by_remainder = sorted(open_, key=lambda i: (counts[i] - exact[i], -weights[i], i))
    for i in by_remainder[: budget - sum(counts)]:
        counts[i] += 1
    return counts


def _shares(budget: int, weights: Sequence[float], indices: Sequence[int]) -> dict[int, float]:
    """What each of them would get of a budget if numbers need not be whole."""
    total = sum(weights[i] for i in indices)
    # weights that are too small for a number: nothing tells these apart
    return {i: budget * weights[i] / total if total else budget / len(indices) for i in indices}


def example_to_plain(example: Example) -> dict[str, Any]:
    """An example as JSON data (tensors stay tensors)."""
    import torch

    plain = {field.name: getattr(example, field.name) for field in fields(example)}
    empty: tuple[Any, ...] = (None, "", (), {})  # what a field is without a value; a tensor cannot be compared with it
    plain = {k: v for k, v in plain.items() if k == "id" or isinstance(v, torch.Tensor) or v not in empty}
    if "choices" in plain:
        plain["choices"] = list(plain["choices"])
    plain["messages"] = [[m.role, m.content, *([dict(m.extra)] if m.extra else [])] for m in example.messages]
    return plain


def example_from_plain(plain: dict[str, Any]) -> Example:
    """What `example_to_plain` gave, as an Example."""
    plain = dict(plain)
    plain["messages"] = tuple(
        Message(role=role, content=content, extra=dict(*extra)) for role, content, *extra in plain.get("messages", ())
    )
    if "choices" in plain:
        plain["choices"] = tuple(plain["choices"])
    for name in ("tools", "images"):
        if name in plain:
            plain[name] = tuple(plain[name])
    return Example(**plain)
