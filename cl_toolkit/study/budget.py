"""What all methods of a comparison get as much of, and how many steps that leaves to each."""

from __future__ import annotations

from dataclasses import replace

from cl_toolkit.config.schema import Equal, RunConfig
from cl_toolkit.data.regimes import VIEWS
from cl_toolkit.data.streams import chosen_tasks, read_tasks
from cl_toolkit.errors import UserError
from cl_toolkit.strategy import Cost, Strategy
from cl_toolkit.types import Stream, Task

BACKWARD = 2.0
WHOLE = 1 + BACKWARD
"""Forwards that a backward, and a forward with its backward, take as long as."""


def steps_within(run: RunConfig, own: RunConfig, equal: Equal, where: str) -> int:
    """`train.max_steps` of a method with which it gets as much as the comparison's own settings give, to half a step of each
    task. own: the run of these settings. Rehearsed rows and passes count as many as strategies say that they are at most
    (`Cost`). Raises UserError for what cannot be kept."""
    from cl_toolkit.runs.parts import build_objective

    if own.train.max_steps <= 0:
        raise UserError(
            f"{where}: budget.equal: {equal}: needs train.max_steps, since what an epoch is depends on the data of each task"
        )
    if not run.regime.trained:
        return own.train.max_steps
    updates = build_objective(run.objective).updates
    exact = own.train.max_steps * per_step(own, own, equal, where)
    if equal == "passes":
        exact += between_tasks(own, where) - between_tasks(run, where)
    exact /= per_step(run, own, equal, where)
    steps = updates * round(exact / updates)
    if steps < 1:
        raise UserError(
            f"{where}: budget.equal: {equal}: leaves it {max(exact, 0):.2g} steps a task; a longer budget is needed"
        )
    return steps


def per_step(run: RunConfig, own: RunConfig, equal: Equal, where: str) -> float:
    """What a run takes of the budget over all its stages, for each step that a task has."""
    from cl_toolkit.runs.parts import build_objective, build_strategy

    objective, stream = build_objective(run.objective), outline(run)
    if equal == "steps":
        return sum(stage.tasks_at_once for stage in stream.stages)
    if any(part.objective != run.objective for part in run.then):
        raise UserError(f"{where}: budget.equal: {equal}: cannot be kept where stages have objectives of their own")
    size = run.train.global_batch_size
    each = size / objective.updates
    if equal in ("tokens", "passes"):
        reference = build_objective(own.objective)
        sampled = objective.cost().calls or reference.cost().calls
        if sampled or (objective.inputs, objective.reads) != (reference.inputs, reference.reads):
            raise UserError(
                f"{where}: budget.equal: {equal}: how long the rows of objective {run.objective.name} are is not known before; "
                "rows can be kept equal"
            )
        each *= objective.copies
    strategy = build_strategy(run)
    if equal == "passes":
        cost = objective.cost()
        return sum(
            stage.tasks_at_once * each * passes(cost, strategy, size, i, stream)
            for i, stage in enumerate(stream.stages)
        )
    more = [rehearsed(strategy, size, i, stream) if equal != "new_examples" else 0.0 for i in range(len(stream.stages))]
    return sum(stage.tasks_at_once * each * (1 + rows) for stage, rows in zip(stream.stages, more, strict=True))


def passes(found: Cost, strategy: Strategy, size: int, stage: int, stream: Stream) -> float:
    """Forwards for each of the `size` new rows of a stage's step; a backward counts as two of them, as its operations do
    (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). found: what the stage's objective costs. What a strategy does not do in
    a plain first task is not counted there."""
    from cl_toolkit.runs.parts import parts_of

    for part in parts_of(strategy):
        if rehearses(stage, stream) or not part.as_set.forks:
            found += replace(part.cost(size), rows=0.0)
    found += Cost(rows=rehearsed(strategy, size, stage, stream))
    return WHOLE * (1 + found.rows) + found.forwards + BACKWARD * found.backwards


def between_tasks(run: RunConfig, where: str) -> float:
    """Forwards over examples when tasks are over, counted alike. Raises UserError where it is not known before."""
    from cl_toolkit.runs.parts import build_strategy

    cost = build_strategy(run).cost(run.train.global_batch_size)
    if cost.written or cost.looks:
        raise UserError(
            f"{where}: budget.equal: passes: what it writes or looks at between tasks is not known before; rows can be kept "
            "equal"
        )
    return (WHOLE * cost.after_task + cost.read_after) * len(outline(run).stages)


def rehearses(stage: int, stream: Stream) -> bool:
    """Whether there is anything to rehearse in a stage: something was learned before it, or anchors that have training examples
    count as learned."""
    return stage > 0 or any(anchor.train for anchor in stream.anchors)


def rehearsed(strategy: Strategy, size: int, stage: int, stream: Stream) -> float:
    """Rehearsed rows for each of the `size` new ones of a stage's step; in the first stage of those who keep anchors alone."""
    from cl_toolkit.runs.parts import parts_of

    parts = parts_of(strategy) if rehearses(stage, stream) else ()
    return sum(part.cost(size).rows for part in parts if stage > 0 or part.as_set.keeps_anchors)


def outline(run: RunConfig) -> Stream:
    """A run's stages, without reading their examples; anchors are read."""
    names = [name for part in (run, *run.then) for name in chosen_tasks(part, "the config")]
    plain = Stream.of(
        run.stream.name, [Task(name=name, train=()) for name in names], read_tasks(run, run.stream.anchors)
    )
    return VIEWS[run.stream.view](plain) if run.stream.view else plain
