"""Where a stage stands in its stream, by the record and the plan: also of a run that goes on after a stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.engine.schedules import Standing, needs_end

if TYPE_CHECKING:
    from cl_toolkit.runs.run import Run


def standing_of(run: Run, k: int) -> Standing:
    """Stage k among those that go on from one model. A stage that begins with the start model begins all anew."""
    first, stages = k - run.stream.position(k), run.stream.stages
    done = tuple(row["steps"] for row in run.record["adapters"][first:k])
    later = 0
    if needs_end(run.config.train):
        ends = next((j for j in range(k + 1, len(stages)) if stages[j].fresh), len(stages))
        later = sum(planned(run, j) for j in range(k + 1, ends))
    return Standing(done, later)


def planned(run: Run, k: int) -> int:
    """The optimizer steps of a stage before it has begun. What an objective or a strategy makes of its batches (rft may drop
    examples) shows only then, so that a schedule is at its end where the stream is and may have been a little late."""
    stage = run.stream.stages[k]
    objective = run.objective_of(stage.task)
    return len(run.view(stage.task, k, objective, stage.tasks_at_once).batches()) * objective.updates
