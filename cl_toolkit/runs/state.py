"""What a run keeps after each stage, and how it takes it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.peft_types import BY_INPUTS, begins_by
from cl_toolkit.runs import checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.runs.reload import Reloaded
    from cl_toolkit.runs.run import Run


def saved_weights(run: Run | Reloaded, model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint must hold: every weight that was ever trained or that the start model does not have; the rest never
    changes. After merging the whole model is another one, and where an adapter has begun with what examples gave."""
    state, adapter = model.state_dict(), run.config.model.adapter
    if adapter is None or adapter.between_tasks == "merge" or begins_by(adapter) in BY_INPUTS:
        return state
    return {n: t for n, t in state.items() if n in run.ever_trained or adapters.plain_name(n) not in run.start_names}


def place_of(run: Run | Reloaded, done: int) -> Path:
    """Where the checkpoint after so many stages lies."""
    return run.folder / "checkpoints" / f"task-{done}"


def save(run: Run, k: int) -> None:
    """A checkpoint after stage k; older ones go when it is on the disk."""
    state = {
        "done": run.tasks_done,
        "record": run.record,
        "probes": {name: probe.state() for name, probe in run.probes.items()},
        "truncated": sorted(run.codec.truncated_ids),
        "ever_trained": sorted(run.ever_trained),
        "trained": sorted(name for name, weight in run.model.named_parameters() if weight.requires_grad),
        "strategy": run.strategy.state(),
    }
    here = place_of(run, k + 1)
    checkpoint.save(here, state, saved_weights(run, run.model), run.examples)
    if run.config.checkpoint.keep == "last":
        for older in here.parent.glob("task-*"):
            if older != here:
                checkpoint.discard(older)


def take_back(run: Run, state: dict[str, Any]) -> None:
    """Everything but the model."""
    run.tasks_done = state["done"]
    run.ever_trained = set(state["ever_trained"])
    run.strategy.load_state(state["strategy"])
    for name, probe in run.probes.items():
        probe.load_state(state["probes"][name])


def put_back(run: Run | Reloaded, done: int, weights: dict[str, Tensor], place: str) -> None:
    """The start model becomes the one that it was after so many stages: first the structure that they have made (adapters, the
    precision of what is under them, by which PEFT rounds the next one's first weights, and what strategies added in `build`),
    then the weights."""
    adapter, device = run.config.model.adapter, next(run.model.parameters()).device
    for k in range(done - 1 - run.stream.position(done - 1), done):
        run.model = adapters.begin_task(run.model, adapter, run.stream.position(k), run.config.seed.init)
        if run.base_in_bf16:
            adapters.frozen_in_bf16(run.model)
        run.model = run.strategy.build(run.model, k)
        run.model = adapters.end_task(run.model, adapter)
    run.model.to(device)
    load_strictly(run, weights, place)


def load_strictly(run: Run | Reloaded, weights: dict[str, Tensor], place: str) -> None:
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
