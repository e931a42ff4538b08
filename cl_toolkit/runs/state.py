"""Stop anywhere, go on: what a run keeps after each task, and how it takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.runs import checkpoint
from cl_toolkit.runs.identity import changed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.runs.run import Run


def saved_weights(run: Run, model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint must hold: every weight that was ever trained or that the start model does not have; the rest never
    changes. After merging the whole model is another one."""
    state, adapter = model.state_dict(), run.config.model.adapter
    if adapter is None or adapter.between_tasks == "merge":
        return state
    return {n: t for n, t in state.items() if n in run.ever_trained or adapters.plain_name(n) not in run.start_names}


def save(run: Run, k: int) -> None:
    """A checkpoint after task k; older ones go when it is on the disk."""
    folder = run.folder / "checkpoints"
    state = {
        "done": run.done,
        "record": run.record,
        "curves": {"rows": run.curves.rows, "ends": run.curves.ends},
        "truncated": sorted(run.codec.truncated_ids),
        "ever_trained": sorted(run.ever_trained),
        "trained": sorted(name for name, weight in run.model.named_parameters() if weight.requires_grad),
        "strategy": run.strategy.state(),
    }
    checkpoint.save(folder / f"task-{k + 1}", state, saved_weights(run, run.model))
    if run.config.checkpoint.keep == "last":
        for older in folder.glob("task-*"):
            if older.name != f"task-{k + 1}":
                checkpoint.discard(older)


def restore(run: Run) -> bool:
    """Go on from the newest checkpoint, if there is one; raises UserError where it belongs to another run."""
    path = checkpoint.newest(run.folder / "checkpoints")
    if path is None:
        return False
    state, weights = checkpoint.load(path)
    record = state["record"]
    if why := changed(record, run.config.plain, run.record["identity"]):
        raise UserError(f"{path}: is of another run ({why}); choose another --out or move it away")
    if record["provenance"]["model_hash"] != run.record["provenance"]["model_hash"]:
        raise UserError(f"{path}: started from another model; move it away to start anew")
    record["provenance"]["resumed"] = [*record["provenance"].get("resumed", ()), run.record["provenance"]["versions"]]
    run.adopt(record)
    run.done = state["done"]
    run.curves.rows, run.curves.ends = state["curves"]["rows"], state["curves"]["ends"]
    run.codec.truncated_ids |= set(state["truncated"])
    run.ever_trained = set(state["ever_trained"])
    run.strategy.load_state(state["strategy"])
    if not run.stream.regime.restarts:
        rebuild(run)
        load_strictly(run, weights, str(path))
        for name, weight in run.model.named_parameters():  # a strategy may have frozen it once and for all
            weight.requires_grad = name in state["trained"]
    return True


def rebuild(run: Run) -> None:
    """The structure that the finished tasks have made: adapters, and what strategies added in `build`."""
    adapter = run.config.model.adapter
    for position in range(run.done):
        run.model = adapters.begin_task(run.model, adapter, position, run.config.seed.init)
        run.model = run.strategy.build(run.model, position)
        run.model = adapters.end_task(run.model, adapter)
    run.model.to(run.engine.device)


def load_strictly(run: Run, weights: dict[str, Tensor], place: str) -> None:
    """Every saved weight has its place, every place its weight."""
    unexpected = run.model.load_state_dict(weights, strict=False).unexpected_keys
    wanted = checkpoint.distinct(saved_weights(run, run.model))
    for name in unexpected:
        raise UserError(
            f"{place}: the weight {name} has no place in this model; what a strategy adds to a model must come from its "
            "hook `build`, which is called again here"
        )
    for name in wanted:
        if name not in weights:
            raise UserError(f"{place}: the weight {name} is missing")
