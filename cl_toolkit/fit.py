"""Whether it all fits: the model and its adapter, the examples into the template, the model's positions, and what may be
generated. Looked at before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cl_toolkit.codec import ArrayCodec, Codec
from cl_toolkit.errors import UserError
from cl_toolkit.hub import check_start
from cl_toolkit.models import HubModel, build_tiny
from cl_toolkit.registry import OBJECTIVES, SCORERS
from cl_toolkit.scorers import as_scorer
from cl_toolkit.targets import check_targets
from cl_toolkit.types import Example, Stream, Task

if TYPE_CHECKING:
    from cl_toolkit.config import RunConfig


def check_model(config: RunConfig) -> None:
    """Raise UserError for a start model or an adapter of which it can be seen without weights that they cannot work."""
    settings, adapter = config.model_settings, config.model.adapter
    if isinstance(settings, HubModel):
        check_start(config.model.name, settings, adapter, config.frozen_base)
    elif adapter is not None:
        import torch

        with torch.device("meta"):
            check_targets(build_tiny(settings, 0), adapter)


LONGEST = 32
"""Of each split the examples with the most characters are looked at; every other one when it is encoded."""


def check_fit(codec: Codec | ArrayCodec, stream: Stream, config: RunConfig) -> list[str]:
    """What has to be said before training, in sentences. Raises UserError for what cannot be written or does not fit."""
    if isinstance(codec, ArrayCodec):
        return []
    check_model(config)
    notes = []
    if codec.templated and codec.write.written_date:
        notes.append(f"the chat template writes a date into the prompt: {codec.write.written_date} (prompt.date)")
    tasks = (*stream.scored, *stream.anchors)
    if not codec.templated and any(len(e.messages) > 1 or config.prompt.system for t in tasks for e in t.train[:1]):
        notes.append("no chat template: the turns of a conversation are joined as lines, without their roles")
    objective = OBJECTIVES.get(config.objective.name, "objective.name")(config.objective.settings)
    for task in tasks:
        scored = getattr(task, config.evaluate.split)
        generated = as_scorer(SCORERS.get(task.scorer, "scorer")).reads == "answer"
        limits = {}
        if objective.answer_limit is not None and task.train:
            limits[f"objective.{objective.answer_limit[0]}"] = objective.answer_limit[1]
        if generated:
            limits["evaluate.max_new_tokens"] = config.evaluate.max_new_tokens
        notes += _check_task(codec, task, [*probed(task.train), *probed(scored)], limits)
    return notes


def _check_task(codec: Codec, task: Task, examples: Sequence[Example], limits: dict[str, int]) -> Iterator[str]:
    pairs = [codec.ids(e) for e in examples]
    prompt, answer = max(len(p) for p, _ in pairs), max(len(a) for _, a in pairs)
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
    for example in examples:
        for choice in example.choices or ():
            codec.answer(example, choice)


def probed(examples: Sequence[Example]) -> Iterable[Example]:
    """One example of each shape of conversation, and the longest ones."""
    shapes = {}
    for example in examples:
        shapes.setdefault((tuple((m.role, *m.extra) for m in example.messages), bool(example.tools)), example)
    by_prompt = sorted(examples, key=lambda e: -sum(len(m.content) for m in e.messages))[:LONGEST]
    by_answer = sorted(examples, key=lambda e: -len(e.target))[:LONGEST]
    return {id(e): e for e in (*shapes.values(), *by_prompt, *by_answer)}.values()
