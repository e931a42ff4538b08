"""GEM and A-GEM: a step may not raise the loss on a memory of past tasks: of any of them, or of all together.

Lopez-Paz & Ranzato 2017, arXiv 1706.08840. g is the gradient of the step, g_k that of the memory of past task k, the rows of G.
Where some g.g_k < 0, the step goes along the vector nearest to g that opposes none of them (eq. 11, by its dual):
    g + G^T v,   v = argmin_v  (1/2) v^T G G^T v + (G g)^T v,   v >= gamma.
A-GEM, Chaudhry et al. 2019, arXiv 1812.00420, with the gradient r of a random batch from the memories of all:
    g  if g.r >= 0,   else   g - (g.r / r.r) r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.data.store import ExampleStore
from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import at_least, refuse_idle
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Example
else:
    np = LazyModule("numpy")

torch = LazyModule("torch")


def projection(g_dot_r: float, r_dot_r: float) -> float:
    """The multiple of r to subtract from g; 0 where g does no harm, or where r is zero."""
    return g_dot_r / r_dot_r if g_dot_r < 0 and r_dot_r > 0 else 0.0


def dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The inner product of two gradients by name, each weight's in fp32, their sum in fp64."""
    return sum(float(torch.dot(value.flatten(), b[name].flatten())) for name, value in a.items())


class AGEM(Strategy):
    """Project the step's gradient so that it does not oppose the memory's, before clipping. Costs one more forward and backward
    per step.

    g is the whole gradient of the step: that of the objective and of every other term. The memory batch is drawn uniformly
    from all stored examples of past tasks. A strategy that reads the gradient (`si`) has read it before this edit.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """memory_batch_size: examples per step on which r is computed; 0: off. buffer_size: stored examples in total;
        None: no limit. policy: which examples stay when the buffer is full."""

        memory_batch_size: Annotated[int, at_least(0)] = 32
        buffer_size: Annotated[int, at_least(0)] | None = None
        policy: Literal["reservoir", "ring", "quota"] = "quota"

        def __post_init__(self) -> None:
            refuse_idle(self, self.buffer_size is None, "without a buffer_size: all examples stay", "policy")

    tags = Tags(
        forks=True,
        paper="Chaudhry et al. 2019, arXiv 1812.00420",
        off={"memory_batch_size": 0},
        cost=Cost(forwards=1.0, backwards=1.0, copies=1.0),
        extra_memory="stored examples, one more gradient",
        needs_examples=True,
        edits_gradient=True,
    )
    kept = ("store",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.store = ExampleStore(self.config.buffer_size, self.config.policy)

    def cost(self, batch_size: int) -> Cost:
        share = self.config.memory_batch_size / batch_size
        return Cost(forwards=share, backwards=share, copies=float(share > 0))

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.task = task
        return model

    def before_step(self, model: nn.Module, step: Step) -> None:
        memory = [example for _, example in self.store.items]
        if not memory or not self.config.memory_batch_size:
            return
        r = step.gradient_of(self._drawn(memory))
        grads = step.grads
        g_dot_r = sum(torch.dot(grads[name].flatten(), value.flatten()) for name, value in r.items())
        r_dot_r = sum(torch.dot(value.flatten(), value.flatten()) for value in r.values())
        factor = projection(float(g_dot_r), float(r_dot_r))
        if factor:
            for name, value in r.items():
                grads[name] = grads[name] - factor * value

    def _drawn(self, group: Sequence[Example]) -> list[Example]:
        """A memory batch out of stored examples."""
        order = torch.randperm(len(group), generator=self.task.generator(self.name))
        return [replace(group[i], source="memory") for i in order[: self.config.memory_batch_size].tolist()]

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.config.memory_batch_size and self.config.buffer_size != 0:
            self.store.add(task.index, task.examples, task.generator(self.name))
        return model


def multiples(gram: np.ndarray, along: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """v, (K,): how much of each g_k is added to g. gram (K, K): G G^T. along (K,): G g.

    As least squares over u = v - gamma >= 0: with G G^T = L L^T, |L^T u + L^-1 (G g + G G^T gamma)|^2. As in the authors' code
    the diagonal is raised a little: by 1e-3 there, here by 1e-6 of its mean, which does not depend on the scale of the loss.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    ridge = 1e-6 * float(np.trace(gram)) / len(gram)
    if ridge == 0:  # the memory says nothing
        return np.zeros(len(gram))
    root = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
    wanted = solve_triangular(root, -(along + gram @ np.full(len(gram), margin)), lower=True)
    return nnls(root.T, wanted)[0] + margin


class GEM(AGEM):
    """Turn the step's gradient so that it opposes the memory of no past task, before clipping. One more forward and backward
    per step for each past task.

    A-GEM (`agem`) asks the same of the mean over all past tasks alone. The authors keep a few examples of each task and take
    all of them at each step: `buffer_size` of so many and a large `memory_batch_size`. By default the memory's examples are
    drawn anew at each step.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AGEM.Config):
        """margin: gamma, 0.5 in the paper; above 0 the step gives up some of the new for the old. memory_batch_size: examples
        of each past task per step; 0: off. The rest as for agem."""

        margin: Annotated[float, at_least(0)] = 0.5

    tags = replace(
        AGEM.tags,
        paper="Lopez-Paz & Ranzato 2017, arXiv 1706.08840",
        cost=Cost(forwards=1.0, backwards=1.0, copies_per_task=1.0),
        extra_memory="stored examples, one more gradient per past task",
    )

    def cost(self, batch_size: int) -> Cost:
        share = self.config.memory_batch_size / batch_size
        return Cost(forwards=share, backwards=share, copies_per_task=float(share > 0))

    def before_step(self, model: object, step: Step) -> None:
        groups = [group for group in self.store.by_task().values() if group]
        if not groups or not self.config.memory_batch_size:
            return
        past = [step.gradient_of(self._drawn(group)) for group in groups]
        grads = step.grads
        whole = {name: grads[name] for name in past[0]}
        along = [dot(row, whole) for row in past]
        if min(along) >= 0:
            return
        gram = [[dot(a, b) for b in past] for a in past]
        factors = multiples(np.array(gram), np.array(along), self.config.margin)
        for name, value in whole.items():
            grads[name] = value + sum(float(v) * row[name] for v, row in zip(factors, past, strict=True))
