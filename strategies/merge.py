"""Merging: after a task the weights become a mixture of what was trained and what was before.

Interpolation, Wortsman et al. 2022 (WiSE-FT), arXiv 2109.01903; between tasks Lin et al. 2024, arXiv 2309.06256:
    theta <- (1 - a) theta_before + a theta_trained.
Task vectors tau_k = theta_k - theta_0, theta_k the weights that task k has trained:  theta <- theta_0 + a m(tau_1, ..., tau_t),
    task_arithmetic    the sum (Ilharco et al. 2023, arXiv 2212.04089);    average    the mean;
    ties      each trimmed to its largest elements, then of each element the mean of those that have the sign of their sum
              (Yadav et al. 2023, arXiv 2306.01708), matrix by matrix as in PEFT, where the paper trims the whole vector;
    dare      the sum of vectors of which a random share is dropped and the rest made larger (Yu et al. 2024, arXiv 2311.03099);
    magmax    of each element the largest by magnitude (Marczak et al. 2024, arXiv 2407.06322).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.engine.access import beside
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.merging import elected
from cl_toolkit.ranges import above, at_least, refuse_idle
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Generator, Tensor, nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def larger(one: Tensor, other: Tensor) -> Tensor:
    """Of each element the larger by magnitude; of two that are equal the other's, as in the authors' code."""
    return torch.where(other.abs() >= one.abs(), other, one)


def dropped(vector: Tensor, density: float, generator: Generator) -> Tensor:
    """Each element is kept with probability `density`, and divided by it."""
    kept = torch.rand(vector.shape, generator=generator) < density
    return vector * kept.to(vector.device) / density


class Merge(Strategy):
    """Mix the weights after a task with those of before; the mixture is what is scored and kept.

    `linear` trains the next task from the mixture. Task vectors need the weights that were trained: the next task begins
    where the training of the last one ended, as in MagMax, or with `parallel` at the start model, as in the other papers
    (train apart, then merge). Of an adapter each matrix is mixed for itself, not their product. Strategies that look at the
    weights after a task see those that were trained.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """method: see above; null: off. weight: a; of `linear` 1 is off too. density: the share of elements that `ties` and
        `dare` keep. parallel: each task begins at the start model."""

        method: Literal["linear", "task_arithmetic", "average", "ties", "dare", "magmax"] | None = "linear"
        weight: Annotated[float, at_least(0)] = 0.5
        density: Annotated[float, above(0).below(1)] = 0.2
        parallel: bool = False

        def __post_init__(self) -> None:
            refuse_idle(self, self.method not in ("ties", "dare"), f"with method {self.method}", "density")
            if self.parallel and self.method == "linear":
                raise ValueError(
                    "parallel: expected false with method linear, which mixes with the weights before a task"
                )

    tags = Tags(
        forks=True,
        paper="Wortsman et al. 2022, arXiv 2109.01903; task vectors: Ilharco et al. 2023, arXiv 2212.04089",
        off={"method": None},
        cost=Cost(copies=1.0),
        extra_memory="a copy of the trained weights; of task vectors three, with ties two and one per past task",
        life_cycles=(None, "continue"),
        owns=frozenset({"weights"}),
        exceptions={1: "the first task is mixed with the start model"},
    )
    kept = ("base", "trained", "vectors", "tasks")

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.base: dict[str, Tensor] = {}  # theta_before while a task is trained; of task vectors theta_0
        self.trained: dict[str, Tensor] = {}  # theta_k of the last task
        self.vectors: list[dict[str, Tensor]] = []  # of `ties` all; of the others what they have come to
        self.tasks = self.extra = 0
        self.apart: dict[str, float] = {}

    @property
    def extra_parameters(self) -> int:
        return self.extra

    def told(self) -> dict[str, float]:
        """Of the last task, in L2 over all trained weights: `moved`, how far training ended from the start, as a share of the
        start's length; `to_start` and `to_trained`, how far the mixture is from these two, as shares of their lengths. The
        start is where the task began (`linear`), or the start model."""
        return self.apart

    @property
    def off(self) -> bool:
        """Whether the weights stay as they were trained."""
        return self.config.method is None or (self.config.method == "linear" and self.config.weight == 1)

    def cost(self, batch_size: int) -> Cost:
        if self.off:
            return Cost()
        of_vectors = Cost(copies=2.0, copies_per_task=1.0) if self.config.method == "ties" else Cost(copies=3.0)
        return self.tags.cost if self.config.method == "linear" else of_vectors

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.off:
            return model
        linear, weights = self.config.method == "linear", dict(model.named_parameters())
        self.base, self.trained, self.vectors = beside(model, [self.base, self.trained, self.vectors])
        if linear or not self.base:
            self.base = {name: p.detach().clone() for name, p in weights.items() if p.requires_grad}
        if not linear:
            write(weights, (self.base if self.config.parallel else self.trained).items())
        return model

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.apart = {}
        if not self.base:  # switched off, or an anchor, which is never trained
            return model
        weights = {name: p for name, p in model.named_parameters() if name in self.base}
        now = {name: p.detach().clone() for name, p in weights.items()}
        if self.config.method != "linear":
            self._add({name: p.float() - self.base[name].to(p.device).float() for name, p in now.items()}, task)
            self.trained = {} if self.config.parallel else now
        write(weights, ((name, self._mixture(name, p)) for name, p in now.items()))
        self.apart = distances(self.base, now, weights)
        self.extra = sum(p.numel() for part in (self.base, self.trained, *self.vectors) for p in part.values())
        if self.config.method == "linear":
            self.base = {}  # the next task begins with the mixture
        return model

    def _add(self, new: dict[str, Tensor], task: TaskView) -> None:
        """A task's vector joins the others."""
        config = self.config
        if config.method == "dare":
            draw = task.generator(self.name)
            new = {name: dropped(vector, config.density, draw) for name, vector in new.items()}
        if self.vectors and config.method != "ties":
            fold = larger if config.method == "magmax" else torch.add
            (known,) = self.vectors
            new, self.vectors = {name: fold(known[name].to(v.device), v) for name, v in new.items()}, []
        self.vectors = [*self.vectors, new]
        self.tasks += 1

    def _mixture(self, name: str, trained: Tensor) -> Tensor:
        """What a weight becomes, in fp32."""
        base = self.base[name].to(trained.device).float()
        if self.config.method == "linear":
            return torch.lerp(base, trained.float(), self.config.weight)
        vectors = [vector[name].to(trained.device) for vector in self.vectors]
        mixed = elected(vectors, self.config.density) if self.config.method == "ties" else vectors[0]
        return base + self.config.weight / (self.tasks if self.config.method == "average" else 1) * mixed


def distances(
    start: Mapping[str, Tensor], trained: Mapping[str, Tensor], mixed: Mapping[str, Tensor]
) -> dict[str, float]:
    """What `Merge.told` says of three models, their weights by name; one weight after the other, in fp32."""
    squares = dict.fromkeys(("start", "trained", "moved", "to_start", "to_trained"), 0.0)
    for name, after in trained.items():
        a, b, m = (weight.detach().to(after.device).float() for weight in (start[name], after, mixed[name]))
        for key, vector in {"start": a, "trained": b, "moved": b - a, "to_start": m - a, "to_trained": m - b}.items():
            squares[key] += float(vector.square().sum())
    by = {"moved": "start", "to_start": "start", "to_trained": "trained"}
    return {key: (squares[key] / squares[of]) ** 0.5 if squares[of] else 0.0 for key, of in by.items()}


def write(weights: Mapping[str, Tensor], values: Iterable[tuple[str, Tensor]]) -> None:
    """Give weights other values, by name and one after the other, each rounded once to its own precision."""
    for name, value in values:
        weights[name].data.copy_(value)
