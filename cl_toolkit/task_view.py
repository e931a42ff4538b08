"""What a strategy and an objective get to see of a task: its training examples, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.seeds import generator_from, seed_from
from cl_toolkit.types import Batch, Batches, Example, Outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cl_toolkit.engine.processes import Processes
    from cl_toolkit.models.kind import Codec
    from cl_toolkit.objective import Objective
else:
    torch = LazyModule("torch")


class TaskView:
    """One task as it is trained: no validation or test split, no neighbours, no stream (law 4). `validate` gives scores of
    anchors, no examples, and only to who says that it looks at them.

    name, index: which task; index counts from 0 in trained order (anchors have negative ones).
    examples: the training examples, or what the objective makes of them (`Objective.units`). codec: examples as tensors.
    score: how good an answer is, `(example, answer) -> float`, for objectives that learn from rewards.
    wants_logits: whether somebody needs the logits of training forwards. memory_share: the share of each step's loss that
    rehearsed rows shall carry, for a strategy to say; None: by their targets. processes: those of the job; None: there is one.
    """

    def __init__(
        self,
        *,
        name: str,
        index: int,
        examples: Sequence[Example],
        objective: Objective,
        codec: Codec | None = None,
        score: Callable[[Example, str], float] | None = None,
        batch_size: int = 32,
        epochs: float = 1,
        max_steps: int = -1,
        seeds: dict[str, int] | None = None,
        wants_logits: bool = True,
        processes: Processes | None = None,
        validation: Callable[[nn.Module], dict[str, float]] | None = None,
    ):
        self.name, self.index, self.examples = name, index, objective.units(codec, examples)
        self.objective, self.score = objective, score
        self.codec: Any = codec  # which one it is, an objective knows by its `inputs`
        self.batch_size, self.epochs, self.max_steps = batch_size, epochs, max_steps
        self.wants_logits = wants_logits
        self._processes, self._validation = processes, validation
        self.seeds = seeds or {"data": 0, "memory": 0, "rollout": 0}
        self.memory_share: float | None = None
        self.rollouts = 0  # batches sampled so far; part of what the next one is seeded with
        self._generators: dict[str, torch.Generator] = {}
        self._off_training: TaskView | None = None

    def generator(self, name: str) -> torch.Generator:
        """The random numbers of one strategy in this task. Each name has its own, so that adding a strategy does not
        change another one's draws (law 7). The same object comes back until the task ends."""
        if name not in self._generators:
            self._generators[name] = generator_from(self.seeds["memory"], name, self.index)
        return self._generators[name]

    def drawn(self, name: str, number: int) -> list[int]:
        """The places of so many of the task's examples, or of all, drawn at random for one strategy. They come in the task's
        own order, which decides which examples share a batch."""
        return sorted(torch.randperm(len(self.examples), generator=self.generator(name))[:number].tolist())

    def encode(self, examples: Sequence[Example], model: nn.Module | None = None) -> Batch:
        """Examples as the objective encodes them, with `total` counted over just these. What is sampled for them does not
        change what is sampled for training."""
        if self._off_training is None:
            self._off_training = self.keep(self.examples)
            self._off_training.seeds = {part: seed_from(seed, "aside") for part, seed in self.seeds.items()}
            self._off_training._generators = {}
        # an objective that asks nothing of the model needs none
        batch = self.objective.encode(cast("nn.Module", model), self._off_training, examples)
        return replace(batch, total=batch.counts())

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """The objective's forward."""
        return self.objective.forward(model, batch)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Anchor -> its score on validation examples, more being better; the model is plain and whole, and every process asks.
        Only for a strategy whose tags say that it `validates`: raises UserError for others."""
        if self._validation is None:
            raise UserError(f"task {self.name}: validate: is only for a strategy with `validates=True` among its tags")
        return self._validation(model)

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of what is done before or after a task, such as a pass over examples: neighbours, perhaps none.
        What is drawn for an item must not depend on who has it; every process makes the same calls of `sum` and `gather`."""
        return list(items) if self._processes is None else self._processes.own(items)

    def sum(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same tensors, to which those of all processes are added in place."""
        if self._processes is not None:
            self._processes.sum_(tensors)
        return tensors

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """What all processes have made of their shares, in the order of the items that were shared."""
        return list(items) if self._processes is None else self._processes.gather(items)

    def batches(self) -> Batches:
        """Shuffled anew each epoch, last batch kept. `max_steps` above 0 overrides `epochs`; both are optimizer steps and
        epochs of this task, so an objective that takes several updates per batch gets fewer batches out of `max_steps`."""
        n, size = len(self.examples), self.batch_size
        per_epoch = -(-n // size)
        steps = self.max_steps // self.objective.updates if self.max_steps > 0 else round(per_epoch * self.epochs)
        orders: dict[int, list[int]] = {}

        def get(index: int) -> list[Example]:
            epoch, position = divmod(index, per_epoch)
            if epoch not in orders:
                shuffle = generator_from(self.seeds["data"], "order", self.index, epoch)
                orders[epoch] = torch.randperm(n, generator=shuffle).tolist()
            return [self.examples[i] for i in orders[epoch][position * size : (position + 1) * size]]

        return Batches(max(steps, 1), get)

    def keep(self, examples: Sequence[Example]) -> TaskView:
        """The same task with fewer examples."""
        view = TaskView.__new__(TaskView)
        view.__dict__.update(self.__dict__, examples=examples)
        return view
