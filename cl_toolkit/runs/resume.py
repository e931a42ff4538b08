"""Stop anywhere, go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.errors import UserError
from cl_toolkit.runs import checkpoint, growth, state

if TYPE_CHECKING:
    from cl_toolkit.runs.run import Run


def restore(run: Run) -> bool:
    """Go on from the newest checkpoint, if there is one, also from one of a run on the first tasks alone; raises UserError
    where it belongs to another run."""
    path = checkpoint.newest(run.folder / "checkpoints")
    if path is None:
        return False
    kept, weights = checkpoint.load(path, run.examples)
    record = kept["record"]
    if record["provenance"]["model_hash"] != run.record["provenance"]["model_hash"]:
        raise UserError(f"{path}: started from another model; move it away to start anew")
    if why := growth.obstacle(record, run.folder, run.config, run.stream, run.identity):
        raise UserError(f"{path}: is of another run ({why}); choose another --out or move it away")
    if len(record["tasks"]) < len(run.stream.tasks):
        record = growth.grown(run, record)
    record["provenance"]["resumed"] = [*record["provenance"].get("resumed", ()), run.record["provenance"]["versions"]]
    run.adopt(record)
    run.codec.truncated_ids |= set(kept["truncated"])
    state.take_back(run, kept)
    next_stage = run.stream.stages[run.tasks_done] if run.tasks_done < len(run.stream.stages) else None
    if next_stage is None or not next_stage.fresh:
        state.put_back(run, run.tasks_done, weights, str(path))
        for name, weight in run.model.named_parameters():  # a strategy may have frozen it once and for all
            weight.requires_grad = name in kept["trained"]
    return True
