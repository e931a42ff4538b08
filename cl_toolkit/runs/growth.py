"""A stream that grows: a run on the first tasks of a stream goes on with the others, and its record is that of one run.

The rows that are there keep their cells. Where a row also asks for the new tasks, the model of that row answers: the start
model, or a checkpoint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.schedules import needs_end
from cl_toolkit.errors import UserError
from cl_toolkit.measure.matrix import Matrix
from cl_toolkit.measure.probe import look
from cl_toolkit.runs import checkpoint, state
from cl_toolkit.runs.identity import changed, changed_parts, differs, settled
from cl_toolkit.runs.record import CELLS, add_row, answer_lines, write_answers
from cl_toolkit.runs.rows import moment_of

if TYPE_CHECKING:
    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.runs.run import Run
    from cl_toolkit.types import Stream


def obstacle(
    record: Mapping[str, Any], folder: Path, config: RunConfig, stream: Stream, parts: Mapping[str, Any]
) -> str | None:
    """Why a stored run is neither this one nor one on the first tasks of this stream, in words; None if it is."""
    before, now = record["tasks"], [task.name for task in stream.tasks]
    why = changed(record, config.plain, parts)
    if why is None or len(now) <= len(before):
        return why
    old, new = without_tasks(record["config"]), without_tasks(config.plain)
    if found := differs(old, new):
        return f"another config: {found}"
    for i, name in enumerate(before):
        if now[i] != name:
            return f"other tasks: task {i + 1} is {name} there, {now[i]} here"
    known = parts["data"]
    if why := changed_parts(
        record["identity"], {**parts, "data": {name: known.get(name) for name in record["identity"]["data"]}}
    ):
        return why
    for old_stage, stage in zip(record["stages"], stream.stages, strict=False):
        if found := differs(old_stage, stage.plain()):
            return f"another stage {old_stage['row']}: {found}"
    if config.probes:
        return "more tasks, and evaluate.probes look at all tasks from the start"
    if needs_end(config.train) and not config.regime.restarts:
        return (
            f"more tasks, and the schedule {config.train.lr_scheduler_type} over the stream ends with the last of them"
        )
    if record["stages"] and checkpoint.newest(folder / "checkpoints") is None:
        return f"of its first {len(before)} tasks, and its checkpoints are gone"
    return None


def without_tasks(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config without what it says of the tasks and their order."""
    kept = settled(config)
    return {**kept, "stream": {k: v for k, v in kept["stream"].items() if k not in ("tasks", "order")}}


def grown(run: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run on the first tasks, as this run would have it at the same place. Raises UserError where a row asks
    for the new tasks and the weights of then are gone."""
    longer, old = copy.deepcopy(run.record), len(record["tasks"])
    for key in ("provenance", "losses", "adapters", "cost", "probes", "answers"):
        longer[key] = copy.deepcopy(record[key])
    for row in range(old + 1):
        longer["anchor_matrix"][row] = list(record["anchor_matrix"][row])
        for key in CELLS:
            longer[key][row][:old] = record[key][row]
    # row 0 is last: its model is the start model, which the run then goes on with
    for done in (*range(1, len(record["stages"]) + 1), 0):
        fill(run, longer, done, set(record["tasks"]))
    return longer


def fill(run: Run, record: dict[str, Any], done: int, known: set[str]) -> None:
    """The cells of the new tasks in the row after so many stages."""
    stage = run.stream.stages[done - 1] if done else None
    moment = moment_of(run, "task_end" if done else "start", stage)
    anchors = {anchor.name for anchor in run.stream.anchors}
    missing = tuple(name for name in moment.scored if name not in known | anchors)
    if not missing:
        return
    place = state.place_of(run, done)
    if done and not place.is_dir():
        raise UserError(
            f"{run.folder}: row {moment.row} of its matrix asks for {missing[0]} too, and the weights of then are gone; a "
            "stream grows with evaluate.tasks: seen, or with checkpoint.keep: all from the beginning"
        )
    if done:
        kept, weights = checkpoint.load(place)
        run.ever_trained = set(kept["ever_trained"])
        state.put_back(run, done, weights, str(place))
    matrix = Matrix()
    rows = look(run.answers, run.model, {"": matrix}, replace(moment, scored=missing))[""]
    add_row(record, moment.row, rows)
    if done:
        run.model = run.load_model()
    if run.writes:
        said = {name: answer_lines(scored) for name, scored in matrix.found.items()}
        for line in (run.folder / "answers" / f"row-{moment.row}.jsonl").read_text(encoding="utf-8").splitlines():
            if (task := json.loads(line)["task"]) not in missing:  # they are there if growing was stopped before
                said.setdefault(task, []).append(line)
        lines = [line for task in moment.scored for line in said.get(task, ())]
        name, checksum = write_answers(run.folder, moment.row, lines)
        record["answers"][name] = checksum
