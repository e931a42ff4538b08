"""Answers that a model writes to learn from them: samples of its own distribution, and what it would say greedily."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import in_lockstep, in_one_piece
from cl_toolkit.seeds import seed_from

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Example

AT_ONCE = 64
"""Examples that are asked about in one call."""


def sampled(
    model: nn.Module,
    task: TaskView,
    examples: Sequence[Example],
    n: int,
    length: int,
    temperature: float = 1.0,
    label: str = "rollout",
) -> list[list[list[int]]]:
    """Rollouts of the current model: token ids per example and sample, n of each and at most `length` long. What is drawn
    depends on seed, task, step, example and sample number alone, not on the other rows or on the number of processes."""
    step = task.rollouts
    task.rollouts += 1

    def write(part: Sequence[Example]) -> list[list[list[int]]]:
        keys = [(label, task.index, step, e.id, i) for e in part for i in range(n)]
        seeds = [seed_from(task.seeds["rollout"], *key) for key in keys]
        prompts = [prompt for e in part for prompt in [task.codec.ids(e)[0]] * n]
        answers = task.codec.writer(model, task.codec, prompts, length, seeds=seeds, temperature=temperature)
        return [answers[i : i + n] for i in range(0, len(answers), n)]

    return in_calls(model, examples, write)


def greedy(model: nn.Module, task: TaskView, examples: Sequence[Example], length: int) -> list[list[int]]:
    """The current model's greedy answer to each example, as token ids."""

    def write(part: Sequence[Example]) -> list[list[int]]:
        return task.codec.writer(model, task.codec, [task.codec.ids(e)[0] for e in part], length)

    return in_calls(model, examples, write)


def in_calls(model: nn.Module, examples: Sequence[Example], ask: Callable[[Sequence[Example]], list]) -> list:
    """What `ask` gives for a share's examples, a number of them at a time."""
    with in_one_piece(model):
        return [found for part in divided(model, examples) for found in ask(part)]


def divided(model: nn.Module, items: Sequence) -> list[Sequence]:
    """A share's items in parts that are asked about one after the other; in one where every process must make as many calls:
    shares may differ in length, calls may not."""
    at_once = max(len(items), 1) if in_lockstep(model) else AT_ONCE
    return [items[start : start + at_once] for start in range(0, len(items), at_once)]
