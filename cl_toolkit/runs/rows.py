"""What a run asks its model, when, and where the replies go: a row of the matrix, and the rows of its probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cl_toolkit.measure.probe import Moment, Probe, due, look
from cl_toolkit.runs import events
from cl_toolkit.runs.record import add_row, answer_lines, write_answers

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.measure.probe import Ask
    from cl_toolkit.runs.run import Run
    from cl_toolkit.types import Stage


def moment_of(run: Run, kind: Literal["start", "step", "task_end"], stage: Stage | None) -> Moment:
    """Now, as probes see it; within a stage with the counts of its beginning."""
    names = [task.name for task in run.stream.tasks]
    row, cost = 0 if stage is None else stage.row, run.record["cost"]
    columns = run.stream.scored(row, run.config.evaluate.tasks == "seen")
    fresh = stage is not None and stage.fresh
    return Moment(
        kind=kind,
        task="" if stage is None else stage.task.name,
        row=row,
        step=cost["steps"],
        examples_seen=cost["examples"],
        tokens_seen=cost["tokens"],
        exams=run.exams,
        scored=(*(names[i] for i in columns), *(() if fresh else (a.name for a in run.stream.anchors))),
        past=() if stage is None else tuple(names[i] for i in stage.past),
        learned=None if stage is None or stage.learned is None else names[stage.learned],
        allowed=run.stream.allowed(row),
    )


def look_at(
    run: Run, moment: Moment, model: nn.Module, looking: Mapping[str, Probe], answers: Ask | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Those that are due look; rows of the probes go into the record, those of the matrix (without a name) do not. answers:
    who answers, in place of the run's own pass."""
    found = look(answers or run.answers, model, looking, moment)
    for name, rows in found.items():
        if name and rows:
            run.record["probes"][name].extend(rows)
            run.events(events.Measured(probe=name, step=moment.step, rows=rows))
    return found


def fill_row(run: Run, row: int, stage: Stage | None = None) -> None:
    """Score the tasks that a row of the matrix asks for; keep the answers."""
    cost = run.record["cost"]
    moment = moment_of(run, "start" if stage is None else "task_end", stage)
    with run.meter.clock("evaluate"):
        rows = look_at(run, moment, run.model, due({"": run.matrix, **run.probes}, moment), run.asked)[""]
    add_row(run.record, row, rows)
    if run.writes:
        lines = [line for scored in run.matrix.found.values() for line in answer_lines(scored)]
        name, checksum = write_answers(run.folder, row, lines)
        run.record["answers"][name] = checksum
    run.events(events.Scored(row=row, step=cost["steps"], scores={r["task"]: r["score"] for r in rows}))
