"""Whether texts fit: into the template, into the model's positions, and within what may be generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cl_toolkit.data.facts import facts_of, first_places
from cl_toolkit.errors import UserError
from cl_toolkit.models.documents import is_document
from cl_toolkit.types import Example, Task

if TYPE_CHECKING:
    from cl_toolkit.models.text import TextCodec

LONGEST = 32
"""Of each split the examples with the most characters are looked at; every other one when it is encoded."""


def check_texts(
    codec: TextCodec, tasks: Sequence[Task], split: str, limits: Callable[[Task], Mapping[str, int]]
) -> list[str]:
    """What has to be said before training, in sentences. Raises UserError for what cannot be written or does not fit.
    limits: of a task, the name of each setting that limits an answer, and the tokens."""
    notes = codec.write.unread(codec.prompt)
    if codec.templated and codec.write.written_date:
        notes.append(f"the chat template writes a date into the prompt: {codec.write.written_date} (prompt.date)")
    if not codec.templated and any(len(e.messages) > 1 or codec.prompt.system for t in tasks for e in t.train[:1]):
        notes.append("no chat template: the turns of a conversation are joined as lines, without their roles")
    for task in tasks:
        examples = [*probed(task, "train"), *probed(task, split)]
        if any(map(is_document, examples)):
            check_documents(codec, task, limits(task))
        else:
            notes += _check_task(codec, task, examples, limits(task))
    return notes


def _check_task(codec: TextCodec, task: Task, examples: Sequence[Example], limits: Mapping[str, int]) -> Iterator[str]:
    rows = codec.rows(examples)
    prompt, answer = max(r.prompt for r in rows), max(len(r.tokens) - r.prompt for r in rows)
    for key, limit in limits.items():
        if codec.positions is not None and prompt + limit > codec.positions:
            raise UserError(
                f"task {task.name}: its longest prompt has {prompt} tokens and {key} is {limit}, the model has "
                f"{codec.positions} positions; set prompt.max_prompt_length to {max(1, codec.positions - limit)} or lower {key}"
            )
        if answer > limit:
            yield (
                f"the longest target of task {task.name} has {answer} tokens with its end mark, {key} is {limit}: "
                "such an answer can never be said"
            )
    pairs = [(example, choice) for example in examples for choice in example.choices or ()]
    codec.answers([example for example, _ in pairs], [choice for _, choice in pairs])


def check_documents(codec: TextCodec, task: Task, limits: Mapping[str, int]) -> None:
    """Raise UserError where a row of documents is longer than the model has positions."""
    for key, limit in limits.items():
        if codec.positions is not None and limit > codec.positions:
            raise UserError(
                f"task {task.name}: {key} is {limit}, the model has {codec.positions} positions; lower {key}"
            )


def probed(task: Task, split: str) -> Sequence[Example]:
    """One example of each shape of conversation, and the longest ones."""
    facts, examples = facts_of(task, split), getattr(task, split)
    longest = (np.argsort(-sizes, kind="stable")[:LONGEST] for sizes in (facts.asked, facts.answered))
    return [
        examples[place]
        for place in dict.fromkeys(np.concatenate([first_places(facts.forms), *longest]).astype(int).tolist())
    ]
