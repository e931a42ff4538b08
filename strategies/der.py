"""Dark experience replay: on stored examples, keep the logits that the model had when they were stored.

Buzzega et al. 2020, arXiv 2004.07211; code aimagelab/mammoth.
    DER  : L = L_new + alpha * mean || z_stored - h(x_mem) ||^2
    DER++: + beta * CE(y_mem', h(x_mem')),      x_mem' a second, independent batch of memory.
The mean is over all elements, as in the code. Examples enter a reservoir while they are trained on, each time with the
logits of that moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.data.store import ExampleStore
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import by_rows, logprobs
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import Cost, Strategy, Tags
from cl_toolkit.types import Batches, Example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Outputs

torch = LazyModule("torch")


def squared_error(stored: Tensor, logits: Tensor) -> Tensor:
    """sum over N positions and k stored entries of (z_stored - h)^2. Divide by N k for the paper's mean."""
    return ((stored - logits) ** 2).sum()


def targets_of(part: Batch, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Which of the part's N targets are those of some examples, (n,), and the examples in the order of these."""
    owners = part.asked.examples
    chosen = torch.isin(owners, torch.tensor(rows, device=owners.device)).nonzero()[:, 0]
    return chosen, owners[chosen].unique_consecutive().tolist()


class DER(Strategy):
    """Replay of logits: for each answer token the `top_k` largest at the time of storing, since all would fill a vocabulary.

    The memory rides in the batch as rows without a target, so it needs no forward of its own. Only examples of past tasks
    are rehearsed (the code also rehearses the current task's), so without past tasks it is sequential training.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """alpha: weight of the logits' squared error; 0: off. memory_batch_size: rehearsed examples per step. buffer_size:
        stored examples in total, chosen by reservoir over all steps. top_k: logits kept per token."""

        alpha: Annotated[float, at_least(0)] = 0.5
        memory_batch_size: Annotated[int, at_least(1)] = 32
        buffer_size: Annotated[int, at_least(1)] = 500
        top_k: Annotated[int, at_least(1)] = 32

    tags = Tags(
        paper="Buzzega et al. 2020, arXiv 2004.07211",
        off={"alpha": 0.0},
        cost=Cost(rows=1.0),
        extra_memory="stored examples with `top_k` logits per token",
        needs_examples=True,
        keeps_anchors=False,  # it stores while it trains
        needs=frozenset({"logits", "true_targets"}),  # stored logits belong to the tokens of a fixed answer
        owns=frozenset({"stored_logits"}),
    )
    kept = ("store",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.store = ExampleStore(self.config.buffer_size, "reservoir")
        self._offered: dict[str, Example] = {}  # id -> example with its logits, of this process in this step
        self._counts = {"logits": 0, "tokens": 0}  # stored numbers and tokens in the whole step's memory

    def weights(self) -> dict[str, float]:
        """Kind of memory rows -> weight of their term."""
        return {"der": self.config.alpha}

    @property
    def active(self) -> bool:
        return any(self.weights().values()) and self.config.buffer_size > 0 and self.config.memory_batch_size > 0

    def cost(self, batch_size: int) -> Cost:
        kinds = sum(weight > 0 for weight in self.weights().values())
        return Cost(rows=kinds * self.config.memory_batch_size / batch_size)

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.task = task
        return model

    def batches(self, model: nn.Module, task: TaskView, batches: Batches) -> Batches:
        past = any(index != task.index for index, _ in self.store.items)
        if not self.active or not past:
            return batches
        generator = task.generator(self.name)

        def get(index: int) -> list[Example]:  # batches are read in order: the store changes while the task is trained
            memory = [example for i, example in self.store.items if i != task.index]
            rows, self._counts = [], {"logits": 0, "tokens": 0}
            for kind in [k for k, weight in self.weights().items() if weight] if memory else []:
                order = torch.randperm(len(memory), generator=generator)[: self.config.memory_batch_size].tolist()
                for example in (memory[i] for i in order):
                    rows.append(
                        replace(example, source="aside", extra={**example.extra, "rehearsed": (self.name, kind)})
                    )
                    if kind == "der":
                        self._counts["logits"] += example.extra["logits"].numel()
                    self._counts["tokens"] += len(example.extra["logits"]) if kind == "ce" else 0
            return [*batches[index], *rows]

        return Batches(len(batches), get)

    def loss(self, model: nn.Module, part: Batch, out: Outputs) -> dict[str, Tensor]:
        if not self.active:
            return {}
        self._offer(part, out.logits)
        terms: dict[str, Tensor] = {}
        for kind, weight in self.weights().items():
            rows = [i for i, e in enumerate(part.examples) if e.extra.get("rehearsed") == (self.name, kind)]
            rows = [i for i in rows if part.examples[i].source == "aside"]
            if rows:
                chosen, order = targets_of(part, rows)
                self._check(part, chosen, rows)
                logits, examples = out.logits.index_select(0, chosen), [part.examples[i] for i in order]
                value = (
                    self._error(logits, examples) if kind == "der" else self._entropy(logits, part.asked.labels[chosen])
                )
                terms[self.name if kind == "der" else f"{self.name}_ce"] = weight * value
        # a part without memory rows must have the same terms as the other processes' parts
        return terms | {name: out.loss.new_zeros(()) for name in self._names() if name not in terms}

    def _check(self, part: Batch, chosen: Tensor, rows: Sequence[int]) -> None:
        if len(chosen) != sum(len(part.examples[i].extra["logits"]) for i in rows):
            raise UserError(
                f"strategies.{self.name}: rows that are only looked at have other targets than when they are trained; the "
                "codec, or the objective's encode, has to set Batch.targets too"
            )

    def _error(self, logits: Tensor, examples: Sequence[Example]) -> Tensor:
        """Of logits (n, V) at the targets of stored examples, in their order: their part of the step's mean squared error."""
        entries, stored = (
            torch.cat([e.extra[key] for e in examples]).to(logits.device) for key in ("entries", "logits")
        )
        return squared_error(stored, logits.gather(1, entries).float()) / self._counts["logits"]

    def _entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (n, V) at targets (n,): their part of the step's mean cross-entropy."""
        return -by_rows(logprobs, logits.shape[1], logits, labels).sum() / self._counts["tokens"]

    def _names(self) -> list[str]:
        names = {"der": (self._counts["logits"], self.name), "ce": (self._counts["tokens"], f"{self.name}_ce")}
        return [name for count, name in names.values() if count]

    def _offer(self, part: Batch, logits: Tensor) -> None:
        """Remember the new examples with their logits until the step's end."""
        rows = [i for i, example in enumerate(part.examples) if example.source == "task"]
        if not rows:
            return
        chosen, order = targets_of(part, rows)
        top = logits.detach().index_select(0, chosen).float().topk(min(self.config.top_k, logits.shape[1]))
        sizes = torch.bincount(part.asked.examples[chosen], minlength=len(part.examples))[order].tolist()
        for row, values, entries in zip(
            order, top.values.cpu().split(sizes), top.indices.cpu().split(sizes), strict=True
        ):
            example = part.examples[row]  # a copy: a view would keep those of the whole part
            extra = {**example.extra, "logits": values.clone(), "entries": entries.clone()}
            self._offered[example.id] = replace(example, extra=extra)

    def before_step(self, model: nn.Module, step: Step) -> None:
        if not self.active:
            return
        # in the order of the ids, so that the store does not depend on the number of processes
        offered = sorted(step.gather(list(self._offered.items())), key=lambda item: item[0])
        self.store.add(self.task.index, [example for _, example in offered], self.task.generator(f"{self.name}-store"))
        self._offered = {}


class DERpp(DER):
    """DER and the plain loss on a second batch of memory. At beta = 0 it draws what DER draws."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DER.Config):
        """beta: weight of the plain loss on the second batch, averaged over its answer tokens. The rest as for der."""

        beta: Annotated[float, at_least(0)] = 0.5

    tags = replace(DER.tags, off={"alpha": 0.0, "beta": 0.0}, cost=Cost(rows=2.0))

    def weights(self) -> dict[str, float]:
        return {"der": self.config.alpha, "ce": self.config.beta}
