"""The laws of engines: the trajectory of plain torch, however a step is cut, and a plain model at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from cl_toolkit.check.law import Broken, Laws
from cl_toolkit.check.runs import Subject, Trajectory, tiny_config
from cl_toolkit.config.schema import RunConfig
from cl_toolkit.engine.session import Step
from cl_toolkit.strategy import Strategy
from cl_toolkit.study.cells import load_run

LAWS = Laws()
law = LAWS.law
TOLERANCE = 1e-5
"""Of a loss in fp32."""


class Sees(Strategy):
    """Pulls all weights to zero, edits nothing, and keeps what it sees of the gradient."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.seen: list[dict[str, float]] = []

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"pull": 0.01 * torch.stack([(weight**2).sum() for weight in weights.values()]).sum()}

    def before_step(self, model: nn.Module, step: Step) -> None:
        self.seen.append({name: float(gradient.norm()) for name, gradient in step.grads.items()})


class EngineSubject(Subject):
    """An engine, beside plain torch."""

    def config(self, *, engine: str | None = None, **changes: Any) -> RunConfig:
        """A tiny run with it, or another engine."""
        own = {"name": engine or self.reference, "device": "cpu", **self.settings}
        return load_run(tiny_config(engine=own, **changes))

    def beside_torch(self, **changes: Any) -> tuple[Trajectory, Trajectory]:
        """The same run by this engine and by torch."""
        return self.trajectory(**changes), self.trajectory(engine="torch", **changes)


def follows(mine: Trajectory, other: Trajectory) -> float:
    """The largest difference of two runs' losses."""
    if [set(row) for row in mine.losses] != [set(row) for row in other.losses]:
        raise Broken("the runs have other loss terms")
    worst = max(
        abs(row[name] - their[name]) for row, their in zip(mine.losses, other.losses, strict=True) for name in row
    )
    if worst > TOLERANCE:
        raise Broken(f"losses differ from torch's by {worst:.2g}")
    return worst


@law(1, "it follows plain torch", "a result must not depend on what it was computed with")
def trajectory(subject: EngineSubject) -> str:
    mine, plain = subject.beside_torch()
    return f"{len(mine.losses)} losses, largest difference {follows(mine, plain):.1e}"


@law(2, "it accumulates", "the number of devices must not become a setting of the method")
def accumulates(subject: EngineSubject) -> str:
    plain = subject.trajectory(engine="torch")
    worst = max(follows(subject.trajectory(train={"per_device_train_batch_size": n}), plain) for n in (1, 3))
    return f"micro-batches of 1 and 3 follow whole batches of torch, largest difference {worst:.1e}"


@law(3, "it clips", "one bad batch must not undo all that was learned")
def clips(subject: EngineSubject) -> str:
    changes = {"train": {"max_grad_norm": 0.05, "optim": "sgd", "learning_rate": 0.5}}
    mine, plain = subject.beside_torch(**changes)
    free = subject.trajectory(train={**changes["train"], "max_grad_norm": 0.0})
    if free.losses == mine.losses:
        raise Broken("max_grad_norm changes nothing")
    norms = [[row["grad_norm"] for row in t.record["losses"]] for t in (mine, plain)]
    apart = max(abs(a - b) for a, b in zip(*norms, strict=True))
    if apart > 1e-3:
        raise Broken(f"it reports norms of the gradient that differ from torch's by {apart:.2g}")
    return f"a limit of 0.05 is kept as torch keeps it, largest difference {follows(mine, plain):.1e}"


@law(4, "strategies see whole weights and gradients", "a penalty on a part of the weights is another penalty")
def seen(subject: EngineSubject) -> str:
    mine, plain = subject.beside_torch(strategies={f"{__name__}:Sees": {}})
    worst = follows(mine, plain)
    there, here = (cast(Sees, run.strategy).seen for run in (mine.run, plain.run))
    for own, other in zip(there, here, strict=True):
        if set(own) != set(other):
            raise Broken(f"it shows gradients of {len(own)} weights instead of {len(other)}")
        worst = max(worst, *(abs(own[name] - other[name]) for name in own))
    if worst > 1e-3:
        raise Broken(f"norms of the gradients differ from torch's by {worst:.2g}")
    return f"{len(here)} steps with penalty and gradients, largest difference {worst:.1e}"


@law(5, "it leaves a plain module with whole weights", "what comes after a task knows no engine")
def leaves(subject: EngineSubject) -> str:
    mine, plain = subject.beside_torch()
    own, other = mine.run.model, plain.run.model
    if type(own) is not type(other):
        raise Broken(f"the model is a {type(own).__name__} afterwards, not a {type(other).__name__}")
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (own, other)]
    if shapes[0] != shapes[1]:
        raise Broken("its weights have other names or shapes afterwards")
    if any(module._forward_pre_hooks or module._forward_hooks for module in own.modules()):
        raise Broken("its hooks are still on the model")
    if any(p.grad is not None for p in own.parameters()):
        raise Broken("gradients are still on the model")
    apart = max(float((a - b).detach().abs().max()) for a, b in zip(own.parameters(), other.parameters(), strict=True))
    if apart > 1e-3:
        raise Broken(f"a weight differs from torch's by {apart:.2g}")
    return f"{len(shapes[0])} tensors, the largest difference from torch's {apart:.1e}"
