"""Elastic weight consolidation: weights that mattered to past tasks are held where those tasks left them.

Kirkpatrick et al. 2017, arXiv 1612.00796:
    L = L_new + (lambda/2) sum_{k<t} sum_i F^k_i (theta_i - theta^k_i)^2,     one term per past task.
Online, Schwarz et al. 2018, arXiv 1805.06370:
    L = L_new + (lambda/2) sum_i gamma F~_i (theta_i - theta^{t-1}_i)^2,      F~ <- gamma F~ + F^t.
The Fisher information of a task, at the weights after it:
    F_i = E_x E_{y ~ p(y|x)} [ (d log p(y|x) / d theta_i)^2 ].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cl_toolkit.engine.access import beside, evaluating
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.anchor import check_there, quadratic
from cl_toolkit.models.logits import drawn
from cl_toolkit.ranges import SHARE, at_least, refuse_idle
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Generator, Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch

torch = LazyModule("torch")


def squared_gradients(
    parameters: list[Tensor], logits: Tensor, labels: Tensor, kind: str, generator: Generator
) -> Iterator[tuple[float, list[Tensor]]]:
    """(weight, [(d log p / d theta)^2]) of one sample, whose targets are at N positions: logits (N, V), labels (N,).

    exact: each label v at each position by its probability. sampled: one label drawn per position. empirical: the true
    labels. A drawn score has mean zero, so the cross terms of positions vanish in expectation: `sampled` is an unbiased
    estimate of `exact`.
    """
    logp = torch.log_softmax(logits.float(), -1)

    if kind == "exact":
        for position in logp:
            for value in position:
                yield float(value.detach().exp()), squares(parameters, value)
        return
    if kind == "sampled":
        labels = drawn(logp.detach(), torch.rand(len(logp), generator=generator))
    yield 1.0, squares(parameters, logp.gather(1, labels[:, None]).sum())


def squares(parameters: list[Tensor], value: Tensor) -> list[Tensor]:
    """The squared gradient of a value by each of the parameters."""
    grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g**2 for p, g in zip(parameters, grads, strict=True)]


class EWC(Strategy):
    """A quadratic penalty, weighted by the Fisher information of past tasks.

    In a language model a sample is a sequence, and its positions are the answer's tokens, each after the true tokens
    before it (under `rft`: after the tokens of a rollout). `exact` sums the Fisher of the next-token distribution over
    these positions, one backward pass per token and vocabulary entry: for small vocabularies. `sampled` estimates the same
    with one backward pass per sequence. `empirical` takes the true answer's log p. `batched` is the mean over whole
    batches of the squared gradient of the objective's loss, as in Avalanche, whose lambda is half of `weight`. Its values are
    much smaller, so it needs another weight.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: lambda; a library without the factor 1/2 needs half this value. What fits depends on the scale of the
        model's gradients and must be searched: the default held three skills of a small language model without costing
        learning, an encoder with 150 classes wanted 3e4, with facts about people 30 cost learning (LOG.md). mode: a term
        per past task, or one running Fisher. gamma: decay of the running Fisher; at 0 the strict rule has no penalty at
        all. fisher: see the class. fisher_examples: training examples per task for the estimate."""

        weight: Annotated[float, at_least(0)] = 100.0
        mode: Literal["separate", "online"] = "separate"
        gamma: Annotated[float, SHARE] = 1.0
        fisher: Literal["exact", "sampled", "empirical", "batched"] = "sampled"
        fisher_examples: Annotated[int, at_least(1)] = 200

        def __post_init__(self) -> None:
            refuse_idle(self, self.mode == "separate", "with mode separate", "gamma")

    tags = Tags(
        forks=True,
        paper="Kirkpatrick et al. 2017, arXiv 1612.00796; online: Schwarz et al. 2018, arXiv 1805.06370",
        off={"weight": 0.0},
        needs_trained=True,
        cost=Cost(after_task=200, copies_per_task=2.0),
        extra_memory="two copies of the trained weights per past task (on the host where a GPU has no room); online: two",
        life_cycles=(None, "continue"),
        needs=frozenset({"logits"}),  # the Fisher is that of a distribution
        exceptions={3: "in separate mode each past task has a term of its own, and only the last one's is 0"},
    )
    kept = ("past",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        # {"fisher": name -> F, "anchor": name -> theta*}; online: one at most
        self.past: list[dict[str, dict[str, Tensor]]] = []

    @property
    def extra_parameters(self) -> int:
        return sum(tensor.numel() for task in self.past for part in task.values() for tensor in part.values())

    def cost(self, batch_size: int) -> Cost:
        cost, config = super().cost(batch_size), self.config
        kept: dict[str, Any] = (
            {"copies": 2.0, "copies_per_task": 0.0} if config.mode == "online" and config.weight else {}
        )
        return replace(cost, after_task=config.fisher_examples if config.weight else 0, **kept)

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        check_there(model, (name for past in self.past for name in past["anchor"]), self.name)
        self.past = beside(model, self.past)
        return model

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        factor = self.config.gamma if self.config.mode == "online" else 1.0
        if not self.past or not factor:
            return {}
        terms = [quadratic(weights, past["fisher"], past["anchor"]) for past in self.past]
        return {self.name: self.config.weight / 2 * factor * sum(terms)}

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.config.weight:
            return model
        trained: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        new = self.fisher(model, task, trained)
        if self.config.mode == "online" and self.past:
            old = self.past.pop()["fisher"]
            new = {name: self.config.gamma * old[name].to(f.device) + f for name, f in new.items()}
        self.past.append({"fisher": new, "anchor": {name: p.detach().clone() for name, p in trained.items()}})
        return model

    def fisher(self, model: nn.Module, task: TaskView, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """F by weight name, over at most `fisher_examples` examples, in eval mode. Each process takes its share of them; what
        is drawn for one depends on it alone."""
        config, generator = self.config, task.generator(self.name)
        chosen = task.drawn(self.name, config.fisher_examples)
        seeds = torch.randint(2**62, (len(chosen),), generator=generator).tolist()
        size = task.batch_size if config.fisher == "batched" else 1
        starts = task.share(range(0, len(chosen), size))
        parameters = list(trained.values())
        total, count = [torch.zeros_like(p) for p in parameters], torch.zeros((), device=parameters[0].device)
        with evaluating(model), torch.enable_grad():
            for start, batch in zip(starts, self._groups(model, task, chosen, starts, size), strict=True):
                if config.fisher == "batched":
                    loss = task.forward(model, batch.to(count.device)).loss
                    self._add(total, [(1.0, squares(parameters, loss))])
                    count += 1
                    continue
                draws = torch.Generator().manual_seed(seeds[start])
                for row in range(len(batch.examples)):
                    part = batch.rows([row]).to(count.device)
                    logits, labels = task.forward(model, part).logits, part.asked.labels
                    logits = task.objective.compared(model, part, logits)  # p(y|x) is over what training compares
                    self._add(total, squared_gradients(parameters, logits, labels, config.fisher, draws))
                    count += 1
        task.sum([*total, count])
        return {name: value / count for name, value in zip(trained, total, strict=True)}

    @staticmethod
    def _groups(
        model: nn.Module, task: TaskView, chosen: Sequence[int], starts: Sequence[int], size: int
    ) -> Iterator[Batch]:
        """The batches of `size` of the chosen examples that begin at `starts`. All are encoded at once, so that rollouts are
        those of one call on every process."""
        groups = [[task.examples[i] for i in chosen[start : start + size]] for start in starts]
        if not groups:
            return
        whole = task.encode([example for group in groups for example in group], model)
        rows: dict[str, list[int]] = {}  # an example may have several: its rollouts
        for row, example in enumerate(whole.examples):
            rows.setdefault(example.id, []).append(row)
        for group in groups:
            part = whole.rows([row for example in group for row in rows[example.id]])
            yield replace(part, total=part.counts())

    @staticmethod
    def _add(total: list[Tensor], found: Iterable[tuple[float, list[Tensor]]]) -> None:
        for weight, squares in found:
            for sum_, square in zip(total, squares, strict=True):
                sum_ += weight * square
