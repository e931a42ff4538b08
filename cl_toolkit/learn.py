"""The page: learn one task. It does not change when a method is added."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cl_toolkit.strategy import merge_terms

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.engine.session import Engine, Session
    from cl_toolkit.objective import Objective
    from cl_toolkit.strategy import Strategy
    from cl_toolkit.task_view import TaskView


def learn(
    model: nn.Module,
    task: TaskView,
    objective: Objective,
    strategy: Strategy,
    engine: Engine,
    watch: Callable[[Session], None],
) -> nn.Module:
    """Train `model` on one task and return it, plain and whole. One batch is one optimizer step of the whole job."""
    model = strategy.build(model, task.index)  # prompts, heads appear here; called again when a stopped run goes on
    model = strategy.before_task(model, task)
    task = objective.before_task(model, task)  # rft keeps a reference and may drop examples; sft: nothing
    batches = strategy.batches(model, task, task.batches())  # sized and indexable: the schedule knows its horizon
    with engine.open(model, task, steps=len(batches) * objective.updates) as session:  # optimizer / ZeRO are born here
        for examples in batches:
            batch = objective.encode(session.model, task, session.share(examples))  # this process's share
            for _ in range(objective.updates):
                for part in session.parts(batch):  # micro-batches; part.total: counts over the whole step
                    with session.room():  # what does not fit comes again in smaller parts
                        out = objective.forward(session.model, part)
                        terms = strategy.loss(session.model, part, out)
                        session.backward(merge_terms({objective.name: out.loss}, terms))
                session.step(strategy)  # penalties once, before_step, clip, update
                watch(session)  # progress, log, curves
    return strategy.after_task(model, task)
